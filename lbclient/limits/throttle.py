"""`Throttle`: requests are refused here while the servers refuse most of them anyway."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lbclient.options import above_zero, at_least, finite
from lbclient.outcome import Outcome

__all__ = ["Meter", "Throttle"]

log = logging.getLogger(__name__)

# The window moves on in steps of this part of it.
_STEPS = 60
# However much was refused, one request goes through after so many seconds: after a long outage the formula alone
# would let none through for a whole window (go-zero's breaker: 1 s).
_AT_LEAST_EVERY = 1.0
_SUCCESS = Outcome.SUCCESS
# Column "throttle" of the table in `Outcome`.
_ACCEPTED = frozenset({Outcome.SUCCESS, Outcome.ERROR, Outcome.BROKEN})
_IGNORED = frozenset({Outcome.OURS, Outcome.LEFT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Adaptive throttling (Site Reliability Engineering, chapter 21): refuse locally what would be refused anyway.

    A request is refused with probability max(0, (requests - k * accepts) / (requests + 1)) over the last `window`
    seconds, and never if none was let through for a second. Requests are attempts whose outcome is known, and
    those refused here; `Outcome` says which were accepted, and which count as neither. What an answer's head shows
    holds, whatever becomes of its body.

    Attributes:
        k: how many times the accepted requests may be sent; 1 or more (SRE book: 2).
        window: seconds (go-zero: 10 s; SRE book: 2 min). After an outage it takes about three windows until
            nothing is refused any more.

    Raises:
        ValueError: at construction, for a wrong value.
    """

    k: float = 2.0
    window: float = 10.0

    def __post_init__(self) -> None:
        at_least("k", self.k, 1)
        finite("k", self.k)
        above_zero("window", self.window)
        finite("window", self.window)


class Meter:
    """What became of the requests of one service of late, and whether the next one is refused.

    Args:
        throttle: the options.
        random: draws a number from 0 to 1, such as `random.Random().random`.
        name: the service's, for the log: one line when refusing begins, and begins anew after a quiet window.

    Attributes:
        requests: attempts that came to their end within the window, and requests refused within it.
        accepts: those of them that a server accepted.
        refused: requests that were refused here, ever.
    """

    __slots__ = (
        "_accepts_at",
        "_accepts_before",
        "_k",
        "_name",
        "_next_at",
        "_pace",
        "_passed_at",
        "_quiet_until",
        "_random",
        "_requests_at",
        "_requests_before",
        "_step",
        "accepts",
        "refused",
        "requests",
        "throttle",
    )

    def __init__(self, throttle: Throttle, random: Callable[[], float], name: str = "") -> None:
        self._name = name
        self._quiet_until = -math.inf
        self.throttle = throttle
        self.requests = 0
        self.accepts = 0
        self.refused = 0
        self._k = throttle.k
        self._random = random
        self._pace = _STEPS / throttle.window
        self._step = -_STEPS
        self._next_at = -math.inf
        # What was counted in each step but the current one, and the sums of those.
        self._requests_at = [0] * _STEPS
        self._accepts_at = [0] * _STEPS
        self._requests_before = 0
        self._accepts_before = 0
        self._passed_at = -math.inf

    @property
    def probability(self) -> float:
        """Of refusing the next request, as of the last one."""
        return max(0.0, (self.requests - self._k * self.accepts) / (self.requests + 1))

    def refuses(self, now: float) -> bool:
        """Whether the request that comes now is refused; it counts then."""
        if now >= self._next_at:
            self._advance(now)
        excess = self.requests - self._k * self.accepts
        if excess <= 0:
            return False
        if now - self._passed_at >= _AT_LEAST_EVERY or self._random() * (self.requests + 1) >= excess:
            self._passed_at = now
            return False
        self.requests += 1
        self.refused += 1
        if now >= self._quiet_until:
            log.warning("%s: requests are refused here, %.0f %% of them", self._name, 100 * self.probability)
        self._quiet_until = now + self.throttle.window
        return True

    def observe(self, outcome: Outcome, now: float) -> None:
        """Count an attempt that ended so."""
        if now >= self._next_at:
            self._advance(now)
        # By far the most frequent one; to look an outcome up in a set takes longer than all the rest.
        if outcome is _SUCCESS:
            self.requests += 1
            self.accepts += 1
        elif outcome not in _IGNORED:
            self.requests += 1
            self.accepts += outcome in _ACCEPTED

    def _advance(self, now: float) -> None:
        """Begin another step of the window, and forget what has left it."""
        at = self._step % _STEPS
        self._requests_at[at] += self.requests - self._requests_before
        self._accepts_at[at] += self.accepts - self._accepts_before
        step = int(now * self._pace)
        for passed in range(max(self._step + 1, step - _STEPS + 1), step + 1):
            at = passed % _STEPS
            self.requests -= self._requests_at[at]
            self.accepts -= self._accepts_at[at]
            self._requests_at[at] = self._accepts_at[at] = 0
        self._requests_before, self._accepts_before = self.requests, self.accepts
        self._step = step
        self._next_at = (step + 1) / self._pace

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "requests": self.requests,
            "accepts": self.accepts,
            "probability": self.probability,
            "refused": self.refused,
        }
