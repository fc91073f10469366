"""What the balancer promises whatever the policy: whom it never picks, and that updates lose and flood nothing."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from contract_rig import Client, crowd, deviation, endpoints
from contract_rows import Row, rows

from lbclient import SlowStart
from lbclient.node import Node
from lbclient.outcome import Outcome

every_policy = rows()


# Whom it never picks


@every_policy
def test_a_tried_node_is_never_picked_while_another_one_is_there(row: Row) -> None:
    client = Client(row, endpoints([1, 2, 1, 1]))
    for size in (1, 2, 3):
        for tried in combinations(client.nodes, size):
            assert set(client.picks(6, *tried)) <= set(client.nodes) - set(tried)
    assert set(client.picks(6, *client.nodes)) <= set(client.nodes)


@every_policy
def test_an_ejected_node_is_never_picked_while_another_one_is_there(row: Row) -> None:
    client = Client(row, endpoints([1] * 5))
    out = client.nodes[1:4]
    for node in out:
        client.eject(node)
        assert set(client.picks(30)) <= {n for n in client.nodes if n.ejected_at is None}
    assert set(client.picks(10, client.nodes[0])) == {client.nodes[4]}
    assert set(client.picks(10, client.nodes[0], client.nodes[4])) <= set(out), (
        "better than one for the second time"
    )


@every_policy
def test_where_all_are_ejected_one_is_picked_nevertheless(row: Row) -> None:
    client = Client(row, endpoints([1] * 3))
    for node in client.nodes[:2]:
        client.eject(node)
    client.update(endpoints([1, 2]))
    assert all(node.ejected_at is not None for node in client.nodes)
    assert set(client.picks(40)) <= set(client.nodes)
    assert set(client.picks(10, client.nodes[0])) == {client.nodes[1]}


@every_policy
def test_who_comes_first_after_an_ejection_is_a_probe_and_one_only(row: Row) -> None:
    client = Client(row, endpoints([1] * 3))
    client.eject(client.nodes[0])
    client.now += 30
    probe = client.picked()
    assert probe is client.nodes[0]
    attempt = client.begin(probe)
    assert probe not in client.picks(40)
    client.end(attempt, Outcome.SUCCESS)
    assert client.picks(60)[probe] or row.looks_at_load or row.correlated


@every_policy
def test_a_node_gets_no_more_than_its_limit_and_none_is_picked_only_if_all_are_full(row: Row) -> None:
    client = Client(row, endpoints([1, 4, 2]), limit_per_node=3)
    begun = [client.begin(client.picked()) for _ in range(9)]
    assert [node.in_flight for node in client.nodes] == [3, 3, 3]
    assert client.pick() is None
    for attempt in begun:
        attempt.land()
        assert set(client.picks(5)) == {attempt.node}
        others = tuple(node for node in client.nodes if node is not attempt.node)
        assert set(client.picks(5, *others)) == {attempt.node}
        assert set(client.picks(5, attempt.node)) == {None}, "the others are worth waiting for"
        client.begin(attempt.node)


@every_policy
def test_a_probe_keeps_to_the_limit_as_well(row: Row) -> None:
    client = Client(row, endpoints([1] * 2), limit_per_node=1)
    hanging = client.begin(client.nodes[0])
    client.eject(client.nodes[0])
    client.now += 30
    assert set(client.picks(5)) == {client.nodes[1]}
    hanging.land()
    assert client.pick() is client.nodes[0]


@every_policy
def test_weight_zero_gets_nothing_while_others_have_one(row: Row) -> None:
    """Not even a request that failed everywhere else: whoever sets it keeps the node for something else."""
    client = Client(row, endpoints([1, 0, 2, 0]))
    drained = {client.node(2), client.node(4)}
    assert not drained & set(client.picks(200))
    assert not drained & set(client.picks(20, client.node(1)))
    assert not drained & set(client.picks(20, client.node(1), client.node(3)))
    assert client.balancer.exhausted((client.node(1), client.node(3)))
    client.update(endpoints([0, 0, 0, 0]))
    assert set(client.picks(200)) == set(client.nodes)


# Updates


UPDATES = {
    "the same again": endpoints([1] * 10),
    "one more": endpoints([1] * 11),
    "other weights": endpoints([2, *[1] * 10]),
    "all but one replaced": [*endpoints([2]), *endpoints([1] * 9, first=20)],
}


@rows(without=("correlated",))
def test_a_hundred_clients_do_not_go_to_the_same_node_after_an_update(row: Row) -> None:
    """All of them see it at the same moment, after as many picks, and each picks once."""
    clients = [Client(row, endpoints([1] * 10), seed) for seed in range(100)]
    for number, client in enumerate(clients):
        client.key = f"user-{number}"
        for _ in range(5):
            client.see(client.picked(), Outcome.SUCCESS)
    for update, found in UPDATES.items():
        picked: Counter[str] = Counter()
        for client in clients:
            client.update(found)
            node = client.picked()
            picked[node.address] += 1
            client.see(node, Outcome.SUCCESS)
        # A node of which nothing is known yet counts as the best to a policy that looks at latencies.
        contenders = row.contenders if row.looks_at_latency else 1
        share = contenders * max(row.shares([endpoint.weight for endpoint in found])) * (1 + 6 * row.grain)
        assert max(picked.values()) <= crowd(100, len(found), min(1.0, share)), update


@rows(without=("correlated",))
@pytest.mark.parametrize("picks", [1, 3])
def test_updates_between_a_few_picks_flood_nobody(row: Row, picks: int) -> None:
    """A policy that begins at the same node after each update gives it a share of 1 / picks."""
    client = Client(row, endpoints([1] * 10))
    picked: Counter[Node | None] = Counter()
    updates = 400
    for number in range(updates):
        # The last of them comes and goes.
        client.update(endpoints([1] * (11 - number % 2)))
        picked.update(client.picks(picks))
    total = updates * picks
    for number in range(1, 11):
        assert picked[client.node(number)] <= total / 10 + deviation(total, 1 / 10, row.grain)
        assert picked[client.node(number)] >= total / 11 - deviation(total, 1 / 11, row.grain)


@every_policy
def test_an_update_that_changes_nothing_changes_no_pick(row: Row) -> None:
    first, second = Client(row, endpoints([1, 2, 3, 1])), Client(row, endpoints([1, 2, 3, 1]))
    for _ in range(30):
        second.update(endpoints([1, 2, 3, 1]))
        assert [n and n.address for n in second.picks(3)] == [n and n.address for n in first.picks(3)]


@every_policy
def test_what_was_learned_survives_updates(row: Row) -> None:
    """One is added, one goes, weights change: the others are the same objects with the same numbers."""
    client = Client(row, endpoints([1] * 3))
    kept = client.node(2)
    client.see(kept, Outcome.SUCCESS, elapsed=0.2)
    client.now += 1
    client.see(kept, Outcome.ERROR, elapsed=0.2)
    attempt = client.begin(kept)
    names = ("in_flight", "requests", "failures", "latency", "learned_at", "failing", "failed_at", "attempts")
    before = {name: getattr(kept, name) for name in names}
    assert before["in_flight"] == 1
    assert before["requests"] == 3
    assert before["latency"] == 0.2
    assert before["failing"] > 0
    for weights in ([1, 1, 1], [1, 1, 1, 1], [1, 7, 1], [1, 7]):
        client.update(endpoints(weights))
        client.picks(5)
        assert client.node(2) is kept
        assert kept.weight == weights[1]
        assert {name: getattr(kept, name) for name in names} == before
        assert [route.in_flight for route in client.balancer.routes] == [1]
    attempt.land()
    assert [route.in_flight for route in client.balancer.routes] == [0]


@rows("weighted", without=("correlated",))
def test_a_change_of_weight_is_followed_at_once(row: Row) -> None:
    client, picks = Client(row, endpoints([1, 1, 1])), 1500
    client.picks(20)
    for weights in ([1, 4, 1], [3, 0, 1], [0.5, 4, 1], [1, 1, 1]):
        client.update(endpoints(weights))
        client.picks(row.lag)
        picked = client.picks(picks)
        for number, share in enumerate(row.shares(weights), 1):
            most = 1 if row.exact else deviation(picks, share, row.grain)
            assert abs(picked[client.node(number)] - picks * share) <= (most if share else 0)


@every_policy
@pytest.mark.parametrize("size", [2, 5])
def test_a_new_node_has_no_more_than_its_part_during_its_slow_start(row: Row, size: int) -> None:
    """Half of its window is over: half of its fair share. It is idle, and would be picked for all by its load."""
    client = Client(row, endpoints([1] * (size - 1)), slow_start=SlowStart(window=10))
    begun = [client.begin(client.picked()) for _ in range(100)]
    client.update(endpoints([1] * size))
    client.now += 5
    client.picks(row.lag)
    picks = 600
    got = client.picks(picks)[client.node(size)]
    assert got <= picks / size / 2 + 12, "with a few that it had earned before"
    for attempt in begun:
        attempt.land()


@rows(without=("looks_at_load", "correlated"))
def test_a_new_node_has_its_part_during_its_slow_start_and_its_share_after_it(row: Row) -> None:
    client, picks = Client(row, endpoints([1] * 4), slow_start=SlowStart(window=10)), 2000
    client.update(endpoints([1] * 5))
    client.picks(row.lag)
    for seconds, part in ((5, 0.5), (5, 1.0)):
        client.now += seconds
        got = client.picks(picks)[client.node(5)]
        assert got >= part * picks / 5 - deviation(picks, part / 5, row.grain)
