"""What a fault server can do wrong, as plain data; standard library only, since the server itself reads it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["HEALTHY", "Fault", "Script"]

Reads = Literal["nothing", "head", "all"]
Sends = Literal["nothing", "half head", "head", "half body", "all"]
Then = Literal["keep", "close", "reset", "silence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a server does with a request. Without arguments it is healthy: 200, and the connection is kept.

    Attributes:
        path: only for targets that begin so.
        first: only for so many requests; None for all.
        share: of the requests that it is for (0 to 1), drawn with the server's seed.
        reused: only for requests on a connection that has had one before.
        reads: how much of the request is read before anything else happens; with "nothing" it happens as soon
            as the first bytes of the request arrive.
        delay: seconds between reading and answering.
        status: of the answer.
        headers: more of them; a `Connection: close` is meant.
        length: added to the Content-Length that would be right.
        raw: written instead of an answer.
        sends: how much of the answer is sent.
        pieces: so many are made of it.
        pause: seconds after each piece.
        then: what becomes of the connection: kept, closed (FIN), reset (RST), or left open in silence.
    """

    path: str = "/"
    first: int | None = None
    share: float = 1.0
    reused: bool = False
    reads: Reads = "all"
    delay: float = 0.0
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int = 0
    raw: str | None = None
    sends: Sends = "all"
    pieces: int = 1
    pause: float = 0.0
    then: Then = "keep"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `Fault(**data)` is the way back."""
        return asdict(self)


HEALTHY = Fault()


class Script:
    """The faults, the first that fits counts."""

    def __init__(self, faults: Iterable[Mapping[str, Any]], seed: int) -> None:
        self._faults = [Fault(**fault) for fault in faults]
        self._left = [fault.first for fault in self._faults]
        self._rng = random.Random(seed)

    def choose(self, target: str, *, reused: bool) -> Fault:
        for number, fault in enumerate(self._faults):
            left = self._left[number]
            fits = target.startswith(fault.path) and left != 0 and (reused or not fault.reused)
            if fits and (fault.share >= 1 or self._rng.random() < fault.share):
                if left is not None:
                    self._left[number] = left - 1
                return fault
        return HEALTHY
