"""`Random` and `PowerOfTwo`: the distributions that they promise."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pick_rig import copied, counts, nodes, pick_but, picks, shares

from lbclient import (
    LeastRequest,
    PowerOfTwo,
    Prequal,
    Random,
    RoundRobin,
    WeightedRoundRobin,
    in_flight,
    least_request,
    peak_ewma,
)
from lbclient.call import Call
from lbclient.policies import Load, Policy
from lbclient.policies.drawing import Draw

FACTORIES: list[Callable[[random.Random], Policy]] = [
    Random,
    lambda rng: PowerOfTwo(rng=rng),
    lambda rng: PowerOfTwo(load=in_flight, rng=rng),
]


@pytest.mark.parametrize("make", FACTORIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_equal_idle_nodes_share_evenly(make: Callable[[random.Random], Policy], size: int) -> None:
    assert shares(make(random.Random(5)), nodes(*[1] * size)) == pytest.approx([1 / size] * size, abs=0.02)


@pytest.mark.parametrize("make", FACTORIES)
def test_zero_everywhere_counts_as_equal(make: Callable[[random.Random], Policy]) -> None:
    assert shares(make(random.Random(5)), nodes(0, 0, 0)) == pytest.approx([1 / 3] * 3, abs=0.02)


@pytest.mark.parametrize("make", FACTORIES)
def test_the_same_seed_gives_the_same_picks(make: Callable[[random.Random], Policy]) -> None:
    among = nodes(1, 2, 3, 4)
    assert picks(make(random.Random(9)), among, 50) == picks(make(random.Random(9)), among, 50)


@pytest.mark.parametrize("make", FACTORIES)
def test_weight_zero_is_never_drawn_but_better_than_none(make: Callable[[random.Random], Policy]) -> None:
    among = nodes(0, 1, 2, 0)
    policy = make(random.Random(5))
    assert set(picks(policy, among, 2000)) == {1, 2}
    assert {pick_but(policy, among, 1, 2) for _ in range(50)} == {0, 3}
    among[2].weight, among[1].in_flight = 0, 9
    assert set(picks(policy, copied(among), 200)) == {1}


@pytest.mark.parametrize("make", FACTORIES)
@pytest.mark.parametrize("weights", [(1, 1, 1), (1e6, 1, 1), (1, 2, 1e300)])
def test_an_excluded_node_is_never_drawn(
    make: Callable[[random.Random], Policy], weights: tuple[float, ...]
) -> None:
    policy, among = make(random.Random(5)), nodes(*weights)
    assert {pick_but(policy, among, 0) for _ in range(200)} <= {1, 2}
    assert {pick_but(policy, among, 1, 2) for _ in range(200)} == {0}
    among[1].in_flight = among[2].in_flight = 5
    assert {pick_but(policy, among, 0) for _ in range(200)} <= {1, 2}, "though it is the least busy"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 3, 0, 6), (0.1, 0.3, 0, 0.6)),
        ((0.5, 1.7, 0.3), (0.2, 0.68, 0.12)),
        ((1e308, 1e308, 1.5e308, 0.5e308), (0.25, 0.25, 0.375, 0.125)),
        ((5e-324, 1e-323, 5e-324), (0.25, 0.5, 0.25)),
        ((1e-9, 1e308, 3e-9), (0, 1, 0)),
    ],
)
def test_random_goes_by_weight_of_any_size(weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert shares(Random(random.Random(3)), nodes(*weights)) == pytest.approx(expected, abs=0.012)


def test_random_follows_an_update() -> None:
    policy = Random(random.Random(3))
    assert shares(policy, nodes(1, 3)) == pytest.approx([0.25, 0.75], abs=0.02)
    assert shares(policy, nodes(1, 1)) == pytest.approx([0.5, 0.5], abs=0.02)


def test_sums_hold_exactly_the_weights() -> None:
    """The chance of a node is the stretch that its weight has in the running sums, over how many share it."""
    rng = random.Random(4)
    weights = [rng.choice([1e-3, 1.0, 7.0, 1e6, rng.random()]) for _ in range(500)]
    among = nodes(*weights)
    draw = Draw(among, rng)
    assert draw._bounds is not None
    chance = {}
    for members, begin, end in zip(draw._alike, [0.0, *draw._bounds], draw._bounds, strict=False):
        assert len({node.weight for node in members}) == 1
        chance.update(dict.fromkeys(members, (end - begin) / draw._bounds[-1] / len(members)))
    total = sum(weights)
    assert [chance[node] for node in among] == pytest.approx([weight / total for weight in weights], abs=1e-12)


def test_two_draws_are_distinct_and_both_by_weight() -> None:
    """The second one is drawn by weight among the others: P(i, j) = p_i * p_j / (1 - p_i)."""
    among = nodes(1, 2, 3, 4)
    draw = Draw(among, random.Random(8))
    found = Counter(draw.two() for _ in range(40_000))
    for i, first in enumerate(among):
        for j, second in enumerate(among):
            p, q = (i + 1) / 10, (j + 1) / 10
            expected = 0 if i == j else p * q / (1 - p)
            assert found[first, second] / 40_000 == pytest.approx(expected, abs=0.008)


@pytest.mark.parametrize("heavy", [1e6, 1e17, 1e300])
def test_beside_a_dominating_weight_the_second_draw_is_fair(heavy: float) -> None:
    among = nodes(1, heavy, *[1] * 8)
    draw = Draw(among, random.Random(8))
    pairs = [draw.two() for _ in range(9000)]
    assert sum(first is among[1] for first, _ in pairs) >= 8990
    seconds = Counter(second for first, second in pairs if first is among[1])
    assert len(seconds) == 9
    assert max(seconds.values()) < 1150


def test_a_dominating_weight_is_drawn_past_without_trying_again_and_again() -> None:
    class Counting(random.Random):
        drawn = 0

        def random(self) -> float:
            self.drawn += 1
            return super().random()

    rng = Counting(8)
    draw = Draw(nodes(1e9, *[1] * 100), rng)
    for _ in range(1000):
        draw.two()
    assert rng.drawn <= 2 * 1000 + 10


def test_weights_that_double_from_node_to_node_are_no_trouble() -> None:
    """Each has more than half of the weight of all that are lighter."""
    among = nodes(*(2.0**power for power in range(-1000, 1000)))
    found = counts(PowerOfTwo(rng=random.Random(2)), among, 2000)
    assert found[-3:] == pytest.approx([250, 500, 1000], rel=0.2)


def test_a_busy_node_with_a_dominating_weight_passes_its_requests_on() -> None:
    among = nodes(1e6, 1, 1, 1)
    policy = PowerOfTwo(load=in_flight, rng=random.Random(2))
    among[0].in_flight = 100
    found = counts(policy, among, 3000)
    assert found[0] == 0
    assert min(found[1:]) > 900


def test_power_of_two_never_picks_the_single_worst() -> None:
    """With replacement the worst of n would get 1/n² (httplb, grpc-go least request)."""
    among = nodes(1, 1, 1, 1)
    among[2].in_flight = 10
    found = shares(PowerOfTwo(rng=random.Random(2)), among)
    assert found == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.02)
    assert found[2] == 0


def test_power_of_two_has_the_distribution_of_the_better_of_two() -> None:
    """The k-th best of n is in n-1 of the n(n-1)/2 pairs and wins n-k of them: 2(n-k)/(n(n-1))."""
    among = nodes(*[1] * 5)
    for busy, node in enumerate(among):
        node.in_flight = busy
    expected = [2 * (5 - k) / (5 * 4) for k in range(1, 6)]
    assert shares(PowerOfTwo(rng=random.Random(2)), among) == pytest.approx(expected, abs=0.015)


def test_power_of_two_goes_by_weight_while_idle_and_under_load() -> None:
    """Drawn by weight when all are idle, and filled by weight when requests stay."""
    among, policy = nodes(1, 3, 6), PowerOfTwo(rng=random.Random(4))
    assert shares(policy, among) == pytest.approx([0.1, 0.3, 0.6], abs=0.02)
    for _ in range(1000):
        policy.pick(among, Call()).in_flight += 1
    assert [node.in_flight for node in among] == pytest.approx([100, 300, 600], abs=4)


def test_two_choices_fill_bins_far_more_evenly_than_one() -> None:
    """Balls into bins (Azar, Broder, Karlin, Upfal 1994): the fullest of n bins after n balls.

    One choice: about ln n / ln ln n, here 4 and some more; two choices: ln ln n / ln 2 + O(1), here 3.2 and
    at most one more.
    """
    fullest = {}
    for name, policy in (
        ("one", Random(random.Random(1))),
        ("two", PowerOfTwo(load=in_flight, rng=random.Random(1))),
    ):
        bins = nodes(*[1] * 10_000)
        call = Call()
        for _ in bins:
            policy.pick(bins, call).in_flight += 1
        fullest[name] = max(node.in_flight for node in bins)
    assert fullest["one"] >= 6
    assert fullest["two"] <= 4


@pytest.mark.parametrize("load", [in_flight, least_request, peak_ewma])
def test_two_draws_of_nodes_that_fail_are_drawn_again(load: Load) -> None:
    """With four such nodes of six both draws are such in 40 % of the picks."""
    among = nodes(*[1] * 6)
    for node in among:
        node.learn(0.01, 0.0, failed=False)
    for node in among[:4]:
        for second in range(1, 4):
            node.learn(0.001, float(second), failed=True)
    policy = PowerOfTwo(load=load, rng=random.Random(4))
    picked = Counter(policy.pick(among, Call(now=4.0)) for _ in range(1000))
    assert sum(picked[node] for node in among[:4]) < 40


def test_where_all_nodes_fail_one_of_them_is_picked() -> None:
    among = nodes(1, 1, 1)
    for node in among:
        node.learn(0.001, 1.0, failed=True)
    assert {PowerOfTwo(rng=random.Random(n)).pick(among, Call(now=1.0)) for n in range(50)} == set(among)


@pytest.mark.parametrize("kind", [PowerOfTwo, LeastRequest])
@pytest.mark.parametrize("load", ["peak_ewma", 3, None, random.Random(1)])
def test_a_load_is_a_function(kind: Any, load: Any) -> None:
    with pytest.raises(
        TypeError, match=r"load must be a function of a node and the time, such as .*peak_ewma"
    ) as caught:
        kind(load)
    assert repr(load) in str(caught.value)


@pytest.mark.parametrize("kind", [Random, PowerOfTwo, LeastRequest, RoundRobin, WeightedRoundRobin, Prequal])
def test_a_source_of_randomness_is_checked(kind: Any) -> None:
    with pytest.raises(TypeError, match="rng must be of type Random, not 42"):
        kind(rng=42)


@pytest.mark.parametrize("kind", [Random, PowerOfTwo, LeastRequest, RoundRobin, WeightedRoundRobin, Prequal])
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_and_its_original_pick_the_same_and_do_not_disturb_one_another(kind: Any, used: bool) -> None:
    among = nodes(1, 2, 3, 4, 5)
    policy, alone = kind(rng=random.Random(9)), kind(rng=random.Random(9))
    if used:
        assert picks(policy, among, 7) == picks(alone, among, 7)
    twin = copy.deepcopy(policy)
    expected = picks(alone, among, 50)
    both = [(picks(policy, among, 1), picks(twin, among, 1)) for _ in range(50)]
    assert [one for first, _ in both for one in first] == expected
    assert [one for _, second in both for one in second] == expected
