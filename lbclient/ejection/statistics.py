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

__all__ = ["Bar", "Rate", "outliers", "success_rate_bar"]


class Rate(NamedTuple):
    """What came of the attempts at a node in an interval."""

    node: Node
    seen: int
    failed: int


class Bar(NamedTuple):
    """Nodes with a success rate below it are outliers; and the mean and the population deviation it comes from."""

    rate: float
    mean: float
    deviation: float


def success_rate_bar(rates: Sequence[float], deviations: float, gap: float) -> Bar:
    """The bar for these success rates, 0 to 1: so many deviations below their mean, and at least so far."""
    mean = fsum(rates) / len(rates)
    deviation = sqrt(fsum((rate - mean) ** 2 for rate in rates) / len(rates))
    return Bar(mean - max(deviations * deviation, gap), mean, deviation)


def outliers(rates: Iterable[Rate], options: Ejection) -> list[Finding]:
    """Who should be out, the worst first."""
    rates = sorted(rates, key=lambda rate: rate.failed / rate.seen, reverse=True)
    found = {finding.node: finding for finding in _too_often(rates, options)}
    # Where both rules find a node the relative one says more.
    found |= {finding.node: finding for finding in _more_often_than_others(rates, options)}
    return [found[rate.node] for rate in rates if rate.node in found]


def _more_often_than_others(rates: list[Rate], options: Ejection) -> Iterable[Finding]:
    rates = [rate for rate in rates if rate.seen >= options.success_rate_requests]
    if options.success_rate_deviations is None or len(rates) < options.min_nodes:
        return
    bar = success_rate_bar(
        [1 - rate.failed / rate.seen for rate in rates],
        options.success_rate_deviations,
        options.success_rate_gap,
    )
    for node, seen, failed in rates:
        if 1 - failed / seen < bar.rate:
            because = (
                f"{1 - failed / seen:.1%} of {seen} requests succeeded, below {bar.rate:.1%} "
                f"(mean {bar.mean:.1%}, deviation {bar.deviation:.1%} of {len(rates)} nodes)"
            )
            yield Finding(node, Reason.SUCCESS_RATE, because)


def _too_often(rates: list[Rate], options: Ejection) -> Iterable[Finding]:
    rates = [rate for rate in rates if rate.seen >= options.failure_rate_requests]
    if options.failure_rate is None or len(rates) < options.min_nodes:
        return
    for node, seen, failed in rates:
        if failed / seen >= options.failure_rate:
            because = f"{failed / seen:.1%} of {seen} requests failed, {options.failure_rate:.1%} or more"
            yield Finding(node, Reason.FAILURE_RATE, because)
