"""`RingHash`: where the points are, what a change moves, and what it costs."""

from __future__ import annotations

import copy
import random
from collections import Counter
from statistics import pstdev
from typing import Any

import pytest
from hashing_rig import call, keys, moved, node, nodes, owners, settle, shares
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery import Endpoint
from lbclient import RingHash
from lbclient.node import Node
from lbclient.policies.ring import Ring, points_by_weight

KEYS = keys(4000)


def test_the_points_are_those_of_envoys_example() -> None:
    """Envoy's ring_hash_lb_test.cc: six hosts with two points each, XXH64 of `127.0.0.1:90_0` and so on.

    A key goes to the first point at or after its hash, and after the last one to the first.
    """
    expected = [
        (833437586790550860, 94),
        (928266305478181108, 92),
        (1033482794131418490, 90),
        (3551244743356806947, 95),
        (3851675632748031481, 93),
        (5583722120771150861, 91),
        (6311230543546372928, 91),
        (7700377290971790572, 93),
        (13144177310400110813, 95),
        (13444792449719432967, 92),
        (15516499411664133160, 94),
        (16117243373044804889, 90),
    ]
    ring = Ring(2)
    ring.update(tuple(Node(Endpoint(host="127.0.0.1", port=port)) for port in range(90, 96)))

    def port_at(point: int) -> int:
        found = ring.find(point)
        assert found is not None
        return found.endpoint.port

    for point, port in expected:
        assert port_at(point) == port
    for (_, port), (before, _) in zip(expected, [(-1, 0), *expected[:-1]], strict=True):
        assert port_at(before + 1) == port
    assert port_at(expected[-1][0] + 1) == port_at(2**64 - 1) == 94
    around = ring.walk(13444792449719432968)
    assert [found.endpoint.port for found in around] == [94, 90, *(port for _, port in expected[:10])]


def test_a_node_that_leaves_moves_its_own_keys_only() -> None:
    among = nodes(*[1] * 20)
    policy = RingHash()
    before = owners(policy, among, KEYS)
    after = owners(policy, among[:7] + among[8:], KEYS)
    assert moved(before, after) == {key for key, address in before.items() if address == among[7].address}


def test_a_node_that_comes_takes_its_share_and_nothing_else_moves() -> None:
    """1/(n+1) of the keys, within three standard deviations of a share (9 %)."""
    among = nodes(*[1] * 20)
    policy = RingHash()
    before = owners(policy, among[:-1], KEYS)
    after = owners(policy, among, KEYS)
    gone = moved(before, after)
    assert {after[key] for key in gone} == {among[-1].address}
    assert len(gone) / len(KEYS) == pytest.approx(1 / 20, rel=0.27)


def test_a_weight_that_changes_moves_keys_to_or_from_that_node_only() -> None:
    among = nodes(2, 2, 3, 4, 5)
    policy = RingHash()
    before = owners(policy, among, KEYS)
    heavier = (*among[:3], node(3, 6), among[4])
    after = owners(policy, heavier, KEYS)
    assert {after[key] for key in moved(before, after)} == {among[3].address}
    lighter = (*among[:3], node(3, 3), among[4])
    after = owners(policy, lighter, KEYS)
    assert {before[key] for key in moved(before, after)} == {among[3].address}


def test_the_keys_of_an_excluded_node_go_to_all_others() -> None:
    """Not to one neighbour, which would have twice its load."""
    among = nodes(*[1] * 10)
    policy = RingHash()
    mine = [key for key, address in owners(policy, among, keys(20_000)).items() if address == among[4].address]
    count = Counter(policy.pick(among, call(key, among[4:5])).address for key in mine)
    assert set(count) == {node.address for node in among} - {among[4].address}
    assert max(count.values()) < 0.25 * len(mine)


def test_what_excluding_a_node_gives_is_what_its_leaving_gives() -> None:
    """So a retry warms the cache of the node that has the key afterwards."""
    among = nodes(*[1] * 6)
    policy = RingHash()
    excluding = {key: policy.pick(among, call(key, among[:1])).address for key in KEYS}
    assert excluding == owners(RingHash(), among[1:], KEYS)


@pytest.mark.parametrize("size", [10, 100])
def test_shares_differ_by_nine_percent(size: int) -> None:
    """1/sqrt(128): intervals between points at random are about exponential."""
    found = shares(RingHash(), nodes(*[1] * size), 200_000)
    assert 0.06 < pstdev(share * size for share in found.values()) < 0.12


def test_more_points_make_shares_more_even() -> None:
    found = shares(RingHash(points=4096), nodes(*[1] * 10))
    assert list(found.values()) == pytest.approx([0.1] * 10, rel=0.08)


def test_shares_go_by_weight() -> None:
    among = nodes(1, 2, 3, 4, 0, 10)
    found = shares(RingHash(points=2000), among)
    assert [found[node.address] for node in among] == pytest.approx(
        [w / 20 for w in (1, 2, 3, 4, 0, 10)], rel=0.15
    )


@pytest.mark.parametrize("weight", [1, 3, 100, 1e-300, 1e300, 1.7e308, 5e-324, 0])
def test_equal_weights_make_a_ring_of_about_the_same_size_whatever_they_are(weight: float) -> None:
    counts = points_by_weight(nodes(*[weight] * 50), 128)
    assert len(set(counts)) == 1
    assert 90 <= counts[0] <= 182


def test_the_points_of_others_do_not_change_with_one_weight() -> None:
    """Also if that one becomes the heaviest by far, or nearly nothing."""
    weights = [1, 2, 4, 4, 4, 4, 4, 8, 10, 20]
    usual = points_by_weight(nodes(*weights), 128)
    for weight in (0.01, 0.5, 4, 16, 100):
        counts = points_by_weight(nodes(*weights[:-1], weight), 128)
        assert counts[:-1] == usual[:-1]


def test_the_points_of_others_do_not_change_with_the_median_unless_it_goes_a_long_way() -> None:
    usual = points_by_weight(nodes(8, 9, 10, 11, 12), 128)
    for weight in (5, 8, 9.5, 11, 30):
        counts = points_by_weight(nodes(8, 9, weight, 11, 12), 128)
        assert counts[:2] + counts[3:] == usual[:2] + usual[3:]
    assert points_by_weight(nodes(8, 3, 2, 1, 12), 128)[0] > usual[0]


@given(st.lists(st.floats(0, allow_infinity=False), min_size=1, max_size=60))
@settings(max_examples=200)
def test_points_are_bounded_for_any_weights(weights: list[float]) -> None:
    counts = points_by_weight(nodes(*weights), 128)
    assert sum(counts) <= max(2.83 * 128 * len(counts), 23_171) + len(counts)
    if any(weights):
        assert [count > 0 for count in counts] == [weight > 0 for weight in weights]


steps = st.lists(
    st.dictionaries(st.integers(0, 30), st.sampled_from([0.5, 1, 1, 2, 3, 100]), min_size=1, max_size=20),
    min_size=1,
    max_size=6,
)


@given(steps)
@settings(max_examples=60)
def test_the_ring_follows_from_the_set_and_not_from_its_history(history: list[dict[int, float]]) -> None:
    policy = RingHash(points=16)
    some = keys(150)
    for weights in history:
        among = tuple(node(number, weight) for number, weight in sorted(weights.items()))
        found = owners(policy, among, some)
        assert found == owners(RingHash(points=16), among[::-1], some)


def test_two_hosts_at_the_same_point_are_told_apart_by_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them has the keys before it must not depend on who came first."""
    monkeypatch.setattr("lbclient.policies.ring.xxh64_intdigest", lambda name: int(name.rpartition(b"_")[2]) << 40)
    a, b, c = nodes(1, 1, 1)
    for first, second in [((a,), (a, b, c)), ((b,), (c, b, a)), ((a, b, c), (a, c))]:
        ring = Ring(8)
        ring.update(first)
        ring.find(0)
        ring.update(second)
        assert [ring.find(point << 40) for point in range(8)] == [a] * 8
        assert {ring.find(1 << 63)} == {a}


def test_a_server_that_left_and_came_back_is_the_new_node() -> None:
    among = nodes(1, 1, 1)
    policy = RingHash()
    settle(policy, among)
    again = nodes(1, 1, 1)
    for key in KEYS[:50]:
        assert policy.pick(again, call(key)) in again


def placed_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points were hashed since; `[0]` is the count."""
    count = [0]
    hashed: Any = __import__("xxhash").xxh64_intdigest

    def counting(name: bytes) -> int:
        count[0] += 1
        digest: int = hashed(name)
        return digest

    monkeypatch.setattr("lbclient.policies.ring.xxh64_intdigest", counting)
    return count


def test_one_change_among_a_thousand_touches_the_points_of_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    among = nodes(*[1] * 1000)
    policy = RingHash()
    settle(policy, among)
    count = placed_by(monkeypatch)
    assert settle(policy, among[:-1]) == 1
    assert count[0] == 128
    assert settle(policy, (*among[:-1], node(999, 2))) == 1
    assert count[0] == 128 + 256


def test_many_changes_are_worked_in_bit_by_bit_and_those_who_left_are_never_picked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    among = nodes(*[1] * 1000)
    policy = RingHash()
    settle(policy, among[:900])
    rest = among[100:]
    count = placed_by(monkeypatch)
    picks = 0
    while picks == 0 or policy._layout.behind:
        before = count[0]
        assert policy.pick(rest, call(f"user-{picks}")) in rest
        assert count[0] - before <= 2048 + 128
        assert {policy._layout.find(point << 53) for point in range(0, 2048, 10)} <= {*rest, None}
        picks += 1
    assert picks > 5
    assert owners(policy, rest, KEYS[:500]) == owners(RingHash(), rest, KEYS[:500])


def test_a_heavy_host_is_worked_in_bit_by_bit_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has as many points as a hundred others."""
    among = nodes(*[1] * 400)
    policy = RingHash()
    settle(policy, among)
    count = placed_by(monkeypatch)
    heavy = (*among, node(400, 100))
    policy.pick(heavy, call("any"))
    assert 0 < count[0] <= 2048
    settle(policy, heavy)
    assert owners(policy, heavy, KEYS[:500]) == owners(RingHash(), heavy, KEYS[:500])


def test_a_copy_has_the_options_and_no_nodes() -> None:
    """A policy object is copied for each route: the copy must not hold on to nodes, nor take long."""
    policy = RingHash(points=5)
    settle(policy, nodes(1, 1))
    copied = copy.deepcopy(policy)
    assert copied._layout.nodes == ()
    others = nodes(1, 1, 1)
    assert owners(copied, others, KEYS[:100]) == owners(RingHash(points=5), others, KEYS[:100])


@pytest.mark.parametrize("points", [0, -1, 1.5, True, "128"])
def test_a_wrong_number_of_points_is_refused(points: Any) -> None:
    with pytest.raises(ValueError, match=f"points must be a whole number, 1 or more, not {points!r}"):
        RingHash(points=points)


def test_a_request_without_a_key_goes_anywhere_if_the_policy_has_a_key() -> None:
    among = nodes(1, 1, 1)
    policy = RingHash(lambda _: None, rng=random.Random(1))
    assert {policy.pick(among, call(None)) for _ in range(50)} == set(among)
