"""`Tally`: counts what became of many requests."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbclient.cli.hops import Hop, is_retried
from lbclient.outcome import Outcome

__all__ = ["Counts", "Tally", "counted", "percentile"]

_ERRORS_KEPT = 10
_HARMLESS = frozenset({Outcome.SUCCESS, Outcome.LEFT, Outcome.OURS})


@dataclass(slots=True)
class Counts:
    """Attempts at one endpoint, how many of them showed a fault of it, and its priority at the last one."""

    requests: int = 0
    failed: int = 0
    priority: int = 0


@dataclass(slots=True)
class Tally:
    """What became of the requests so far.

    Attributes:
        requests: requests of the caller, whatever number of attempts each took.
        failed: those that ended with an error or a status of 400 and more.
        retried: those of which an attempt was repeated.
        endpoints: the attempts, by address.
        milliseconds: of each request that did not fail, until the end of its body.
        statuses: how often each status came.
        errors: the first ten different ones.
    """

    requests: int = 0
    failed: int = 0
    retried: int = 0
    endpoints: dict[str, Counts] = field(default_factory=dict)
    milliseconds: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def record(self, hops: Sequence[Hop], milliseconds: float, status: int | None, error: str = "") -> None:
        """Count one request; `error` is empty unless it failed."""
        self.requests += 1
        self.retried += any(is_retried(hop) for hop in hops)
        for attempt in (attempt for hop in hops for attempt in hop):
            counts = self.endpoints.setdefault(attempt.endpoint.address, Counts())
            counts.requests += 1
            counts.priority = attempt.endpoint.priority
            counts.failed += attempt.outcome not in _HARMLESS
        if status is not None:
            self.statuses[status] += 1
        if not error:
            self.milliseconds.append(milliseconds)
            return
        self.failed += 1
        if error not in self.errors and len(self.errors) < _ERRORS_KEPT:
            self.errors.append(error)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "retried": self.retried,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "endpoints": {
                address: {"requests": counts.requests, "failed": counts.failed}
                for address, counts in sorted(self.endpoints.items())
            },
            "p50_ms": percentile(self.milliseconds, 50),
            "p99_ms": percentile(self.milliseconds, 99),
            "errors": self.errors,
        }


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The smallest value that so many per cent of all do not exceed, to three decimals; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural where that is right."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
