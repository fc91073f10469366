"""What every policy promises, on plain nodes: one suite for all of them, as for Finagle's distributors."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NoReturn

import pytest
from contract_rig import Caller, Touched, TouchedTuple, busy, crowd, nodes
from contract_rows import ROWS, Row, rows

from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import POLICIES, policy_factory

every_policy = rows()


@pytest.mark.parametrize("name", POLICIES)
def test_each_name_of_a_policy_is_under_contract(name: str) -> None:
    same = [row for row in ROWS if row.name == name]
    assert len(same) == 1, f"tests/contract_rows.py needs one row {name!r}"
    assert type(POLICIES[name]()) is type(same[0].make(random.Random(1)))


# Which nodes


@every_policy
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_a_pick_is_one_of_the_tuple_also_when_the_tuple_is_another_one(row: Row, size: int) -> None:
    caller = Caller(row)
    first, second = nodes(*[1] * size), nodes(*[2] * (size + 1), first=size)
    for among in (first, second, first, second[1:], second[:1]):
        assert set(caller.picks(among, 20)) <= set(among)


@every_policy
def test_one_server_gets_all(row: Row) -> None:
    among = nodes(1)
    busy(among, [50])
    assert set(Caller(row).picks(among, 50)) == set(among)


@every_policy
@pytest.mark.parametrize("as_what", [tuple, frozenset])
def test_an_excluded_node_is_never_picked(
    row: Row, as_what: Callable[[Collection[Node]], Collection[Node]]
) -> None:
    """Each single one, all but one, and anything between; all others still are."""
    caller, rng = Caller(row), random.Random(2)
    for size in (2, 3, 8):
        among = nodes(*(rng.choice([1, 1, 2, 5]) for _ in range(size)))
        in_flight = busy(among, [rng.choice([0, 0, 1, 3]) for _ in among])
        several = [rng.sample(among, rng.randrange(1, size)) for _ in range(20)]
        for excluded in [
            *([node] for node in among),
            *([n for n in among if n is not node] for node in among),
            *several,
        ]:
            picked = {caller.pick(among, as_what(excluded), in_flight) for _ in range(6)}
            assert picked <= set(among) - set(excluded)


@rows(without=("looks_at_load",))
def test_all_that_are_not_excluded_get_picks(row: Row) -> None:
    caller, among = Caller(row), nodes(*[1] * 8)
    assert {caller.pick(among, among[:3]) for _ in range(600)} == set(among[3:])


@rows("needs_key")
def test_the_same_key_gets_the_same_node_and_another_one_if_that_is_excluded(row: Row) -> None:
    caller, among = Caller(row), nodes(1, 1, 2, 1)
    for _ in range(50):
        call = caller.call()
        node = caller.policy.pick(among, call)
        assert Caller(row, 2).policy.pick(among, call) is node
        call.excluded = (node,)
        other = caller.policy.pick(among, call)
        assert other is not node
        assert Caller(row, 2).policy.pick(among, call) is other


# Load


@rows("looks_at_load")
@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_busiest_of_all_is_never_picked(row: Row, size: int) -> None:
    """With two draws that may hit the same node it would get 1/n² (httplb, grpc-go's least request)."""
    caller, among = Caller(row), nodes(*[1] * size)
    for node in among:
        node.latency, node.learned_at = 0.05, caller.now
    in_flight = [3 * number for number in range(size)]
    random.Random(size).shuffle(in_flight)
    total = busy(among, in_flight)
    busiest = max(among, key=lambda node: node.in_flight)
    assert busiest not in {caller.pick(among, in_flight=total) for _ in range(500)}


@rows("looks_at_latency")
@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_slowest_of_all_is_never_picked(row: Row, size: int) -> None:
    caller, among = Caller(row), nodes(*[1] * size)
    for number, node in enumerate(among, 1):
        node.latency, node.learned_at = number * 0.01, caller.now
    assert among[-1] not in {caller.pick(among) for _ in range(500)}


@rows("load_by_weight")
def test_attempts_under_way_are_in_proportion_to_the_weights(row: Row) -> None:
    """None of 800 ends. What is left to chance is the node that the last few went to."""
    caller, among = Caller(row), nodes(1, 3, 4)
    for node in among:
        node.latency, node.learned_at = 0.05, caller.now
    for total in range(800):
        caller.pick(among, in_flight=total).in_flight += 1
    assert [node.in_flight for node in among] == pytest.approx([100, 300, 400], abs=4)


# Updates and sizes


@rows(without=("correlated",))
def test_a_hundred_fresh_clients_do_not_begin_with_the_same_node(row: Row) -> None:
    """Starting at the first node floods it whenever many clients start together (envoy#3271, grpc-go#3793)."""
    for weights in ([1.0] * 10, [1.0] * 50, [1.0, 2.0] * 5):
        among = nodes(*weights)
        first = [Caller(row, seed).pick(among) for seed in range(100)]
        greatest = max(row.shares(weights)) * (1 + 6 * row.grain)
        assert max(map(first.count, among)) <= crowd(100, len(among), greatest)


@cache
def many(size: int) -> tuple[Node, ...]:
    """Made once, since making them takes longer than all that is done with them."""
    return nodes(*[1] * size, of=Touched)


@every_policy
def test_ten_thousand_nodes_are_picked_among_like_ten(row: Row) -> None:
    caller, among = Caller(row), tuple(many(10_000))
    among[0].weight = 1
    busy(among, [0])
    excluded = among[5:5000:7]
    picked = [caller.pick(among) for _ in range(8)] + [caller.pick(among, excluded) for _ in range(4)]
    assert set(picked) <= set(among)
    assert not set(picked[8:]) & set(excluded)
    assert len(set(picked)) > 10


@rows(without=("full_scan",))
@pytest.mark.parametrize("greatest", [1, 1e6])
def test_a_pick_looks_at_as_few_of_ten_thousand_nodes_as_of_a_hundred(row: Row, greatest: float) -> None:
    """Reads of nodes and of the tuple are counted, not time; the tables are made by the first pick.

    Of very different weights, the greatest is drawn almost always: looking for a second one must not be a search.
    """
    touched = {}
    for size in (100, 10_000):
        caller, among = Caller(row), TouchedTuple(many(size))
        among[0].weight = greatest
        in_flight = busy(among, [0, 1, 2])
        calls = [caller.call(excluded, in_flight) for excluded in [()] * 100 + [(among[3], among[4])] * 20]
        caller.policy.pick(among, calls[0])
        Touched.times = 0
        for call in calls:
            caller.policy.pick(among, call)
        touched[size] = Touched.times
    assert touched[10_000] <= 2 * touched[100] + 10 * len(calls)


# Chance and time


@every_policy
def test_the_same_seed_gives_the_same_picks(row: Row) -> None:
    among = nodes(1, 2, 3, 4)
    first, second = Caller(row, 9), Caller(row, 9)
    assert [first.pick(among) for _ in range(100)] == [second.pick(among) for _ in range(100)]


@rows(without=("needs_key",))
def test_other_seeds_give_other_picks(row: Row) -> None:
    among = nodes(*[1] * 50)
    assert (
        len({tuple(node.address for node in map(caller.pick, [among] * 3)) for caller in _callers(row, 30)}) > 15
    )


def _callers(row: Row, count: int) -> list[Caller]:
    return [Caller(row, seed) for seed in range(count)]


@every_policy
def test_neither_the_shared_source_of_randomness_nor_a_clock_is_used(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a simulation could not be repeated."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("not from the seed, or not from the call")

    among = nodes(1, 2, 3)
    caller = Caller(row)
    with monkeypatch.context() as patch:
        for name in (
            "random",
            "randrange",
            "randint",
            "choice",
            "choices",
            "sample",
            "shuffle",
            "uniform",
            "getrandbits",
        ):
            patch.setattr(random, name, refuse)
        for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"):
            patch.setattr(time, name, refuse)
        for excluded in ((), among[:2]):
            for _ in range(50):
                caller.pick(among, excluded)


# What a policy leaves alone


@every_policy
def test_a_pick_changes_nothing_of_the_nodes_and_of_the_call(row: Row) -> None:
    """A node belongs to its balancer and its attempts, and counts what they do."""
    caller, among = Caller(row), nodes(1, 2, 3)
    busy(among, [2, 0, 1])

    def state() -> list[list[Any]]:
        return [[getattr(node, name) for name in Node.__slots__] for node in among]

    before = state()
    for excluded in ((), among[1:], frozenset(among[:1])):
        call = caller.call(excluded, 3)
        was = [getattr(call, name) for name in Call.__slots__]
        caller.policy.pick(among, call)
        assert [getattr(call, name) for name in Call.__slots__] == was
    assert state() == before


@every_policy
def test_a_policy_given_for_two_services_is_two_policies(row: Row) -> None:
    """What one of them picks changes nothing for the others, which all pick as the given one would have."""
    new = policy_factory(row.make(random.Random(3)))
    first, second, alone = Caller(row), Caller(row), Caller(row)
    first.policy, second.policy, alone.policy = new(), new(), new()
    assert len({id(policy) for policy in (first.policy, second.policy, alone.policy)}) == 3
    ours, theirs = nodes(1, 2, 3), nodes(1, 1, 1, 1, 1, first=4)
    expected = [alone.pick(theirs) for _ in range(50)]
    for node in expected:
        assert {first.pick(ours) for _ in range(3)} <= set(ours)
        assert second.pick(theirs) is node


@every_policy
def test_a_policy_that_is_in_use_can_be_copied_and_its_nodes_are_not(row: Row) -> None:
    """A node has attempts, those have connections, and a connection has no copy."""
    caller, among = Caller(row), nodes(1, 2, 3)
    for node in among:
        node.attempts = {_Connected()}  # type: ignore[arg-type]
    caller.picks(among, 20)
    caller.policy = copy.deepcopy(caller.policy)
    assert set(caller.picks(among, 50)) <= set(among)


class _Connected:
    def __deepcopy__(self, memo: object) -> NoReturn:
        raise AssertionError("a connection was copied")
