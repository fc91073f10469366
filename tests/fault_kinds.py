"""The faults as rows of the table: what a server does wrong, and what a client can know of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from faults import HEALTHY, Fault

__all__ = ["KINDS", "Kind", "Shows"]


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

    @property
    def late(self) -> bool:
        """Whether the caller hears nothing until a time-out, be it that of a connection."""
        return self.attempt_timeout is not None or self.port == "fill"


_NO_ANSWER = ("ServerDisconnectedError", "ClientOSError")
_TOO_LATE = ("SocketTimeoutError",)
_TORN = ("ClientPayloadError",)
_NO_HTTP = ("ClientResponseError",)
# Servers that are well have so long to answer, also where a busy machine stops them for a moment.
_SOON = 2.5


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
    "slow drip": _unknown(Fault(pieces=20, pause=0.5)),
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
