"""Own errors, only for what aiohttp cannot say."""

from __future__ import annotations

import aiohttp

__all__ = [
    "AttemptsFailed",
    "ConnectionGone",
    "LBError",
    "LimitReached",
    "NoEndpoints",
    "NodeLeft",
    "NothingSent",
    "ResponseCut",
    "SessionClosing",
    "Throttled",
]


class LBError(aiohttp.ClientConnectionError):
    """Something that only a balancer can report.

    It is never a `ClientOSError` or `ServerDisconnectedError`: aiohttp sends requests that failed with those
    once more by itself.
    """


class NoEndpoints(LBError):  # noqa: N818 - the public name reads as the sentence it is
    """There is no endpoint to send the request to; the message has the counts and the state of discovery."""


class NothingSent(LBError):  # noqa: N818 - as above
    """An attempt ended before the first byte was written, through nobody's fault."""


class NodeLeft(NothingSent):
    """The node left the registry while a connection to it was being made."""


class ConnectionGone(NothingSent):
    """The server had closed the connection that was kept from an earlier request."""


class AttemptsFailed(LBError):  # noqa: N818 - as above
    """All attempts failed, in a session whose own hidden retry stays on; `__cause__` is the last error.

    Only raised by a `BalancingMiddleware` in a `ClientSession` of somebody else; a `BalancedSession` raises
    aiohttp's own exceptions.
    """


class LimitReached(LBError):  # noqa: N818 - as above
    """No slot came free in time, or too many requests wait for one; the message names the option.

    Nothing was sent. A request that was sent before ends with what came of that.
    """


class Throttled(LBError):  # noqa: N818 - as above
    """The servers refuse so much that the request, or its hop after a redirect, was not sent: see `Throttle`."""


class SessionClosing(LBError):  # noqa: N818 - as above
    """The session, or the balancer in it, is being closed, or was: it makes no further attempts.

    A request that was under way has it only if it had no answer yet when the time to drain was over. It may have
    been sent by then: `attempts(error)` says so. One that waited to be tried again ends with what it had.
    """


class ResponseCut(LBError, aiohttp.ClientPayloadError):  # noqa: N818 - as above
    """The rest of a response was given up: its node left long enough ago, or the session was closed.

    Whoever reads the body gets it, or finds it as `exception()` of a websocket. It is a `ClientPayloadError`, as
    after a connection that broke, so that code that opens streams anew does so after this one as well.
    """
