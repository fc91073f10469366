"""`Maglev`: the paper's table, what a change moves, and how a new table takes the place of the old one."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hashing_rig import call, keys, node, nodes, owners, settle, shares
from hypothesis import given, settings
from hypothesis import strategies as st

from lbclient import Maglev
from lbclient.node import Node
from lbclient.policies.table import Filling, Table

KEYS = keys(4000)


def filled(*weights: float, size: int = 65537) -> list[Node]:
    table = Table(size)
    table.update(nodes(*weights))
    return [host.node for host in table._slots if host.node is not None]


def test_the_table_is_that_of_the_paper() -> None:
    """NSDI 2016, section 3.4, table 1: seven slots, three backends, and the same without B1."""
    three = Filling(["B0", "B1", "B2"], [(3, 4), (0, 2), (3, 1)], [1, 1, 1], 7)
    three.fill(7)
    assert three.slots == ["B1", "B0", "B1", "B0", "B2", "B2", "B0"]
    two = Filling(["B0", "B2"], [(3, 4), (3, 1)], [1, 1], 7)
    two.fill(7)
    assert two.slots == ["B0", "B0", "B0", "B0", "B2", "B2", "B2"]


def test_a_table_filled_in_pieces_is_the_same() -> None:
    pieces = Filling(["B0", "B1", "B2"], [(3, 4), (0, 2), (3, 1)], [1, 1, 1], 7)
    for count in (1, 3, 0, 2, 1):
        pieces.fill(count)
    assert pieces.free == 0
    assert pieces.slots == ["B1", "B0", "B1", "B0", "B2", "B2", "B0"]


def test_turns_go_by_weight() -> None:
    """Turn k of a host comes at (k + 1/2) / weight, and each has its first one at once."""
    weighted = Filling(["a", "b", "c"], [(0, 1)] * 3, [4, 2, 1], 13)
    weighted.fill(13)
    # a is due at 0, 3/8, 5/8, 7/8, 9/8, 11/8, 13/8, 15/8, 17/8; b at 0, 3/4, 5/4, 7/4; c at 0, 3/2
    assert "".join(weighted.slots) == "abcaabaabacab"


@pytest.mark.parametrize("size", [3, 10, 100, 1000])
def test_no_node_has_two_slots_more_than_another(size: int) -> None:
    """With a hundred nodes that is 655 or 656 slots, 0.2 %; the paper allows for 1 %."""
    count = Counter(filled(*[1] * size)).values()
    assert max(count) - min(count) <= 1


@pytest.mark.parametrize("scale", [1, 1e-300, 1e300])
def test_slots_go_by_weight(scale: float) -> None:
    weights = [1, 2, 3, 4, 10, 0]
    count = Counter(found.weight / scale for found in filled(*(weight * scale for weight in weights)))
    assert [count[weight] for weight in weights] == pytest.approx(
        [weight / 20 * 65537 for weight in weights], abs=2
    )


def test_nobody_who_has_a_weight_is_without_a_slot() -> None:
    count = Counter(found.weight for found in filled(1e6, 5e-324, 1, 1e6))
    assert count[5e-324] == count[1] == 1


def test_all_clients_make_the_same_table_whatever_order_they_know_the_nodes_in() -> None:
    among = nodes(1, 2, 1, 5, 1)
    assert owners(Maglev(), among, KEYS) == owners(Maglev(), among[::-1], KEYS)


@pytest.mark.parametrize("size", [10, 100])
def test_a_node_that_leaves_moves_few_other_keys(size: int) -> None:
    """Less than 1 % of all, beside its own; with modulo hashing nearly all would move."""
    among = nodes(*[1] * size)
    table, after = Table(65537), Table(65537)
    table.update(among)
    after.update(among[1:])
    others = [(a, b) for a, b in zip(table._slots, after._slots, strict=True) if a.address != among[0].address]
    disrupted = sum(a.address != b.address for a, b in others)
    assert 0 < disrupted / 65537 < 0.01


def test_the_keys_of_an_excluded_node_go_to_all_others_by_weight() -> None:
    among = nodes(1, 1, 3, 1, 2)
    policy = Maglev()
    mine = [key for key, address in owners(policy, among, keys(20_000)).items() if address == among[2].address]
    count = Counter(policy.pick(among, call(key, among[2:3])).address for key in mine)
    assert [count[n.address] / len(mine) for n in among] == pytest.approx([0.2, 0.2, 0, 0.2, 0.4], abs=0.02)


def test_an_excluded_node_sends_each_key_to_the_same_other_node() -> None:
    among = nodes(*[1] * 5)
    for key in KEYS[:200]:
        assert len({Maglev(table_size=101).pick(among, call(key, among[:2])) for _ in range(3)}) == 1


edits = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([0, 1, 1, 2, 100]), st.integers(0, 12)), min_size=1, max_size=12
)


@given(edits)
@settings(max_examples=60)
def test_the_table_follows_from_the_set_and_not_from_its_history(history: list[tuple[int, float, int]]) -> None:
    """Nodes come, go and change their weights while tables are being made; every pick is of the current nodes."""
    policy, some = Maglev(table_size=499), keys(100)
    weights: dict[int, float] = dict.fromkeys(range(10), 1)
    among = nodes(*[1] * 10)
    settle(policy, among)
    for number, weight, picks in history:
        weights[number] = weight
        among = tuple(node(n, w) for n, w in sorted(weights.items()) if w)
        for key in some[:picks]:
            assert policy.pick(among, call(key)) in among
    assert owners(policy, among, some) == owners(Maglev(table_size=499), among[::-1], some)


def test_a_new_table_is_filled_by_the_next_picks_while_the_old_one_is_used() -> None:
    """No pick has a quarter of the free slots to fill, or 4096."""
    among = nodes(*[1] * 50)
    policy = Maglev()
    assert settle(policy, among) == 1
    before = owners(policy, among, KEYS)
    more = (*among, node(50))
    table = policy._layout
    assert isinstance(table, Table)
    policy.pick(more, call("any"))
    free = [65537]
    while table.behind:
        key = KEYS[len(free)]
        assert policy.pick(more, call(key)).address == before[key]
        free.append(table._filling.free if table._filling else 0)
    assert 20 < len(free) < 60
    assert all(a - b <= min(4096, a // 4 + 1) for a, b in pairwise(free))
    assert owners(policy, more, KEYS) == owners(Maglev(), more, KEYS)


def test_a_node_that_left_is_not_picked_while_the_old_table_is_used() -> None:
    among = nodes(*[1] * 5)
    policy = Maglev()
    settle(policy, among)
    left = among[1:]
    picked = [policy.pick(left, call(key)) for key in KEYS[:30]]
    assert policy._layout.behind
    assert set(picked) == set(left)


def test_changes_that_come_faster_than_tables_are_made_do_not_stop_them() -> None:
    """A table that is begun is finished, else a node that comes and goes would keep all others from being seen."""
    among = nodes(*[1] * 10)
    policy = Maglev()
    settle(policy, among)
    grown = (*among, node(10))
    sets = (grown, (*grown, node(11)))
    for number in range(120):
        policy.pick(sets[number // 4 % 2], call("any"))
    assert grown[-1] in {policy._layout.find(point) for point in range(1000)}


def test_a_change_that_is_taken_back_leaves_the_table_as_it_is() -> None:
    among = nodes(*[1] * 10)
    policy = Maglev()
    settle(policy, among)
    policy.pick(among[1:], call("a"))
    policy.pick(among[1:], call("a"))
    policy.pick((*among[1:], among[0]), call("a"))
    assert not policy._layout.behind
    assert settle(policy, among[:-1]) < 60, "the table that was begun is not finished"


def test_a_set_that_was_replaced_gets_its_table_at_once() -> None:
    among, others = nodes(*[1] * 10), tuple(node(number) for number in range(20, 30))
    policy = Maglev()
    settle(policy, among)
    assert settle(policy, others) == 1
    assert owners(policy, others, KEYS) == owners(Maglev(), others, KEYS)


def test_more_nodes_than_slots_are_no_error() -> None:
    among = nodes(*[1] * 20)
    policy = Maglev(table_size=7)
    assert len({policy.pick(among, call(key)) for key in KEYS[:100]}) == 7
    assert policy.pick(among, call("a", among[:19])) is among[19]


def test_zero_everywhere_counts_as_equal_and_a_single_zero_has_no_key() -> None:
    assert list(shares(Maglev(), nodes(0, 0, 0)).values()) == pytest.approx([1 / 3] * 3, abs=0.02)
    among = nodes(1, 0, 1)
    assert shares(Maglev(), among)[among[1].address] == 0


def test_a_copy_has_the_options_and_no_nodes() -> None:
    policy = Maglev(table_size=101)
    settle(policy, nodes(1, 2))
    policy.pick(nodes(1, 2, 3), call("a"))
    copied = copy.deepcopy(policy)
    assert copied._layout.nodes == ()
    among = nodes(1, 1, 1)
    assert owners(copied, among, KEYS[:100]) == owners(Maglev(table_size=101), among, KEYS[:100])


@pytest.mark.parametrize("size", [65536, 1, 0, -7, 9, 65537.0, True, "65537"])
def test_a_table_size_that_is_no_prime_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=f"table_size must be a prime number, such as 65537 .*, not {size!r}"):
        Maglev(table_size=size)
