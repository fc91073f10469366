"""`Retries`: whether one request has another attempt, and when. It never awaits and needs no socket."""

from __future__ import annotations

import random
from typing import Any, Protocol

from lbclient.outcome import Outcome
from lbclient.retrying.budget import Ledger
from lbclient.retrying.retry import Retry

__all__ = ["Choice", "Retries"]


class Choice(Protocol):
    """What is asked of the balancer."""

    def exhausted(self, tried: tuple[Any, ...]) -> bool:
        """Whether every node was tried that may be."""
        ...

    def has_fresh(self, tried: tuple[Any, ...]) -> bool:
        """Whether there is a usable node that was not tried and to which the last connection did not fail."""
        ...


class Retries:
    """The further attempts of one hop of a request: how many there may be, and after which pause.

    Args:
        retry: the rules.
        ledger: the budget that they are charged to.
        choice: the balancer.
        rng: where the pauses are drawn from.
        deadline: the moment at which the whole request ends; None if it never does.

    Attributes:
        untrusted: whether a server could not say who it is; no two others may be asked at the same time then.
        refusal: why there is no further attempt although the rules had one left, in words; empty if for another
            reason, or if there is one.
    """

    __slots__ = ("_choice", "_deadline", "_ledger", "_made", "_retry", "_rng", "refusal", "untrusted")

    def __init__(
        self, retry: Retry, ledger: Ledger, choice: Choice, rng: random.Random, deadline: float | None
    ) -> None:
        self._retry = retry
        self._ledger = ledger
        self._choice = choice
        self._rng = rng
        self._deadline = deadline
        # Attempts at nodes that left do not count: nothing was wrong with the request or the node.
        self._made = 0
        self.untrusted = False
        self.refusal = ""

    def count(self) -> None:
        """There was an attempt beside the one that `after` is asked about: a hedge."""
        self._made += 1

    def after_untrusted(self, tried: tuple[Any, ...]) -> bool:
        """Whether a server that could not say who it is is a reason to ask another one: once, if there is one."""
        before, self.untrusted = self.untrusted, True
        return not before and not self._choice.exhausted(tried)

    def after(
        self,
        outcome: Outcome,
        tried: tuple[Any, ...],
        now: float,
        *,
        sent: bool,
        asked: float = 0.0,
        everywhere: bool = False,
    ) -> float | None:
        """Seconds until the next attempt; None if there is to be none. To be asked once after each attempt.

        Args:
            outcome: of the attempt that ended, which may be repeated.
            tried: the nodes that the attempts so far went to.
            now: `time.monotonic()` seconds.
            sent: whether it began to be written.
            asked: the seconds of its `Retry-After`.
            everywhere: whether that holds for the other nodes as well.
        """
        if outcome is Outcome.LEFT:
            return self._in_time(0.0, now)
        self._made += 1
        if self._made >= self._retry.attempts:
            return None
        # No other server has seen it, and one that can be reached is likely to be there: that adds no load.
        free = not sent and outcome is Outcome.CONNECT and self._choice.has_fresh(tried)
        # Only a place in the connector was waited for.
        free = free or (not sent and outcome is Outcome.OURS)
        pause = 0.0 if free else self._retry.pause(self._made, self._rng)
        if asked and (everywhere or self._choice.exhausted(tried)):
            if asked > self._retry.retry_after:
                self.refusal = f"Retry-After asks for more than {self._retry.retry_after:g} s"
                return None
            # All whom it was said to would come at the same moment.
            pause += asked
        if self._in_time(pause, now) is None:
            return None
        if not free and not self._ledger.withdraw(now):
            self.refusal = "the retry budget is used up"
            return None
        return pause

    def _in_time(self, pause: float, now: float) -> float | None:
        if self._deadline is not None and now + pause >= self._deadline:
            self.refusal = "the deadline is too near"
            return None
        return pause
