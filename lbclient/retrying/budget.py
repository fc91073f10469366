"""`Budget`: how many retries and hedges there may be beside the requests, so that failures cause no storm."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Budget", "Ledger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Retries and hedges together within the last `window` seconds (Finagle's and Linkerd's retry budget).

    Attributes:
        share: of the requests of these seconds, 0 or more (Finagle, Linkerd: 0.2).
        per_second: so many more in each second, so that a client with few requests may retry at all (Finagle,
            Linkerd: 10).
        window: seconds (Finagle, Linkerd: 10 s).
    """

    share: float = 0.2
    per_second: float = 10.0
    window: float = 10.0


class Ledger:
    """The requests and the retries of one service within the budget's window.

    Args:
        budget: the limit.

    Attributes:
        refused: retries and hedges that the budget did not allow, ever.
    """

    __slots__ = ("_budget", "_requests", "_withdrawn", "refused")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._requests = 0
        self._withdrawn = 0
        self.refused = 0

    def deposit(self, now: float) -> None:  # noqa: ARG002
        """There is a request."""
        self._requests += 1

    def withdraw(self, now: float) -> bool:  # noqa: ARG002
        """Whether there may be a retry or a hedge now; if so it counts."""
        budget = self._budget
        if self._withdrawn + 1 > budget.share * self._requests + budget.per_second * budget.window:
            self.refused += 1
            return False
        self._withdrawn += 1
        return True
