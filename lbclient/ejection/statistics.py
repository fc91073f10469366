"""Statistics over the nodes of an interval: who fails more often than the others, or too often by itself.

https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier and gRFC A50, which has the same
formulas: https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum, sqrt
from typing import NamedTuple

from lbclient.ejection.ejection import Ejection
from lbclient.ejection.finding import Finding, Reason
from lbclient.node import Node

__all__ = ["Bar", "outliers", "success_rate_bar"]

# A node, its attempts in an interval, and how many of them failed. A plain tuple: there may be 10 000 of them.
_Counts = tuple[Node, int, int]


class Bar(NamedTuple):
    """Nodes with a success rate below it are outliers; and the mean and the population deviation it comes from."""

    rate: float
    mean: float
    deviation: float


def success_rate_bar(rates: Sequence[float], deviations: float, gap: float) -> Bar:
    """The bar for these success rates, 0 to 1: so many deviations below their mean, and at least so far."""
    mean = fsum(rates) / len(rates)
    deviation = sqrt(fsum([(rate - mean) ** 2 for rate in rates]) / len(rates))
    return Bar(mean - max(deviations * deviation, gap), mean, deviation)


def outliers(counts: Sequence[_Counts], options: Ejection) -> list[Finding]:
    """Who should be out, the worst first, given the attempts at each node and how many of them failed."""
    found: dict[Node, tuple[float, Finding]] = {}
    # Where both rules find a node the relative one says more.
    for rate, finding in (*_too_often(counts, options), *_more_often_than_others(counts, options)):
        found[finding.node] = rate, finding
    return [finding for _, finding in sorted(found.values(), key=lambda each: each[0])]


def _more_often_than_others(counts: Sequence[_Counts], options: Ejection) -> Iterable[tuple[float, Finding]]:
    if options.success_rate_deviations is None:
        return
    least = options.success_rate_requests
    rates = [(1 - failed / seen, seen, node) for node, seen, failed in counts if seen >= least]
    if len(rates) < options.min_nodes:
        return
    bar = success_rate_bar(
        [rate for rate, _, _ in rates], options.success_rate_deviations, options.success_rate_gap
    )
    for rate, seen, node in rates:
        if rate < bar.rate:
            because = (
                f"{rate:.1%} of {seen} requests succeeded, below {bar.rate:.1%} "
                f"(mean {bar.mean:.1%}, deviation {bar.deviation:.1%} of {len(rates)} nodes)"
            )
            yield rate, Finding(node, Reason.SUCCESS_RATE, because)


def _too_often(counts: Sequence[_Counts], options: Ejection) -> Iterable[tuple[float, Finding]]:
    if options.failure_rate is None:
        return
    least = options.failure_rate_requests
    rates = [(failed / seen, seen, node) for node, seen, failed in counts if seen >= least]
    if len(rates) < options.min_nodes:
        return
    for rate, seen, node in rates:
        if rate >= options.failure_rate:
            because = f"{rate:.1%} of {seen} requests failed, {options.failure_rate:.1%} or more"
            yield 1 - rate, Finding(node, Reason.FAILURE_RATE, because)
