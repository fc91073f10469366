"""What an attempt showed: `classify()` decides it once, and each consumer states which outcomes it counts."""

from __future__ import annotations

import errno
from enum import Enum

import aiohttp

from lbclient.errors import NodeLeft

__all__ = ["IDEMPOTENT", "Outcome", "classify", "classify_status", "may_be_repeated"]

# RFC 9110, section 9.2.2
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
_IDEMPOTENCY_KEY = "Idempotency-Key"
_SERVER_ERROR = 500
# This process has no descriptors left: no server's fault, and no other server would do better.
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Outcome(Enum):
    """What one attempt showed about its node.

    ERROR, FAULT and BROKEN count as failures in the load of the node.

    | outcome | what happened | another attempt | ejection |
    |---|---|---|---|
    | SUCCESS | the head of a response arrived | no | resets |
    | ERROR | the same, with a status of 500 or above | no | resets |
    | CONNECT | no connection, nothing was sent | any method | counts |
    | LEFT | the node left before anything was sent | any method, free of charge | ignores |
    | FAULT | sent, no answer: maybe processed | idempotent and replayable only | fails a probe |
    | BROKEN | an answer came that is no HTTP | no | fails a probe |
    | OURS | cancellation, total deadline, bad request, own limits | no | ignores |
    """

    SUCCESS = "success"
    ERROR = "error"
    CONNECT = "connect"
    LEFT = "left"
    FAULT = "fault"
    BROKEN = "broken"
    OURS = "ours"


def classify_status(status: int) -> Outcome:
    """The outcome of an attempt that was answered with this status."""
    return Outcome.ERROR if status >= _SERVER_ERROR else Outcome.SUCCESS


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


def may_be_repeated(outcome: Outcome, req: aiohttp.ClientRequest) -> bool:
    """Whether sending this request once more is safe after an attempt with that outcome."""
    if outcome in (Outcome.CONNECT, Outcome.LEFT):
        return True
    if outcome is not Outcome.FAULT:
        return False
    idempotent = req.method in IDEMPOTENT or _IDEMPOTENCY_KEY in req.headers
    return idempotent and not getattr(req.body, "consumed", False)
