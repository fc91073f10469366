"""What can go wrong in the sandbox."""


class SandboxError(Exception):
    """A server of the sandbox did not do what it was asked to."""


class ServerUnavailable(SandboxError):  # noqa: N818 - it is about the machine, not about the program
    """There is no way to run this server here; the message says what to install or set."""


class NotKillable(SandboxError):  # noqa: N818 - as above
    """The server was started by somebody else, so it is not ours to stop."""
