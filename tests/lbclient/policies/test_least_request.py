"""`LeastRequest`: the least busy of all, and by weight among equals."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pick_rig import copied, counts, nodes, pick_but, picks

from lbclient import LeastRequest, WeightedRoundRobin, in_flight, least_request
from lbclient.call import Call


def least(seed: int = 1) -> LeastRequest:
    return LeastRequest(rng=random.Random(seed))


def test_it_takes_the_lowest_load_by_weight() -> None:
    among = nodes(1, 1, 4)
    among[0].in_flight, among[1].in_flight, among[2].in_flight = 3, 1, 3
    assert LeastRequest().pick(among, Call()) is among[2], "3/4 is less than 1/1"
    among[2].in_flight = 6
    assert LeastRequest(load=in_flight).pick(among, Call()) is among[1]
    assert [least_request(node, 0) for node in among] == [4, 2, 2.5]


@pytest.mark.parametrize("weights", [(5, 1, 1), (1, 2, 3, 4), (0.5, 1.5), (1,) * 6, (1, 2) * 15])
def test_idle_nodes_share_exactly_by_weight(weights: tuple[float, ...]) -> None:
    """As nginx's least_conn, which goes by smooth weighted round robin among equals."""
    total = int(sum(weights) * 2)
    found = counts(least(), nodes(*weights), total)
    assert found == pytest.approx([w * 2 for w in weights], abs=0 if len(weights) <= 16 else 1)


def test_idle_nodes_are_picked_in_the_order_of_nginx() -> None:
    among = nodes(5, 1, 1)
    assert picks(least(3), among, 21) == picks(WeightedRoundRobin(rng=random.Random(3)), among, 21)


def test_among_the_least_busy_only_weights_decide() -> None:
    among, policy = nodes(1, 3, 9), LeastRequest(load=in_flight, rng=random.Random(1))
    among[2].in_flight = 1
    assert counts(policy, among, 400) == pytest.approx([100, 300, 0], abs=2)


def test_requests_that_stay_fill_nodes_by_weight() -> None:
    among, policy = nodes(1, 3, 6), least()
    for _ in range(1000):
        policy.pick(among, Call()).in_flight += 1
    assert [node.in_flight for node in among] == pytest.approx([100, 300, 600], abs=2)


def test_it_never_picks_an_excluded_node_though_it_is_the_least_busy() -> None:
    among, policy = nodes(1, 1, 1, 0), least()
    among[1].in_flight, among[2].in_flight = 5, 4
    assert pick_but(policy, among, 0) == 2
    assert pick_but(policy, among, 0, 2) == 1
    assert pick_but(policy, among, 0, 1, 2) == 3, "weight 0 is better than none"


def test_clients_start_in_proportion_to_the_weights_in_sets_of_any_size() -> None:
    for weights in ((3, 1), (3, 1) * 20):
        among = nodes(*weights)
        starts = Counter(picks(least(s), among, 1)[0] for s in range(800))
        heavy = sum(found for place, found in starts.items() if not place % 2)
        assert heavy / 800 == pytest.approx(0.75, abs=0.12)
        assert len(starts) >= len(weights) * 0.6


def test_turns_survive_an_update_at_every_pick() -> None:
    among, policy, found = nodes(5, 1, 1, 3), least(), Counter[int]()
    for _ in range(200):
        found[picks(policy, copied(among), 1)[0]] += 1
    assert [found[place] for place in range(4)] == pytest.approx([100, 20, 20, 60], abs=1)


def test_zero_everywhere_counts_as_equal() -> None:
    assert counts(least(), nodes(0, 0, 0), 30) == [10, 10, 10]
