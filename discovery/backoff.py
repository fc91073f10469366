"""How long to wait before trying again to reach a registry."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential delays with jitter, as in gRPC's connection backoff, with a shorter scale.

    gRPC starts at 1 s and ends at 120 s (https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md). A
    registry is not a crowd of servers: it must be found again within about 2 s of its return, so the delays
    start at 0.1 s and end at 2 s, and the jitter spreads the clients of one registry over that time. The first
    retry comes within 0.1 s: a connection that broke for once should be back at once, but not all of them at the
    same moment.

    Attributes:
        base: seconds before the second retry, and the longest time before the first one.
        factor: growth per retry (gRPC: 1.6).
        jitter: share by which a delay is moved up or down at random (gRPC: 0.2).
        cap: the longest delay in seconds, before jitter.
    """

    base: float = 0.1
    factor: float = 1.6
    jitter: float = 0.2
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not (self.base > 0 and self.cap >= self.base and self.factor >= 1 and 0 <= self.jitter < 1):
            raise ValueError(f"need base > 0, cap >= base, factor >= 1 and 0 <= jitter < 1, not {self}")

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after the given number of failures in a row, 1 or more."""
        if failures <= 1:
            return rng.uniform(0, self.base)
        # Beyond 64 retries the cap holds anyway; the power would overflow some day.
        longest = min(self.cap, self.base * self.factor ** min(failures - 2, 64))
        return longest * rng.uniform(1 - self.jitter, 1 + self.jitter)
