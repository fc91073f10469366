"""The table of faults: what each server may have seen of a request, and what its caller gets, by a few rules.

A cell is a method, a body, a fault and the place of the one healthy server among three (or none is healthy). The
rules know nothing of the implementation:

1. A server that was not connected to has seen nothing: any request goes on to the next one, with its whole body.
2. Where a request was sent and no answer came, it may have been processed: it goes on if it is idempotent, by its
   method or by its key, and if its body can be sent once more, which a generator's cannot. Else the caller gets
   the error.
3. An answer of 429, 502, 503 or 504 is treated the same; where the request does not go on, it is the answer.
4. Any other answer is the answer, also if its body breaks off, which the caller notices when reading it.
5. What is no HTTP is an error, and nobody else is asked.
6. There are three attempts, each at another server; after a server that cannot prove who it is there is only one
   more. When they are used up the last result is the caller's.
7. A server has processed a request once it has read its head and its whole body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product

from faults import HEALTHY, Fault

__all__ = ["BODIES", "HEALTHY_AT", "KINDS", "METHODS", "Cell", "Expected", "Kind", "Shows", "cells", "left_out"]

METHODS = ("GET", "HEAD", "PUT", "DELETE", "POST", "POST with key", "PATCH")
BODIES = ("none", "bytes", "json", "form", "file", "generator")
# The place of the healthy server in the order of preference; -1 if there is none.
HEALTHY_AT = (0, 1, 2, -1)

_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE", "POST with key")


class Shows(Enum):
    """What a client can know after such a fault."""

    UNSENT = "the server was not reached"
    UNKNOWN = "there is no answer"
    REFUSED = "the answer is that another server may do better"
    ANSWER = "there is an answer"
    TORN = "there is an answer whose body breaks off"
    BROKEN = "what came is no HTTP"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault as a row of the table.

    Attributes:
        shows: what the client can know.
        fault: what the server does with a request, once it is connected to.
        errors: names of the exceptions that the caller may get.
        status: of the answer.
        port: what the server's port does instead: "refuse" or "fill".
        tls: whether it is for servers with the wrong certificate.
        attempts: how many there are.
        kept: whether it is for connections that were used before.
        attempt_timeout: seconds, for servers that would never end an attempt by themselves.
    """

    shows: Shows
    fault: Fault = HEALTHY
    errors: tuple[str, ...] = ()
    status: int = 200
    port: str = ""
    tls: bool = False
    attempts: int = 3
    kept: bool = False
    attempt_timeout: float | None = None


@dataclass(frozen=True)
class Expected:
    """What has to be seen of one request.

    Attributes:
        heads: how often its head was read, by each server in the order of preference.
        processed: the same for the whole request.
        server: the place of the server whose answer the caller gets; None if it gets none.
        status: of the answer.
        errors: the exceptions, one of which the caller gets, from the request or when it reads the answer.
    """

    heads: tuple[int, ...]
    processed: tuple[int, ...]
    server: int | None
    status: int | None
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One request of the table."""

    name: str
    method: str
    body: str
    healthy_at: int

    @property
    def request_id(self) -> str:
        return f"{self.name}/{self.method}/{self.body}/{self.healthy_at}"

    @property
    def verb(self) -> str:
        return self.method.split(" ", maxsplit=1)[0]

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def shows(self) -> Shows:
        # An answer to HEAD has no body of which there could be too much.
        return Shows.ANSWER if self.verb == "HEAD" and self.kind.fault.length < 0 else self.kind.shows

    def goes_on(self) -> bool:
        """Whether the request goes to another server after this fault."""
        if self.shows is Shows.UNSENT:
            return True
        may = self.shows in (Shows.UNKNOWN, Shows.REFUSED)
        return may and self.method in _IDEMPOTENT and self.body != "generator"

    def expected(self) -> Expected:
        """What the rules say."""
        heads, processed = [0, 0, 0], [0, 0, 0]
        for place in range(self.kind.attempts):
            if place == self.healthy_at:
                heads[place] = processed[place] = 1
                return Expected(tuple(heads), tuple(processed), place, 200, ())
            if self.shows is not Shows.UNSENT:
                reads = self.kind.fault.reads
                heads[place] = int(reads != "nothing")
                processed[place] = int(reads == "all" or (reads == "head" and self.body == "none"))
            if not self.goes_on():
                break
        answered = self.shows in (Shows.REFUSED, Shows.ANSWER, Shows.TORN)
        return Expected(
            tuple(heads),
            tuple(processed),
            place if answered else None,
            self.kind.status if answered else None,
            () if self.shows in (Shows.REFUSED, Shows.ANSWER) else self.kind.errors,
        )


def cells(name: str) -> Iterator[Cell]:
    """All cells with this fault, but for those that are `left_out`."""
    for method, body, healthy_at in product(METHODS, BODIES, HEALTHY_AT):
        if not left_out(name, method, body):
            yield Cell(name, method, body, healthy_at)


def left_out(name: str, method: str, body: str) -> str:
    """Why there are no such cells; nothing for those that there are."""
    if method in ("GET", "HEAD") and body != "none":
        return "it has no meaning (RFC 9110, section 9.3.1)"
    if method == "HEAD" and KINDS[name].shows is Shows.TORN:
        return "no body is to come, so the answer is whole, and the fault would be the next request's"
    return ""


_NO_ANSWER = ("ServerDisconnectedError", "ClientOSError")
_TOO_LATE = ("SocketTimeoutError",)
_TORN = ("ClientPayloadError",)
_NO_HTTP = ("ClientResponseError",)
_SOON = 0.6


def _unknown(fault: Fault, *, kept: bool = False) -> Kind:
    late = fault.then == "silence" or fault.pieces > 1
    errors, limit = (_TOO_LATE, _SOON) if late else (_NO_ANSWER, None)
    return Kind(shows=Shows.UNKNOWN, fault=fault, errors=errors, attempt_timeout=limit, kept=kept)


def _refused(status: int, fault: Fault) -> Kind:
    return Kind(shows=Shows.REFUSED, fault=fault, status=status)


def _torn(fault: Fault, errors: tuple[str, ...] = _TORN) -> Kind:
    return Kind(shows=Shows.TORN, fault=fault, errors=errors)


KINDS: dict[str, Kind] = {
    "refuse": Kind(shows=Shows.UNSENT, errors=("ClientConnectorError",), port="refuse"),
    "stop accepting": Kind(shows=Shows.UNSENT, errors=("ConnectionTimeoutError",), port="fill"),
    "wrong name": Kind(shows=Shows.UNSENT, errors=("ClientConnectorCertificateError",), tls=True, attempts=2),
    "silent": _unknown(Fault(sends="nothing", then="silence")),
    "deaf": _unknown(Fault(reads="nothing", sends="nothing", then="silence")),
    "slow drip": _unknown(Fault(pieces=20, pause=0.1)),
    "half a head, silent": _unknown(Fault(sends="half head", then="silence")),
    "half a head, closed": _unknown(Fault(sends="half head", then="close")),
    "half a head, reset": _unknown(Fault(sends="half head", then="reset")),
    "closed after the request": _unknown(Fault(sends="nothing", then="close")),
    "reset after the request": _unknown(Fault(sends="nothing", then="reset")),
    "closed after the head": _unknown(Fault(reads="head", sends="nothing", then="close")),
    "reset after the head": _unknown(Fault(reads="head", sends="nothing", then="reset")),
    "closed when used again": _unknown(
        Fault(path="/cell", reads="nothing", sends="nothing", then="close", reused=True), kept=True
    ),
    "reset when used again": _unknown(
        Fault(path="/cell", reads="nothing", sends="nothing", then="reset", reused=True), kept=True
    ),
    "503": _refused(503, Fault(status=503)),
    "503 with Retry-After": _refused(503, Fault(status=503, headers={"Retry-After": "1"})),
    "503 before the body": _refused(503, Fault(status=503, reads="head", headers={"Connection": "close"})),
    "429": _refused(429, Fault(status=429)),
    "502": _refused(502, Fault(status=502)),
    "504": _refused(504, Fault(status=504)),
    "500": Kind(shows=Shows.ANSWER, fault=Fault(status=500), status=500),
    "slow": Kind(shows=Shows.ANSWER, fault=Fault(delay=0.02, pieces=5, pause=0.002)),
    "Connection: close": Kind(shows=Shows.ANSWER, fault=Fault(headers={"Connection": "close"})),
    "half a body, closed": _torn(Fault(sends="half body", then="close")),
    "half a body, reset": _torn(Fault(sends="half body", then="reset")),
    "half a body, silent": _torn(Fault(sends="half body", then="silence"), _TOO_LATE),
    "no body, closed": _torn(Fault(sends="head", then="close")),
    "too long": _torn(Fault(length=10, then="close")),
    "too short": Kind(shows=Shows.BROKEN, fault=Fault(length=-10), errors=_NO_HTTP),
    "garbage": Kind(shows=Shows.BROKEN, fault=Fault(raw="\x00\x01\x02garbage\r\n", then="close"), errors=_NO_HTTP),
    "another protocol": Kind(
        shows=Shows.BROKEN, fault=Fault(reads="nothing", raw="SSH-2.0-OpenSSH_9.6\r\n"), errors=_NO_HTTP
    ),
}
