"""`Latencies`: a percentile of how long the answers of late took."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Latencies"]

# How many are remembered: with fewer the 95th percentile jumps about, with more it is slow to follow.
_KEPT = 1000
# How many come before the percentile is made anew; sorting a thousand numbers for each one would be felt.
_TURN = 100


class Latencies:
    """The last thousand latencies, and their percentile as of the last hundredth one.

    One number for each first attempt, also for those that lost to a hedge: without them only the fast ones would
    be left, the percentile would sink, and there would be ever more hedges. How long a hedge took is not taken
    in: it would count slow moments twice.

    Args:
        percentile: 0 to 1.

    Attributes:
        value: seconds, by nearest rank; None before the first hundred are known.
    """

    __slots__ = ("_due", "_kept", "_percentile", "value")

    def __init__(self, percentile: float) -> None:
        self._percentile = percentile
        self._kept: deque[float] = deque(maxlen=_KEPT)
        self._due = _TURN
        self.value: float | None = None

    def record(self, seconds: float) -> None:
        """An answer took so long."""
        self._kept.append(seconds)
        self._due -= 1
        if self._due == 0:
            self._due = _TURN
            ordered = sorted(self._kept)
            self.value = ordered[max(0, math.ceil(self._percentile * len(ordered)) - 1)]

    def record_at_least(self, seconds: float) -> None:
        """There was no answer for so long, and it is not waited for any more.

        Above the percentile it does not matter by how much; below it nothing is known.
        """
        if self.value is not None and seconds > self.value:
            self.record(seconds)
