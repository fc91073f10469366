"""`bounded_load`: no node has more than its bound, whatever the keys are."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
from hashing_rig import call, keys, node, nodes
from hypothesis import given, settings
from hypothesis import strategies as st

from lbclient import Maglev, RingHash
from lbclient.node import Node
from lbclient.policies.hashing import Hashing

Make = Callable[[float], Hashing]

both = pytest.mark.parametrize(
    "make",
    [
        lambda c: RingHash(lambda _: None, bounded_load=c, rng=random.Random(1)),
        lambda c: Maglev(lambda _: None, bounded_load=c, table_size=499, rng=random.Random(1)),
    ],
    ids=["ring", "maglev"],
)


def place(policy: Hashing, among: tuple[Node, ...], key: str | None) -> Node:
    found = policy.pick(among, call(key, in_flight=sum(node.in_flight for node in among)))
    found.in_flight += 1
    return found


@both
@pytest.mark.parametrize("factor", [1.01, 1.25, 2])
def test_one_hot_key_is_spread_so_that_nobody_has_more_than_the_bound(make: Make, factor: float) -> None:
    among, policy = nodes(*[1] * 20), make(factor)
    for placed in range(400):
        place(policy, among, "hot")
        assert max(node.in_flight for node in among) <= ceil(factor * (placed + 1) / 20)


@both
def test_a_key_stays_at_its_node_while_that_has_room(make: Make) -> None:
    among, policy, free = nodes(*[1] * 20), make(1.25), make(1e9)
    for key in keys(100):
        home = free.pick(among, call(key))
        # All but the home have one attempt each: it has room for 1.25 * 20 / 20.
        for other in among:
            other.in_flight = int(other is not home)
        assert policy.pick(among, call(key, in_flight=19)) is home
        home.in_flight = 2
        assert policy.pick(among, call(key, in_flight=21)) is not home


@both
def test_the_overflow_of_a_key_goes_to_the_same_nodes_each_time(make: Make) -> None:
    first, second = nodes(*[1] * 20), nodes(*[1] * 20)
    one, other = make(1.5), make(1.5)
    for _ in range(15):
        assert place(one, first, "hot").address == place(other, second, "hot").address


@both
def test_the_bound_goes_by_weight(make: Make) -> None:
    among, policy = nodes(1, 1, 2, 4), make(1.25)
    for placed in range(400):
        found = place(policy, among, "hot")
        assert found.in_flight <= ceil(1.25 * (placed + 1) * found.weight / 8)


@both
def test_if_all_that_may_be_picked_are_full_it_is_the_least_loaded(make: Make) -> None:
    among, policy = nodes(1, 1, 1, 2, 1), make(1.1)
    for found, busy in zip(among, (0, 12, 11, 26, 0), strict=True):
        found.in_flight = busy
    for key in keys(20):
        picked = policy.pick(among, call(key, (among[0], among[4]), in_flight=49))
        assert picked is among[2], "12/1 is less than 13/1 and 27/2"


@both
def test_zero_weights_everywhere_are_bounded_as_equal_ones(make: Make) -> None:
    among, policy = nodes(0, 0, 0, 0), make(1.25)
    for placed in range(40):
        place(policy, among, "hot")
        assert max(node.in_flight for node in among) <= ceil(1.25 * (placed + 1) / 4)


@both
@pytest.mark.parametrize("weight", [1e308, 5e-324, 1e-300])
def test_the_bound_knows_no_overflow(make: Make, weight: float) -> None:
    among, policy = nodes(*[weight] * 4), make(1.25)
    for placed in range(40):
        place(policy, among, "hot")
        assert max(node.in_flight for node in among) <= ceil(1.25 * (placed + 1) / 4)


class Counted(Node):
    """Counts how often anybody asks how busy it is."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "in_flight":
            Counted.asked += 1
        return super().__getattribute__(name)


@both
def test_many_full_nodes_do_not_make_a_pick_slow(make: Make) -> None:
    """One hot key, and half of a thousand nodes full of it: all of them are before the others in its order."""
    among, policy = tuple(Counted(n.endpoint) for n in nodes(*[1] * 1000)), make(1.25)
    for found in among:
        found.in_flight = 0
    for placed in range(700):
        policy.pick(among, call("hot", in_flight=placed)).in_flight += 1
    Counted.asked = 0
    for placed in range(700, 900):
        policy.pick(among, call("hot", in_flight=placed)).in_flight += 1
    assert Counted.asked / 200 < 64 + 20


Story = list[tuple[str, int]]
stories = st.lists(
    st.one_of(
        st.tuples(st.just("pick"), st.integers(0, 3)),
        st.tuples(st.just("pick"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 1000)),
        st.tuples(st.just("nodes"), st.integers(1, 2**8 - 1)),
        st.tuples(st.just("weight"), st.integers(0, 8 * 4 - 1)),
    ),
    max_size=80,
)


@both
@given(story=stories, factor=st.sampled_from([1.001, 1.25, 1.5, 2, 10]))
@settings(max_examples=60)
def test_no_pick_goes_above_the_bound_in_any_story(make: Make, story: Story, factor: float) -> None:
    """Picks by few keys and by none, ends in any order, nodes that come and go, and weights that change."""
    policy = make(factor)
    every = nodes(*[1] * 8)
    among, under_way = every, list[Node]()
    for what, number in story:
        if what == "end" and under_way:
            under_way.pop(number % len(under_way)).in_flight -= 1
        elif what == "nodes":
            among = tuple(found for bit, found in enumerate(every) if number >> bit & 1)
        elif what == "weight":
            every[number // 4].weight = (0.5, 1, 2, 5)[number % 4]
            among = (*among[1:], among[0])
        elif what == "pick":
            total = sum(found.in_flight for found in among)
            found = place(policy, among, (None, "a", "b", "c")[number])
            under_way.append(found)
            share = found.weight / sum(other.weight for other in among)
            assert found.in_flight <= ceil(factor * (total + 1) * share * (1 + 1e-12))


@both
@pytest.mark.parametrize("factor", [1, 0.5, 0, -2, float("inf"), float("nan"), True, "1.25"])
def test_a_bound_of_one_or_less_is_refused(make: Make, factor: Any) -> None:
    with pytest.raises(ValueError, match=f"bounded_load must be a number above 1, such as 1.25, not {factor!r}"):
        make(factor)


def test_without_a_bound_a_hot_key_stays_at_one_node() -> None:
    among, policy = nodes(1, 1, 1), RingHash()
    assert len({place(policy, among, "hot") for _ in range(100)}) == 1


def test_nodes_that_are_excluded_by_the_thousand_leave_the_others_to_be_picked() -> None:
    among = tuple(node(number) for number in range(1000))
    for policy in (RingHash(), Maglev()):
        assert policy.pick(among, call("a", set(among) - {among[700]})) is among[700]
