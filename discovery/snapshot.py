"""`Snapshot`: all endpoints of a service at one moment, and how far they can be trusted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from discovery.endpoint import Endpoint

__all__ = ["Snapshot", "State"]

State = Literal["starting", "live", "held", "stale"]

_NONE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All endpoints of a service at one moment, and how far they can be trusted.

    Attributes:
        version: a local counter, raised by one whenever `endpoints` changed; 0 means nothing was received yet.
        endpoints: sorted, one per address.
        received_at: `time.monotonic()` seconds when the registry last confirmed these endpoints; None before.
        state: `starting` (nothing received yet), `live`, `held` (the registry answers, but endpoints vanished from
            it all at once and are kept for a while), or `stale` (the registry is out of reach, the endpoints are
            the last that are known to have been good).
        reason: why the state is not `live`, or what is wrong with a part of the source.
        skipped: how many records of the registry could not be read.
        held: the addresses among `endpoints` that the registry lists no more, with the moment in
            `time.monotonic()` seconds at which they go, too; infinity for those that stay until they are accepted.
    """

    version: int = 0
    endpoints: tuple[Endpoint, ...] = ()
    received_at: float | None = None
    state: State = "starting"
    reason: str = ""
    skipped: int = 0
    held: Mapping[str, float] = field(default_factory=lambda: _NONE, hash=False)

    @property
    def age(self) -> float | None:
        """Seconds since the registry last confirmed the endpoints; None if it never did."""
        return None if self.received_at is None else time.monotonic() - self.received_at

    def __str__(self) -> str:
        said = f"{len(self.endpoints)} endpoints, {self.state}"
        if self.age is not None and self.state == "stale":
            said += f" for {self.age:.1f} s"
        if self.held:
            said += f", {len(self.held)} of them vanished from the registry"
        if self.skipped:
            said += f", {self.skipped} unreadable records skipped"
        return f"{said} ({self.reason})" if self.reason else said

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; `age` and the time left in `held` (None: no limit) in seconds."""
        now = time.monotonic()
        return {
            "version": self.version,
            "state": self.state,
            "reason": self.reason,
            "age": self.age,
            "skipped": self.skipped,
            "held": {
                address: None if math.isinf(until) else max(0.0, until - now)
                for address, until in self.held.items()
            },
            "endpoints": [endpoint.as_dict() for endpoint in self.endpoints],
        }
