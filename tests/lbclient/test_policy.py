"""Each policy's promise, on plain nodes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from discovery import Endpoint
from lbclient import LeastRequest, PowerOfTwo, Random, RoundRobin, in_flight, least_request
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import Policy

FACTORIES: list[Callable[[random.Random], Policy]] = [
    RoundRobin,
    Random,
    lambda rng: LeastRequest(rng=rng),
    lambda rng: PowerOfTwo(rng=rng),
    lambda rng: PowerOfTwo(load=in_flight, rng=rng),
]


def nodes(*weights: float) -> tuple[Node, ...]:
    return tuple(Node(Endpoint(host=f"10.0.0.{n}", port=80, weight=w)) for n, w in enumerate(weights, 1))


def shares(policy: Policy, among: tuple[Node, ...], picks: int = 20_000) -> list[float]:
    count = Counter(policy.pick(among, Call()).address for _ in range(picks))
    return [count[node.address] / picks for node in among]


@pytest.mark.parametrize("make", FACTORIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_equal_idle_nodes_share_evenly(make: Callable[[random.Random], Policy], size: int) -> None:
    assert shares(make(random.Random(5)), nodes(*[1] * size)) == pytest.approx([1 / size] * size, abs=0.02)


@pytest.mark.parametrize("make", FACTORIES)
def test_zero_weights_everywhere_are_no_error(make: Callable[[random.Random], Policy]) -> None:
    assert all(share > 0.2 for share in shares(make(random.Random(5)), nodes(0, 0, 0)))


@pytest.mark.parametrize("make", FACTORIES)
def test_the_same_seed_gives_the_same_picks(make: Callable[[random.Random], Policy]) -> None:
    among = nodes(1, 2, 3, 4)
    first, second = make(random.Random(9)), make(random.Random(9))
    assert [first.pick(among, Call()) for _ in range(50)] == [second.pick(among, Call()) for _ in range(50)]


def test_random_goes_by_weight_and_follows_an_update() -> None:
    policy = Random(random.Random(3))
    assert shares(policy, nodes(1, 3, 0, 6)) == pytest.approx([0.1, 0.3, 0, 0.6], abs=0.02)
    assert shares(policy, nodes(1, 1)) == pytest.approx([0.5, 0.5], abs=0.02)


def test_round_robin_keeps_its_position_across_updates_and_starts_anywhere() -> None:
    """Else the first node is flooded after each update (envoy#3271)."""
    policy = RoundRobin(random.Random(1))
    count = Counter(policy.pick(nodes(1, 1, 1), Call()).address for _ in range(300))
    assert max(count.values()) == 100
    starts = Counter(RoundRobin().pick(nodes(1, 1, 1), Call()).address for _ in range(200))
    assert len(starts) == 3


def test_least_request_takes_the_lowest_load_by_weight() -> None:
    among = nodes(1, 1, 4)
    among[0].in_flight, among[1].in_flight, among[2].in_flight = 3, 1, 6
    among[2].in_flight = 3
    assert LeastRequest().pick(among, Call()) is among[2], "3/4 is less than 1/1"
    among[2].in_flight = 6
    assert LeastRequest(load=in_flight).pick(among, Call()) is among[1]
    assert [least_request(node, 0) for node in among] == [4, 2, 2.5]


def test_power_of_two_never_picks_the_single_worst_and_draws_two_different_nodes() -> None:
    """With replacement the worst of n would get 1/n² (httplb, grpc-go least request)."""
    among = nodes(1, 1, 1, 1)
    among[2].in_flight = 10
    share = shares(PowerOfTwo(rng=random.Random(2)), among)
    assert share[2] == 0
    assert share[0] == pytest.approx(1 / 3, abs=0.02)


def test_power_of_two_has_the_distribution_of_the_better_of_two() -> None:
    """The k-th best of n is picked in 2(n-k)/(n(n-1)) of the draws."""
    among = nodes(*[1] * 5)
    for busy, node in enumerate(among):
        node.in_flight = busy
    expected = [2 * (5 - k) / (5 * 4) for k in range(1, 6)]
    assert shares(PowerOfTwo(rng=random.Random(2)), among) == pytest.approx(expected, abs=0.015)


def test_power_of_two_respects_weights_under_load() -> None:
    among, rng = nodes(1, 3), random.Random(4)
    policy = PowerOfTwo(rng=rng)
    for _ in range(400):
        policy.pick(among, Call()).in_flight += 1
    assert among[1].in_flight == pytest.approx(300, abs=2)
