"""A server program in a Docker container, its ports published on loopback."""

import asyncio
import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.ports import LOOPBACK

_TIMEOUT = 60.0
LABEL = "lbclient.sandbox"


class Container:
    """A container that offers what a local server process offers.

    Docker's engine runs it, so it does survive this process if that is killed:
    `docker rm -f $(docker ps -aq --filter label=lbclient.sandbox)` removes what was left behind.

    Attributes:
        listen_host: Where the program has to listen to be reached from outside.
        peer_host: Under which name other containers of the same network reach it.
        data: The program's data folder as it sees it itself.
    """

    listen_host = "0.0.0.0"  # noqa: S104 - inside of the container; published on loopback only
    data = "/lbclient-data"

    def __init__(self, image: str, program: str, network: str | None = None) -> None:
        self.name = f"lbclient-{os.getpid()}-{secrets.token_hex(4)}"
        # Docker resolves names of containers in a network of one's own only.
        self.peer_host = self.name if network else LOOPBACK
        self._image = image
        self._program = program
        self._network = network
        self._argv: list[str] = []
        self._shown: list[str] = []

    @property
    def running(self) -> bool:
        """Whether the container runs."""
        with contextlib.suppress(SandboxError):
            return _docker("inspect", "--format", "{{.State.Running}}", self.name) == "true"
        return False

    def show(self, files: Iterable[Path]) -> None:
        """Let the program read these files under the same paths as here, from the next `start` on."""
        # The folders, not the files: one that is replaced would stay the old one inside.
        for folder in dict.fromkeys(file.absolute().parent for file in files):
            self._shown += ["--volume", f"{folder}:{folder}:ro"]

    async def start(self, arguments: Sequence[str], ports: Sequence[int]) -> None:
        """Run the program with these arguments; `ports` are published under the same numbers."""
        published = [part for port in ports for part in ("--publish", f"{LOOPBACK}:{port}:{port}")]
        network = ["--network", self._network] if self._network else []
        self._argv = [
            *("run", "--detach", "--name", self.name, "--label", LABEL, *network, *published, *self._shown),
            # Consul's image has an entry script that edits the arguments.
            *("--entrypoint", self._program, self._image, *arguments),
        ]
        await docker(*self._argv)

    async def kill(self) -> None:
        """Kill -9; fine if it is not running."""
        if not self.running:
            return
        try:
            await docker("kill", "--signal", "KILL", self.name)
        except SandboxError:
            # Some engines want a paused container to be resumed first.
            await self.resume()
            await docker("kill", "--signal", "KILL", self.name)

    async def pause(self) -> None:
        """Freeze all its processes."""
        await docker("pause", self.name)

    async def resume(self) -> None:
        """Go on after `pause`."""
        await docker("unpause", self.name)

    async def restart(self) -> None:
        """Start it again with the data it had."""
        await self.kill()
        await docker("start", self.name)

    async def wipe(self) -> None:
        """Start it again without data."""
        await self.remove()
        await docker(*self._argv)

    async def remove(self) -> None:
        """Remove it together with its data."""
        with contextlib.suppress(SandboxError):
            await docker("rm", "--force", "--volumes", self.name)

    def expect_running(self, what: str) -> None:
        """Raise SandboxError with the last lines of the log if the container is not running."""
        if not self.running:
            raise SandboxError(f"the container of {self._image} exited before {what}\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines that the program printed."""
        with contextlib.suppress(SandboxError):
            return _docker("logs", "--tail", "15", self.name)
        return ""


async def docker(*arguments: str) -> str:
    """Run the Docker client and return what it printed.

    Raises:
        SandboxError: It failed; the message has its error.
    """
    return await asyncio.to_thread(_docker, *arguments)


def engine_problem() -> str | None:
    """Return why Docker cannot be used here; None if it can."""
    try:
        _docker("info", "--format", "{{.ServerVersion}}", timeout=5)
    except SandboxError as error:
        return str(error)
    return None


def pull(image: str) -> None:
    """Get the image unless it is there.

    Raises:
        SandboxError: It is not there, and cannot be had.
    """
    try:
        _docker("image", "inspect", "--format", "{{.Id}}", image)
    except SandboxError:
        _docker("pull", "--quiet", image, timeout=180)


def _docker(*arguments: str, timeout: float = _TIMEOUT) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            ["docker", *arguments],  # noqa: S607 - the one on PATH is meant
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise SandboxError("there is no docker on PATH") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"docker {arguments[0]}: {error}") from error
    if done.returncode:
        raise SandboxError(f"docker {arguments[0]}: {done.stderr.strip()[-500:]}")
    return (done.stdout if arguments[0] != "logs" else done.stdout + done.stderr).strip()
