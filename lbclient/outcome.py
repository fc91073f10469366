"""What an attempt showed: `classify()` decides it once, and each consumer states which outcomes it counts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import aiohttp

from lbclient.errors import NodeLeft

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["ANSWERS", "FAILURES", "Classifier", "Outcome", "classify", "classify_answer"]

_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500
_UNAVAILABLE = 503
# What is in front of the server, or the server itself, did not get it answered (Envoy's gateway failures).
_GATEWAY = frozenset({502, 503, 504})
# This process has no descriptors left: no server's fault, and no other server would do better.
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Outcome(Enum):
    """What one attempt showed about its node.

    | outcome | what happened | another attempt | ejection | load | throttle |
    |---|---|---|---|---|---|
    | SUCCESS | the head of an answer arrived | no | resets | its latency | accepted |
    | ERROR | the same, with a status of 500 or above | if `Retry.statuses` says so | counts | failure | accepted |
    | GATEWAY | status 502, 503 or 504 | idempotent and replayable | counts | failure | refused |
    | OVERLOAD | 429, or 503 with `Retry-After` | the same, not before `Retry-After` | resets | failure | refused |
    | CONNECT | no connection, nothing was sent | any method | counts | ignored | refused |
    | LEFT | the node left before anything was sent | any method, free of charge | ignored | ignored | ignored |
    | FAULT | sent, no answer or half of one | idempotent and replayable | counts | failure | refused |
    | TIMEOUT | most of the request's deadline passed in silence | no, none is left | counts | failure | refused |
    | BROKEN | an answer came that is no HTTP | no | counts | failure | accepted |
    | OURS | cancellation, a hedge's loser, a deadline spent elsewhere | no | ignored | ignored | ignored |
    """

    SUCCESS = "success"
    ERROR = "error"
    GATEWAY = "gateway"
    OVERLOAD = "overload"
    CONNECT = "connect"
    LEFT = "left"
    FAULT = "fault"
    TIMEOUT = "timeout"
    BROKEN = "broken"
    OURS = "ours"


# There was an answer, whatever it said: the server can be reached and speaks.
ANSWERS = frozenset({Outcome.SUCCESS, Outcome.ERROR, Outcome.GATEWAY, Outcome.OVERLOAD})
# The server did not do what it is there for.
FAILURES = frozenset(
    {
        Outcome.ERROR,
        Outcome.GATEWAY,
        Outcome.OVERLOAD,
        Outcome.CONNECT,
        Outcome.FAULT,
        Outcome.TIMEOUT,
        Outcome.BROKEN,
    }
)

# A user's own judgement of a response (status and headers; its body is still unread) or of an exception;
# None for `classify()`'s.
Classifier = Callable[["ClientResponse | BaseException"], Outcome | None]


def classify_answer(response: ClientResponse) -> Outcome:
    """The outcome of an attempt that was answered so."""
    status = response.status
    if status < _SERVER_ERROR:
        return Outcome.OVERLOAD if status == _TOO_MANY_REQUESTS else Outcome.SUCCESS
    if status == _UNAVAILABLE and "Retry-After" in response.headers:
        return Outcome.OVERLOAD
    return Outcome.GATEWAY if status in _GATEWAY else Outcome.ERROR


def classify(error: BaseException) -> Outcome:  # noqa: PLR0911 - it is a table
    """The outcome of an attempt that ended with this exception. The order matters: the classes overlap."""
    if isinstance(error, NodeLeft):
        return Outcome.LEFT
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return Outcome.OURS
    if isinstance(error, aiohttp.ClientConnectorError):
        return Outcome.OURS if error.os_error.errno in _OUT_OF_DESCRIPTORS else Outcome.CONNECT
    if isinstance(error, (aiohttp.ConnectionTimeoutError, aiohttp.ServerFingerprintMismatch)):
        return Outcome.CONNECT
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ServerTimeoutError)):
        return Outcome.FAULT
    if isinstance(error, aiohttp.ClientConnectionResetError):
        return Outcome.FAULT
    if isinstance(error, aiohttp.ClientOSError):
        # An OSError that the user's own body raised (a file that vanished) arrives as a ClientOSError
        # as well; what the connection raises is a ConnectionError, or has no cause.
        foreign = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ConnectionError)
        return Outcome.OURS if foreign and _of_the_body(error) else Outcome.FAULT
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return Outcome.BROKEN
    # A bare TimeoutError is the total deadline, or the caller's own.
    return Outcome.OURS


def _of_the_body(error: aiohttp.ClientOSError) -> bool:
    return "request body" in str(error)
