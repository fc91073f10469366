"""From a `Record` to a `Result`: what is told about one policy in one scenario."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulation.engine import Ending, Record
from simulation.plan import Phase, Plan, Size

__all__ = ["Band", "Result", "Row", "bands_of", "quantile", "recovered_after", "rows_of"]

# Points of a latency curve per tenth of the requests that are left.
_POINTS = 24
# Seconds over which the share of the recovering servers is taken.
_WINDOW = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table: one policy in one phase.

    Attributes:
        requests: those that were sent in the phase.
        p50, p99, p999: latencies in seconds; expired requests count with their deadline, failed ones not at all.
        errors: share of the requests that failed or expired.
        expired: share of those that expired.
        shares: share of the requests that each group of servers got.
        fair: what it would have been if all servers had the same.
        least: requests of the server in any group that got the fewest, in shares of the mean.
        imbalance: the load of the busiest server over that of the mean, both over the whole phase.
        peak: the highest load that was seen at a server.
        connections: pairs of client and server in the whole run.
        tail: points (latency, share of the requests that took longer).
    """

    phase: str
    requests: int
    p50: float
    p99: float
    p999: float
    errors: float
    expired: float
    shares: dict[str, float]
    fair: dict[str, float]
    least: dict[str, float]
    imbalance: float
    peak: int
    connections: int
    tail: list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """How the load was spread over the servers at one moment."""

    at: float
    low: float
    median: float
    high: float
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One policy in one scenario.

    Attributes:
        recovered_after: seconds until the servers that were slow got half of their fair share again; infinity for
            never, None where none were slow.
        excess: how many requests a server had above the bound of the policy at most; None without a bound.
    """

    scenario: str
    size: Size
    policy: str
    rows: list[Row]
    bands: list[Band]
    recovered_after: float | None
    excess: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "size": str(self.size)}


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the others is below."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def rows_of(plan: Plan, record: Record) -> list[Row]:
    """A row for each phase."""
    return [_row(phase, plan, record) for phase in plan.phases]


def bands_of(record: Record) -> list[Band]:
    """How the load was spread as time went by."""
    return [_band(at, loads) for at, loads in record.loads]


def _row(phase: Phase, plan: Plan, record: Record) -> Row:
    first, last = bisect(record.starts, phase.begin), bisect(record.starts, phase.end)
    endings = record.endings[first:last]
    requests = max(last - first, 1)
    counts = [0] * len(plan.servers)
    for number in record.chosen[first:last]:
        counts[number] += 1
    told = zip(record.latencies[first:last], endings, strict=True)
    ordered = sorted(latency for latency, ending in told if ending != Ending.FAILED) or [0.0]
    occupied = _occupied(phase, plan, record)
    share = {name: sum(counts[n] for n in group) / requests for name, group in plan.groups.items()}
    return Row(
        phase=phase.label,
        requests=last - first,
        p50=quantile(ordered, 0.5),
        p99=quantile(ordered, 0.99),
        p999=quantile(ordered, 0.999),
        errors=(endings.count(Ending.FAILED) + endings.count(Ending.EXPIRED)) / requests,
        expired=endings.count(Ending.EXPIRED) / requests,
        shares=share,
        fair={name: len(group) / len(counts) for name, group in plan.groups.items()},
        least={
            name: min(counts[n] for n in group) * len(counts) / requests for name, group in plan.groups.items()
        },
        imbalance=max(occupied) * len(occupied) / (sum(occupied) or 1.0),
        peak=max(max(loads) for at, loads in record.loads if phase.begin <= at <= phase.end),
        connections=record.connections,
        tail=_tail(ordered),
    )


def _occupied(phase: Phase, plan: Plan, record: Record) -> list[float]:
    """The integral of the load of each server over the phase, in request seconds."""
    occupied = [0.0] * len(plan.servers)
    begin, end = phase.begin, phase.end
    # Requests that were sent earlier may still be under way.
    first = bisect(record.starts, begin - plan.deadline)
    last = bisect(record.starts, end)
    for number in range(first, last):
        start = record.starts[number]
        stop = start + record.latencies[number]
        if stop > begin:
            occupied[record.chosen[number]] += min(stop, end) - max(start, begin)
    return occupied


def _tail(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """Points of the curve that are evenly spread on a logarithmic axis of the shares, down to ten requests."""
    points = []
    left = 1.0
    while left * len(ordered) >= 10:
        points.append((quantile(ordered, 1.0 - left), left))
        left *= 0.1 ** (1.0 / _POINTS)
    return points


def _band(at: float, loads: Sequence[int]) -> Band:
    ordered = sorted(loads)
    return Band(
        at=at,
        low=quantile(ordered, 0.05),
        median=quantile(ordered, 0.5),
        high=quantile(ordered, 0.95),
        most=ordered[-1],
    )


def recovered_after(plan: Plan, record: Record) -> float | None:
    """See `Result`."""
    if plan.recovery_at is None:
        return None
    slow = plan.groups["slow"]
    fair = len(slow) / len(plan.servers)
    begin = plan.recovery_at
    while begin + _WINDOW <= plan.seconds:
        first, last = bisect(record.starts, begin), bisect(record.starts, begin + _WINDOW)
        if sum(number in slow for number in record.chosen[first:last]) >= 0.5 * fair * (last - first):
            return begin - plan.recovery_at
        begin += _WINDOW / 4
    return float("inf")
