"""`WeightedRoundRobin` beside the schedulers of gRPC and Envoy, written down here from their formulas."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from heapq import heapify, heapreplace

import pytest
from pick_rig import counts, nodes

from lbclient import WeightedRoundRobin

CASES = [(5, 1, 1), (1, 2, 3, 4), (1, 3, 9, 27), (7,) * 5, tuple(range(1, 41)), (1, 100) * 15]


def stride(weights: tuple[int, ...], count: int) -> list[int]:
    """The static stride scheduler of gRPC (`weightedroundrobin/scheduler.go`).

    Weights are scaled so that the largest is 65535. Step s looks at node i = s mod n in generation g = s div n,
    and passes it over if (w * g + i * 32767) mod 65535 < 65535 - w.
    """
    largest = 65535
    scaled = [round(weight * largest / max(weights)) for weight in weights]
    found: Counter[int] = Counter()
    step = 0
    while found.total() < count:
        generation, place = divmod(step, len(weights))
        weight = scaled[place]
        if (weight * generation + place * (largest // 2)) % largest >= largest - weight:
            found[place] += 1
        step += 1
    return [found[place] for place in range(len(weights))]


def earliest_deadline_first(weights: tuple[int, ...], count: int) -> list[int]:
    """The `EdfScheduler` of Envoy: first deadlines at 1/w, the next 1/w later, ties in the order of insertion."""
    heap = [(Fraction(1, weight), place, place) for place, weight in enumerate(weights)]
    heapify(heap)
    found: Counter[int] = Counter()
    for inserted in range(len(weights), len(weights) + count):
        deadline, _, place = heap[0]
        found[place] += 1
        heapreplace(heap, (deadline + Fraction(1, weights[place]), inserted, place))
    return [found[place] for place in range(len(weights))]


@pytest.mark.parametrize("weights", CASES)
@pytest.mark.parametrize("periods", [1, 7])
def test_over_whole_periods_the_shares_are_those_of_the_deadline_scheduler(
    weights: tuple[int, ...], periods: int
) -> None:
    count = sum(weights) * periods
    assert counts(WeightedRoundRobin(random.Random(1)), nodes(*weights), count) == earliest_deadline_first(
        weights, count
    )


@pytest.mark.parametrize("weights", CASES)
def test_over_a_long_run_the_shares_are_those_of_the_stride_scheduler(weights: tuple[int, ...]) -> None:
    """Within one pick in a period: the stride scheduler's weights are rounded, and its start is not exact."""
    periods = 20
    count = sum(weights) * periods
    found = counts(WeightedRoundRobin(random.Random(1)), nodes(*weights), count)
    assert found == pytest.approx(stride(weights, count), abs=1)


@pytest.mark.parametrize("weights", CASES)
def test_at_any_moment_no_node_is_two_picks_from_its_share(weights: tuple[int, ...]) -> None:
    """Deadlines are a turn apart, and the start adds less than one: nginx's order is as even as that."""
    among = nodes(*weights)
    policy = WeightedRoundRobin(random.Random(3))
    total = sum(weights)
    order = [0] * len(weights)
    for count in range(1, total + 1):
        for place, more in enumerate(counts(policy, among, 1)):
            order[place] += more
        for have, weight in zip(order, weights, strict=True):
            assert abs(have - Fraction(count * weight, total)) < 2
