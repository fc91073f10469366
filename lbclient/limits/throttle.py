"""`Throttle`: requests are refused here while the servers refuse most of them anyway."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Throttle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Adaptive throttling (Site Reliability Engineering, chapter 21): refuse locally what would be refused anyway.

    The probability is max(0, (requests - k * accepts) / (requests + 1)) over the last `window` seconds; local
    refusals count as requests.

    Attributes:
        k: how many times the accepted requests may be sent; 1 or more.
        window: seconds.
    """

    k: float = 2.0
    window: float = 120.0
