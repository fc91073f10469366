"""Own errors, only for what aiohttp cannot say."""

from __future__ import annotations

import aiohttp

__all__ = ["AttemptsFailed", "LBError", "NoEndpoints", "NodeLeft"]


class LBError(aiohttp.ClientConnectionError):
    """Something that only a balancer can report.

    It is never a `ClientOSError` or `ServerDisconnectedError`: aiohttp sends requests that failed with those
    once more by itself.
    """


class NoEndpoints(LBError):  # noqa: N818 - the public name reads as the sentence it is
    """There is no endpoint to send the request to; the message has the counts and the state of discovery."""


class NodeLeft(LBError):  # noqa: N818 - as above
    """The node left the registry while a connection to it was being made; nothing was sent."""


class AttemptsFailed(LBError):  # noqa: N818 - as above
    """All attempts failed, in a session whose own hidden retry stays on; `__cause__` is the last error.

    Only raised by a `BalancingMiddleware` in a `ClientSession` of somebody else; a `BalancedSession` raises
    aiohttp's own exceptions.
    """
