"""The statistics, by hand and by the vectors of Envoy and gRFC A50."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ejection_rig import World, endpoints
from hypothesis import given
from hypothesis import strategies as st

from lbclient import Ejection
from lbclient.ejection.statistics import outliers, success_rate_bar
from lbclient.node import Node
from lbclient.outcome import Outcome


def found(seen: Sequence[int], failed: Sequence[int], **options: object) -> dict[int, str]:
    """The places of the outliers in the order in which they go, and the rules that found them."""
    nodes = [Node(endpoint) for endpoint in endpoints(*range(len(seen)))]
    counts = list(zip(nodes, seen, failed, strict=True))
    findings = outliers(counts, Ejection(**options))  # type: ignore[arg-type]
    return {nodes.index(finding.node): finding.reason.value for finding in findings}


def test_the_bar_is_envoys() -> None:
    """Envoy's own test, `OutlierUtility.SRThreshold`: rates of 50, 100, 100, 100 and 100 %, factor 1.9.

    The mean is 450 / 5 = 90; the population variance (40² + 4 x 10²) / 5 = 400, the deviation 20, and the bar
    90 - 1.9 x 20 = 52. With the deviation of a sample, 22.4, it would be 47.5.
    """
    bar = success_rate_bar([0.5, 1, 1, 1, 1], 1.9, 0)
    assert bar == pytest.approx((0.52, 0.9, 0.2))


def test_the_gap_lowers_the_bar_where_nodes_differ_little() -> None:
    """Mean 0.998, deviation 0.004: 0.998 - 1.9 x 0.004 = 0.9904 would find the one with 0.99."""
    assert success_rate_bar([0.99, 1, 1, 1, 1], 1.9, 0).rate == pytest.approx(0.9904)
    assert success_rate_bar([0.99, 1, 1, 1, 1], 1.9, 0.05).rate == pytest.approx(0.948)


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        # Mean 0.9, deviation 0.2, bar 0.52: the first is below.
        ([50, 0, 0, 0, 0], [0]),
        # The one of 99 % that a rule without a gap takes out.
        ([1, 0, 0, 0, 0], []),
        # 1 - x, and four times 1: mean 1 - x/5. For x = 0.07 that is 0.986, the bar 0.936, above 0.93.
        ([7, 0, 0, 0, 0], [0]),
        # For x = 0.06: mean 0.988, bar 0.938, below 0.94.
        ([6, 0, 0, 0, 0], []),
        # Two of five: mean 0.8, deviation sqrt((2 x 0.3² + 3 x 0.2²) / 5) = 0.245, bar 0.335, below 0.5.
        ([50, 50, 0, 0, 0], []),
        # Two of ten: mean 0.9, deviation 0.2, bar 0.52; the worse one first.
        ([50, 52, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0]),
        # All alike, whatever they do.
        ([90, 90, 90, 90, 90], []),
        ([0, 0, 0, 0, 0], []),
        # Four cannot be compared.
        ([100, 0, 0, 0], []),
    ],
)
def test_who_fails_more_often_than_the_others(failed: list[int], expected: list[int]) -> None:
    """Nodes of 100 requests each; all worked out by hand."""
    assert list(found([100] * len(failed), failed)) == expected


def test_four_nodes_never_have_an_outlier_by_the_deviation_alone() -> None:
    """One of n that differs by d from the others is (n-1)/n d below the mean, the deviation is sqrt(n-1)/n d.

    For n = 4 that is sqrt(3) = 1.73 deviations, for n = 5 it is 2: this is why five nodes are the least.
    """
    assert found([100] * 4, [100, 0, 0, 0], min_nodes=4) == {}
    assert list(found([100] * 5, [100, 0, 0, 0, 0])) == [0]


def test_nodes_with_few_requests_have_no_rate() -> None:
    assert found([99, 100, 100, 100, 100], [50, 0, 0, 0, 0]) == {}, "only four have"
    assert found([99, 100, 100, 100, 100, 100], [50, 0, 0, 0, 0, 0]) == {}, "it has none itself"
    assert list(found([100] * 5 + [1], [50, 0, 0, 0, 0, 1])) == [0]


def test_the_failure_rate_is_reached_not_passed() -> None:
    """Envoy says greater or equal, gRFC A50 greater; with the former 100 % means something."""
    many = [50] * 5
    assert found(many, [42, 50, 50, 50, 50], failure_rate=0.85) == dict.fromkeys(range(1, 5), "failure_rate")
    assert list(found([100] * 5, [85, 84, 0, 0, 0], failure_rate=0.85, success_rate_deviations=None)) == [0]
    assert list(found(many, [50, 49, 0, 0, 0], failure_rate=1.0, success_rate_deviations=None)) == [0]
    assert found(many, [50, 50, 0, 0, 0]) == {}, "it is off"
    assert found([49, 50, 50, 50, 50], [49, 0, 0, 0, 0], failure_rate=0.5) == {}, "49 requests are too few"


def test_where_both_rules_find_a_node_it_goes_once() -> None:
    assert found([100] * 5, [90, 0, 0, 0, 0], failure_rate=0.85) == {0: "success_rate"}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_nobody_is_found_who_is_not_far_below_the_mean(failed: list[int]) -> None:
    mean = 1 - sum(failed) / len(failed) / 100
    for place in found([100] * len(failed), failed):
        assert 1 - failed[place] / 100 < mean - 0.05 + 1e-9


# In a balancer


def traffic(world: World, requests: int, failing: dict[int, int]) -> None:
    """So many requests to each node, of which every n-th fails at some."""
    for number in range(requests):
        for node in world.balancer.nodes.values():
            name = int(node.endpoint.host[1:])
            bad = name in failing and number % failing[name] == 0
            world.see(name, Outcome.ERROR if bad else Outcome.SUCCESS)


def test_the_statistics_are_taken_once_per_interval() -> None:
    world = World(*range(10))
    traffic(world, 100, {3: 3})
    assert world.out() == set()
    world.now += 9.9
    world.see(0, Outcome.SUCCESS)
    assert world.out() == set()
    world.now += 0.1
    world.see(0, Outcome.SUCCESS)
    assert world.out() == {3}
    assert world.counts["ejections"]["success_rate"] == 1
    because = world.node(3).ejected_because
    # 34 of 100 failed: mean 0.966, deviation 0.034 x 3 = 0.102, bar 0.966 - 0.1938 = 0.7722.
    assert because == ("66.0% of 100 requests succeeded, below 77.2% (mean 96.6%, deviation 10.2% of 10 nodes)")


def test_each_interval_counts_for_itself() -> None:
    world = World(*range(10))
    for _ in range(3):
        traffic(world, 60, {3: 3})
        world.now += 10
        world.see(0, Outcome.SUCCESS)
    assert world.out() == set(), "60 requests in an interval are too few, 180 in three do not count"


def test_counts_from_before_a_pause_are_dropped() -> None:
    world = World(*range(10))
    traffic(world, 100, {3: 3})
    world.now += 20
    world.see(0, Outcome.SUCCESS)
    assert world.out() == set()
    traffic(world, 100, {3: 3})
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == {3}


def test_of_many_outliers_the_worst_go_first() -> None:
    world = World(*range(20))
    traffic(world, 100, {1: 4, 2: 2, 3: 3})
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == {2, 3}, "two of twenty are a tenth"


def test_a_node_that_is_out_or_left_is_no_part_of_the_statistics() -> None:
    world = World(*range(10))
    traffic(world, 100, {3: 3})
    world.update(*range(5), *range(6, 10))
    gone = world.balancer.nodes
    world.see(3, *[Outcome.ERROR] * 5)
    assert world.out() == {3}
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == {3}
    assert world.counts["ejections"]["success_rate"] == 0
    assert "s5:80" not in gone


def test_what_a_server_refuses_because_of_its_load_is_counted_nowhere() -> None:
    world = World(*range(10))
    for number in range(10):
        world.see(number, *[Outcome.SUCCESS] * 100)
    world.see(3, *[Outcome.OVERLOAD] * 500)
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == set()


def test_what_the_caller_gave_up_is_counted_nowhere() -> None:
    world = World(*range(10))
    for number in range(10):
        world.see(number, *[Outcome.SUCCESS] * 90)
        world.see(number, *[Outcome.OURS, Outcome.LEFT] * 50)
    world.see(3, *[Outcome.ERROR, Outcome.SUCCESS] * 4)
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == set(), "98 are no 100"


def test_a_half_full_accept_queue_is_found_by_its_failed_connections() -> None:
    """Every second connection fails, so that there are never three in a row."""
    world = World(*range(10))
    for number in range(10):
        world.see(number, *([Outcome.CONNECT, Outcome.SUCCESS] if number == 3 else [Outcome.SUCCESS] * 2) * 50)
    world.now += 10
    world.see(0, Outcome.SUCCESS)
    assert world.out() == {3}
