"""`Budget`: how many retries and hedges there may be beside the requests, so that failures cause no storm."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from lbclient.options import above_zero, at_least, finite

__all__ = ["Budget", "Ledger"]

log = logging.getLogger(__name__)

# The window is cut into so many pieces.
_SLOTS = 10
# 0.29 * 100 is a little less than 29.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Retries and hedges together within the last `window` seconds (Finagle's and Linkerd's retry budget).

    It is full at the start: `per_second * window` of them may be made at once. What costs nothing is a retry after
    a node left before anything was sent to it, and one after a failed connection while there is a usable node to
    which the last connection did not fail: neither has reached a server.

    Attributes:
        share: of the requests of these seconds, 0 or more; 0.2 is one in five (Finagle, Linkerd: 0.2).
        per_second: so many more in each second, so that a client with few requests may retry at all (Finagle,
            Linkerd: 10).
        window: seconds (Finagle, Linkerd: 10 s).
    """

    share: float = 0.2
    per_second: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        for option in ("share", "per_second"):
            at_least(option, getattr(self, option), 0)
        above_zero("window", self.window)
        for option in ("share", "per_second", "window"):
            finite(option, getattr(self, option))


class Ledger:
    """The requests and the retries of one service within the budget's window; moments must not go backwards.

    At each moment at which one is allowed, the retries and hedges of the last `window` seconds, this one included,
    are at most `share` of the requests of the same seconds and `per_second * window` more. Time is cut into slots;
    requests of a slot that is partly too old do not count any more, retries of such a slot still do.

    Args:
        budget: the limit.
        name: the service's, for the log.

    Attributes:
        withdrawn: retries and hedges that the budget was charged with, ever.
        refused: retries and hedges that the budget did not allow, ever.
        retries: attempts after the first one of a request, ever, whether they cost something or not; hedges are
            none.
    """

    __slots__ = (
        "_closed",
        "_fresh",
        "_name",
        "_quiet_until",
        "_reserve",
        "_share",
        "_slot",
        "_spent",
        "_total",
        "_turn_at",
        "_width",
        "refused",
        "retries",
        "withdrawn",
    )

    def __init__(self, budget: Budget, name: str = "") -> None:
        self._name = name
        self._quiet_until = -math.inf
        self._share = budget.share
        self._reserve = budget.per_second * budget.window
        self._width = budget.window / _SLOTS
        # The requests of the slots that are over, the oldest last; those of this slot; all of the past.
        self._closed = [0] * (_SLOTS - 1)
        self._fresh = 0
        self._total = 0
        # The retries of this slot and of the ten before it: the oldest of them may still be within the window.
        self._spent = [0] * (_SLOTS + 1)
        self._slot = 0
        self._turn_at = 0.0
        self.withdrawn = 0
        self.refused = 0
        self.retries = 0

    def deposit(self, now: float) -> None:
        """There is a request."""
        if now >= self._turn_at:
            self._turn(now)
        self._fresh += 1

    def withdraw(self, now: float) -> bool:
        """Whether there may be a retry or a hedge now; if so it counts."""
        if now >= self._turn_at:
            self._turn(now)
        requests = sum(self._closed) + self._fresh
        if sum(self._spent) + 1 > self._share * requests + self._reserve + _ROUNDING:
            self.refused += 1
            if now >= self._quiet_until:
                # Once for each window: in an outage it is used up all the time.
                self._quiet_until = now + self._width * _SLOTS
                log.warning("%s: the retry budget is used up: %d retries and hedges", self._name, sum(self._spent))
            return False
        self._spent[0] += 1
        self.withdrawn += 1
        return True

    def refund(self) -> None:
        """What was allowed just now, at the same moment, is not made after all."""
        self._spent[0] -= 1
        self.withdrawn -= 1

    def _turn(self, now: float) -> None:
        """Begin the slot that this moment is in."""
        slot = int(now / self._width)
        # Of a long silence only as much matters as there are slots.
        for _ in range(min(slot - self._slot, _SLOTS + 1)):
            self._closed = [self._fresh, *self._closed[:-1]]
            self._spent = [0, *self._spent[:-1]]
            self._total += self._fresh
            self._fresh = 0
        self._slot = slot
        self._turn_at = (slot + 1) * self._width

    def as_dict(self) -> dict[str, int]:
        """Counts since the start, as plain data."""
        return {
            "requests": self._total + self._fresh,
            "retries": self.retries,
            "withdrawn": self.withdrawn,
            "refused": self.refused,
        }
