"""`Tally`: what is counted about the attempts at one node."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from lbclient.outcome import Outcome

__all__ = ["Tally"]


class Observed(Protocol):
    """An attempt, as far as it matters here."""

    observed: Outcome | None


class Tally:
    """The failures in a row at one node, and its requests in the current interval.

    A success costs one addition; whether it ends a row is looked at when the next failure comes. That also makes
    it possible to take a success back, when the body breaks off whose head was one.

    Attributes:
        successes: heads of good answers so far, without those whose bodies broke off.
        in_row: failures in a row, as of the last one; gateway_in_row: those of them that are gateway failures.
        seen, failed: attempts in this interval, and how many of them failed.
        listed: whether the node is among those of this interval.
        quiet_until: `time.monotonic()` seconds until which it is not said again that it would have been ejected.
    """

    __slots__ = (
        "_settled_then",
        "_successes_then",
        "failed",
        "gateway_in_row",
        "in_row",
        "listed",
        "quiet_until",
        "seen",
        "successes",
    )

    def __init__(self) -> None:
        self.listed = False
        self.quiet_until = -math.inf
        self.forget()

    def forget(self) -> None:
        """Begin anew: the node is back."""
        self.successes = self._successes_then = self._settled_then = 0
        self.in_row = self.gateway_in_row = 0
        self.seen = self.failed = 0

    @property
    def row(self) -> int:
        """Failures in a row up to now."""
        return self.in_row if self.successes == self._successes_then else 0

    def fail(self, under_way: Iterable[Observed], *, gateway: bool) -> None:
        """Count an attempt that failed before there was a good head of an answer."""
        if self.successes != self._successes_then:
            self._end_row(self._settled(under_way))
        self._count(gateway=gateway)

    def fail_late(self, under_way: Iterable[Observed]) -> None:
        """Count an attempt whose body broke off after its head was counted as a success.

        Where many are under way at once, heads of later answers come before bodies break. So such a failure goes
        on with the row unless another answer was good to its end in between.
        """
        self.successes -= 1
        settled = self._settled(under_way)
        if settled > self._settled_then:
            self._end_row(settled)
        self._successes_then = self.successes
        self._count(gateway=True)

    def _count(self, *, gateway: bool) -> None:
        self.in_row += 1
        self.gateway_in_row = self.gateway_in_row + 1 if gateway else 0

    def _end_row(self, settled: int) -> None:
        self.in_row = self.gateway_in_row = 0
        self._successes_then = self.successes
        self._settled_then = settled

    def _settled(self, under_way: Iterable[Observed]) -> int:
        """How many of the successes are over: no body of theirs can break off any more."""
        # That of the attempt itself was taken back before, and counts as broken from now on.
        return self.successes - sum(attempt.observed is Outcome.SUCCESS for attempt in under_way)
