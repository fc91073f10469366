"""What an attempt showed: `classify()` decides it once, and each consumer states which outcomes it counts."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import aiohttp

from lbclient.errors import LBError, NothingSent

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["ANSWERS", "FAILURES", "Classifier", "Outcome", "asked", "classify", "classify_answer"]

_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500
_UNAVAILABLE = 503
# What is in front of the server, or the server itself, did not get it answered (Envoy's gateway failures).
_GATEWAY = frozenset({502, 503, 504})
# This machine has no descriptors or memory left: no server's fault, and no other server would do better.
_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Where aiohttp waits for a place in a full connector. A private name that is read: if it vanishes, the node is
# blamed as if it had been connected to.
_QUEUE = "_wait_for_available_connection"


class Outcome(Enum):
    """What one attempt showed about its node.

    It is known when the head of an answer arrives, or none will. If the body then breaks off, the attempt is a
    FAULT in the end, and whoever counts outcomes is told that as well. Any answer resets failed connections.

    | outcome | what happened | another attempt | ejection | load | throttle |
    |---|---|---|---|---|---|
    | SUCCESS | the head of an answer arrived | no | resets | its latency | accepted |
    | ERROR | another status of 500 or above | if `Retry.statuses` says so | counts | failure | accepted |
    | GATEWAY | status 502, 503 or 504 | idempotent and replayable | counts | failure | refused |
    | OVERLOAD | 429, or 503 with `Retry-After` | so too, after `Retry-After` | ignored | failure | refused |
    | CONNECT | no connection, nothing was sent | any method | counts | ignored | refused |
    | LEFT | node or connection gone, nothing was sent | any method, free of charge | ignored | ignored | ignored |
    | FAULT | sent, no answer in time, or half of one | idempotent and replayable | counts | failure | refused |
    | TIMEOUT | half of the whole time passed in silence | no, none is left | counts | failure | refused |
    | BROKEN | an answer came that is no HTTP | no | counts | failure | accepted |
    | OURS | cancellation, a hedge's loser, a deadline spent elsewhere | no | ignored | ignored | ignored |
    | OURS | no place in the connector in time | any method, free of charge | ignored | ignored | ignored |
    """

    # There is one object for each, and that of `Enum` is written in Python: each look into a set would show.
    __hash__ = object.__hash__

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


def asked(classifier: Classifier | None, result: ClientResponse | BaseException) -> Outcome | None:
    """The outcome that a user's function gives the end of an attempt; None for the usual one.

    It is not asked about what is no sign of a server: a cancellation, or an error of the balancer's own.

    Raises:
        TypeError: if it returns something else.
        Exception: what it raises, with a note that says where.
    """
    if classifier is None or isinstance(result, LBError):
        return None
    if isinstance(result, BaseException) and not isinstance(result, Exception):
        return None
    try:
        said: object = classifier(result)
    except Exception as error:
        # Not its words: some of aiohttp's exceptions have the whole request in theirs, with all of its headers.
        name = type(result).__name__
        what = f"a {name}" if isinstance(result, Exception) else f"an answer with status {result.status}"
        error.add_note(f"raised by classify, which was asked about {what}")
        raise
    if said is None:
        return None
    if not isinstance(said, Outcome) or said is Outcome.LEFT:
        raise TypeError(f"classify must return None or an Outcome other than LEFT, not {said!r}")
    return said


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
    if isinstance(error, NothingSent):
        return Outcome.LEFT
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return Outcome.OURS
    if isinstance(error, aiohttp.ClientConnectorError):
        return Outcome.OURS if error.os_error.errno in _LOCAL else Outcome.CONNECT
    if isinstance(error, (aiohttp.ConnectionTimeoutError, aiohttp.ServerFingerprintMismatch)):
        return Outcome.OURS if _was_queued(error) else Outcome.CONNECT
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ServerTimeoutError)):
        return Outcome.FAULT
    if isinstance(error, aiohttp.ClientConnectionResetError):
        return Outcome.FAULT
    if isinstance(error, aiohttp.ClientOSError):
        return Outcome.OURS if _of_the_body(error) else Outcome.FAULT
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return Outcome.BROKEN
    # A bare TimeoutError is the total deadline, or the caller's own.
    return Outcome.OURS


def _was_queued(error: BaseException) -> bool:
    """Whether its time went by in a queue for a connection: nobody tried to connect."""
    # A time-out has the cancellation by which it ended what was awaited as its cause.
    while error.__cause__ is not None:
        error = error.__cause__
    return any(frame.f_code.co_name == _QUEUE for frame, _ in traceback.walk_tb(error.__traceback__))


def _of_the_body(error: aiohttp.ClientOSError) -> bool:
    """Whether the user's own body raised it: a file that vanished, or another connection that was read from."""
    cause = error.__cause__
    # What this connection raises into the writer of a body is no subclass of ConnectionError but aiohttp's own.
    ours = type(cause) is ConnectionError or isinstance(cause, aiohttp.ClientConnectionError)
    return isinstance(cause, OSError) and not ours and "request body" in str(error)
