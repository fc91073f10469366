"""`RoundRobin`: one after the other."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from pick_rig import copied, counts, nodes, pick_but, picks

from lbclient import RoundRobin


def test_it_goes_from_one_to_the_next_whatever_the_weights() -> None:
    order = picks(RoundRobin(random.Random(1)), nodes(1, 9, 0), 9)
    assert all((before + 1) % 3 == after for before, after in pairwise(order))


def test_clients_start_at_different_nodes() -> None:
    """Else all clients that start together flood the first node (envoy#3271, grpc-go#3793)."""
    among = nodes(*[1] * 10)
    starts = Counter(picks(RoundRobin(random.Random(seed)), among, 1)[0] for seed in range(1000))
    assert len(starts) == 10
    assert max(starts.values()) < 150


def test_an_update_at_every_pick_keeps_the_turn() -> None:
    among, policy = nodes(*[1] * 5), RoundRobin(random.Random(1))
    found = Counter(picks(policy, copied(among), 1)[0] for _ in range(500))
    assert set(found.values()) == {100}


def test_when_the_next_one_leaves_its_successor_does_not_get_all_its_clients() -> None:
    among = nodes(*[1] * 10)
    picked = Counter[int]()
    for seed in range(1000):
        policy = RoundRobin(random.Random(seed))
        picks(policy, among, 1)
        picked[picks(policy, among[5:], 1)[0]] += 1
    assert len(picked) == 5
    assert max(picked.values()) < 300


def test_when_another_one_leaves_the_turn_stays() -> None:
    among, policy = nodes(*[1] * 5), RoundRobin(random.Random(1))
    last = picks(policy, among, 1)[0]
    rest = tuple(node for place, node in enumerate(among) if place != (last + 2) % 5)
    assert rest[picks(policy, rest, 1)[0]] is among[(last + 1) % 5]


def test_a_new_node_waits_until_its_turn() -> None:
    among, policy = nodes(*[1] * 6), RoundRobin(random.Random(1))
    old = among[:5]
    last = picks(policy, old, 1)[0]
    order = picks(policy, among, 6)
    assert order == [(last + 1 + step) % 5 if last + 1 + step < 5 else order[step] for step in range(6)]
    assert sorted(order) == list(range(6))


def test_an_excluded_node_is_passed_over() -> None:
    among, policy = nodes(1, 1, 1), RoundRobin(random.Random(1))
    assert {pick_but(policy, among, 0, 2) for _ in range(20)} == {1}
    assert counts(policy, among, 300) == [100, 100, 100]
