"""`WeightedRoundRobin`: exact shares, nginx's order, and turns that survive updates."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pick_rig import copied, counts, nodes, pick_but, picks

from lbclient import WeightedRoundRobin
from lbclient.policies.deadlines import DeadlineOrder
from lbclient.policies.turns import TURN, whole_weights

WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def wrr(seed: int = 1) -> WeightedRoundRobin:
    return WeightedRoundRobin(random.Random(seed))


def smooth_cycle(weights: list[int]) -> list[int]:
    """The rule of nginx as it is written: credit all, the first of the richest pays the sum."""
    credit = [0] * len(weights)
    order = []
    for _ in range(sum(weights)):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        best = credit.index(max(credit))
        credit[best] -= sum(weights)
        order.append(best)
    assert not any(credit)
    return order


def rotations(order: list[int]) -> list[list[int]]:
    return [order[start:] + order[:start] for start in range(len(order))]


@pytest.mark.parametrize(
    ("weights", "order"),
    [((5, 1, 1), "aabacaa"), ((4, 2, 1), "abacaba"), ((3, 1), "aaba"), ((10, 2, 2), "aabacaa")],
)
def test_the_order_is_that_of_nginx(weights: tuple[int, ...], order: str) -> None:
    """The first is the example in nginx's own commit (smooth weighted round robin, 2012).

    By hand for 4 2 1: 4 2 1 takes a, 1 4 2 b, 5 -1 3 a, 2 1 4 c, 6 3 -2 a, 3 5 -1 b, 7 0 0 a; then all are at 0.
    """
    found = "".join("abc"[place] for place in picks(wrr(), nodes(*weights), len(order) * 3))
    assert found[: len(order)] * 3 == found
    assert found in order * 4


@given(WEIGHTS)
@settings(max_examples=60)
def test_any_small_set_goes_through_the_cycle_of_nginx(weights: list[int]) -> None:
    order = picks(wrr(), nodes(*weights), sum(weights) * 2)
    expected = smooth_cycle(weights)
    assert order[: len(expected)] in rotations(expected)
    assert order[len(expected) :] == order[: len(expected)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 9))
@settings(max_examples=60)
def test_any_stretch_as_long_as_the_sum_of_the_weights_holds_exact_shares(weights: list[int], seed: int) -> None:
    """Up to 16 nodes go in nginx's order and more by deadlines: it holds for both, wherever the stretch begins."""
    total = sum(weights)
    order = picks(wrr(seed), nodes(*weights), total * 2)
    for start in range(total + 1):
        found = Counter(order[start : start + total])
        assert [found[place] for place in range(len(weights))] == weights


@given(st.lists(st.integers(1, 2**30), min_size=1, max_size=30), st.integers(0, 2**32))
@example([2**29, 2**29 + 1], 1)
@settings(max_examples=60)
def test_deadlines_are_compared_as_exactly_as_fractions(weights: list[int], seed: int) -> None:
    rng = random.Random(seed)
    among = nodes(*weights)
    waits = {node: rng.choice([TURN // 2, TURN]) for node in among}
    order = DeadlineOrder(among, weights, waits, rng)
    parts = list(waits.values())
    for _ in range(300):
        first = min(range(len(among)), key=lambda place: (Fraction(parts[place], weights[place]), place))
        parts[first] += TURN
        assert order.next() is among[first]


@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize(
    ("weights", "cycle"),
    [
        ((0.5, 1.5, 1.0), (1, 3, 2)),
        ((2.5, 0.75), (10, 3)),
        ((1e308, 5e307, 1.5e308), (2, 1, 3)),
        ((1e-9, 3e-9), (1, 3)),
        ((5e-324, 1e-323), (1, 2)),
        ((1.7, 0.5), (17, 5)),
        ((0.1, 0.2, 0.3), (1, 2, 3)),
    ],
)
def test_fractions_and_extreme_weights_are_exact(
    weights: tuple[float, ...], cycle: tuple[int, ...], padding: int
) -> None:
    """With many nodes as well: the same weights over and over."""
    times = 1 + padding
    found = counts(wrr(), nodes(*weights * times), sum(cycle) * times * 20)
    assert found == pytest.approx([share * 20 for share in cycle * times], abs=1)


@pytest.mark.parametrize("size", [1, 40])
def test_a_weight_beside_which_others_are_nothing_takes_all(size: int) -> None:
    found = counts(wrr(), nodes(1e308, *[1e-9] * size), 1000)
    assert found[0] >= 999


@given(st.lists(st.floats(5e-324, 1.7e308), min_size=1, max_size=20))
def test_whole_weights_are_within_a_billionth_of_the_largest(weights: list[float]) -> None:
    _, whole = whole_weights(nodes(*weights))
    top, top_weight = max(whole), Fraction(max(weights))
    assert min(whole) >= 1
    assert top.bit_length() <= 31
    for weight, number in zip(weights, whole, strict=True):
        assert abs(Fraction(number, top) - Fraction(weight) / top_weight) <= Fraction(3, 2**30)


@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=20), st.integers(-20, 20))
def test_whole_weights_are_exact_for_whole_numbers_and_their_binary_fractions(
    found: list[int], power: int
) -> None:
    _, whole = whole_weights(nodes(*(number * 2.0**power for number in found)))
    assert all(
        Fraction(a, b) == Fraction(c, d) for a, b, c, d in zip(found, whole, found[1:], whole[1:], strict=False)
    )


@pytest.mark.parametrize("weights", [(0, 0, 0), (0,) * 30])
def test_zero_everywhere_counts_as_equal(weights: tuple[int, ...]) -> None:
    assert counts(wrr(), nodes(*weights), len(weights) * 7) == [7] * len(weights)


@pytest.mark.parametrize("size", [2, 30])
def test_weight_zero_has_no_turn_but_is_better_than_none(size: int) -> None:
    among, policy = nodes(0, *[1] * size), wrr()
    assert counts(policy, among, size * 3) == [0] + [3] * size
    assert pick_but(policy, among, *range(1, size + 1)) == 0


@pytest.mark.parametrize("weights", [(5, 1, 1, 3), (5, 1, 1, 3) * 6])
def test_clients_start_in_proportion_to_the_weights(weights: tuple[int, ...]) -> None:
    among = nodes(*weights)
    starts = Counter(picks(wrr(seed), among, 1)[0] % 4 for seed in range(2000))
    assert [starts[place] / 2000 for place in range(4)] == pytest.approx([0.5, 0.1, 0.1, 0.3], abs=0.04)


@pytest.mark.parametrize("weights", [(5, 1, 1, 3), (5, 1, 1, 3) * 6])
def test_an_update_at_every_pick_keeps_the_turns(weights: tuple[int, ...]) -> None:
    among, policy, found = nodes(*weights), wrr(), Counter[int]()
    for _ in range(sum(weights) * 20):
        found[picks(policy, copied(among), 1)[0]] += 1
    assert [found[place] for place in range(len(among))] == pytest.approx([w * 20 for w in weights], abs=1)


def test_turns_survive_between_the_two_orders() -> None:
    """16 nodes go in nginx's order, 17 by deadlines: a node that comes and goes moves no other."""
    among, policy, found = nodes(*[1] * 17), wrr(), Counter[int]()
    for number in range(1600):
        found[picks(policy, among[: 16 + number % 2], 1)[0]] += 1
    rest = [found[place] for place in range(16)]
    assert max(rest) - min(rest) <= 8


@pytest.mark.parametrize("size", [4, 40])
def test_a_change_of_weight_brings_no_turn_forward_or_back(size: int) -> None:
    """Whoever was just picked is not picked again at once because another weight changed."""
    among, policy = nodes(*[1] * size), wrr()
    for number in range(200):
        order = picks(policy, copied(among), size // 2)
        among[number % size].weight = 1 + (number + 1) % 2
        order += picks(policy, copied(among), size // 4)
        among[number % size].weight = 1
        once = [place for place in order if place != number % size]
        assert len(set(once)) >= len(once) - 1


@pytest.mark.parametrize(("old", "new"), [(8, 2), (4, 4), (40, 10), (30, 60)])
def test_new_nodes_are_not_picked_in_a_burst_by_all_clients(old: int, new: int) -> None:
    among = nodes(*[1] * (old + new))
    soon = []
    for seed in range(200):
        policy = wrr(seed)
        picks(policy, among[:old], seed % old + 1)
        order = picks(policy, among, old + new)
        assert max(Counter(order).values()) <= 2
        soon.append(sum(place >= old for place in order[: (old + new) // 2]))
    assert sum(soon) / 200 == pytest.approx(new / 2, rel=0.15)


def test_an_excluded_node_keeps_its_turn() -> None:
    among, policy = nodes(*[1] * 40), wrr()
    order = picks(policy, among, 40)
    assert pick_but(policy, among, order[0], order[1]) == order[2]
    assert picks(policy, among, 39) == [*order[:2], *order[3:]]


def test_in_a_small_set_the_excluded_ones_take_no_part() -> None:
    """As in nginx: they neither gain nor pay, and the others share by their weights."""
    among, policy = nodes(5, 2, 1), wrr()
    found = Counter(pick_but(policy, among, 0) for _ in range(30))
    assert [found[1], found[2]] == pytest.approx([20, 10], abs=1)
    assert counts(policy, among, 80) == pytest.approx([50, 20, 10], abs=1)


@pytest.mark.parametrize("size", [4, 40])
def test_a_node_that_was_full_for_long_gets_no_burst(size: int) -> None:
    among, policy = nodes(*[1] * size), wrr()
    for _ in range(size * 9):
        assert pick_but(policy, among, 1) != 1
    assert picks(policy, among, size).count(1) <= 2


def test_passing_over_a_node_with_nearly_all_of_the_weight_costs_one_step() -> None:
    among, policy = nodes(2**29, *[1] * 30), wrr()
    order = picks(policy, among, 10)
    assert order == [0] * 10
    found = Counter(pick_but(policy, among, 0) for _ in range(300))
    assert set(found.values()) == {10}


def test_the_same_seed_gives_the_same_picks() -> None:
    among = nodes(*range(1, 40))
    assert picks(wrr(9), among, 500) == picks(wrr(9), among, 500)


def test_ten_thousand_nodes_share_exactly() -> None:
    weights = [1 + number % 3 for number in range(10_000)]
    assert counts(wrr(), nodes(*weights), sum(weights)) == weights
