"""Slow start: the factor by Envoy's formula, and the share of a new node with each policy, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from discovery import Endpoint
from lbclient import Ejection, LeastRequest, PowerOfTwo, Random, RoundRobin, SlowStart, peak_ewma
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.policies import Policy

WINDOW = 100.0
RATE = 200.0  # requests a second
SERVICE = 0.2  # seconds that an answer takes on average

POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": lambda: RoundRobin(rng=random.Random(1)),
    "random": lambda: Random(rng=random.Random(1)),
    "least_request": lambda: LeastRequest(rng=random.Random(1)),
    "power_of_two": lambda: PowerOfTwo(rng=random.Random(1)),
    "peak_ewma": lambda: PowerOfTwo(load=peak_ewma, rng=random.Random(1)),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def endpoints(*numbers: int, **more: Any) -> list[Endpoint]:
    return [Endpoint(host=f"10.0.0.{number}", port=80, **more) for number in numbers]


class World:
    """Requests that come at random and take a while, as at a service under load."""

    def __init__(self, policy: Callable[[], Policy], *numbers: int, limit: int = 0, **slow_start: Any) -> None:
        slow = SlowStart(**{"window": WINDOW, **slow_start})
        self.rng = random.Random(7)
        self.now = 1000.0
        self.refused = 0
        self._ends: list[tuple[float, int, Attempt]] = []
        self.balancer = Balancer(
            "users",
            policy,
            slow_start=slow,
            limit_per_node=limit,
            ejection=Ejection(jitter=0),
            rng=random.Random(3),
        )
        self.update(endpoints(*numbers))

    def update(self, found: list[Endpoint]) -> None:
        self.balancer.update(found, self.now)

    def node(self, number: int) -> Node:
        return self.balancer.nodes[f"10.0.0.{number}:80"]

    def run(self, seconds: float) -> dict[int, float]:
        """The share of each node, times their number: 1 is a fair share."""
        found: Counter[int] = Counter()
        until = self.now + seconds
        while (now := self.now + self.rng.expovariate(RATE)) < until:
            self.now = now
            while self._ends and self._ends[0][0] <= now:
                self._end(heapq.heappop(self._ends))
            node = self.balancer.pick(Call(now=now))
            if node is None:
                self.refused += 1
                continue
            found[int(node.endpoint.host.rpartition(".")[2])] += 1
            self.begin(node)
        self.now = until
        count = len(self.balancer.nodes)
        return {number: times * count / found.total() for number, times in sorted(found.items())}

    def begin(self, node: Node) -> Attempt:
        attempt = Attempt(node, "test", lambda: None)
        attempt.started_at = self.now
        heapq.heappush(self._ends, (self.now + SERVICE * self.rng.uniform(0.5, 1.5), node.requests, attempt))
        return attempt

    def _end(self, ended: tuple[float, int, Attempt]) -> None:
        at, _, attempt = ended
        attempt.elapsed = at - attempt.started_at
        attempt.land()
        self.balancer.observe(attempt, Outcome.SUCCESS, at)

    def eject(self, number: int) -> None:
        for _ in range(3):
            attempt = Attempt(self.node(number), "test", lambda: None)
            attempt.started_at = self.now
            attempt.land()
            self.balancer.observe(attempt, Outcome.CONNECT, self.now)
        assert self.node(number).ejected_at == self.now


@pytest.mark.parametrize(
    ("age", "aggression", "factor"),
    [
        (0, 1, 0.1),
        (5, 1, 0.1),
        (15, 1, 0.25),
        (30, 1, 0.5),
        (60, 1, 1.0),
        (90, 1, 1.0),
        (15, 2, 0.5),
        (15, 0.5, 0.1),
        (30, 0.5, 0.25),
    ],
)
def test_the_factor_is_envoys(age: float, aggression: float, factor: float) -> None:
    """Envoy, "Slow start mode": max(min_weight_percent, (max(age, 1) / window) ^ (1 / aggression)), 60 s here."""
    assert SlowStart(window=60, aggression=aggression).factor(age) == pytest.approx(factor)


def test_the_first_second_counts_as_one() -> None:
    assert SlowStart(window=2, floor=0.01).factor(0) == SlowStart(window=2, floor=0.01).factor(1) == 0.5


@every_policy
@pytest.mark.parametrize("number", [3, 10])
def test_a_new_node_gets_its_factor_of_a_fair_share_and_the_others_share_the_rest(
    policy: Callable[[], Policy], number: int
) -> None:
    world = World(policy, *range(1, number))
    world.run(2)
    world.update(endpoints(*range(number)))
    for age in (0, 25, 50, 75):
        expected = SlowStart(window=WINDOW).factor(age + 5)
        shares = world.run(10)
        assert shares[0] == pytest.approx(expected, rel=0.25, abs=0.03), age
        others = (number - shares[0]) / (number - 1)
        assert all(shares[other] == pytest.approx(others, rel=0.2) for other in range(1, number)), age
        world.now += 15
    assert world.run(20)[0] == pytest.approx(1, rel=0.15)


@every_policy
def test_the_floor_holds(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2, 3, floor=0.3, aggression=0.1)
    world.update(endpoints(0, 1, 2, 3))
    for _ in range(3):
        assert world.run(20)[0] == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize("policy", [made for name, made in POLICIES.items() if name != "round_robin"])
def test_heavy_new_nodes_get_their_factor_of_more(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2, floor=0.2, aggression=0.1)
    world.update([*endpoints(0, weight=2), *endpoints(1, 2)])
    assert world.run(30)[0] == pytest.approx(0.2 * 2 * 3 / 4, rel=0.15)


@pytest.mark.parametrize("unit", [1e-300, 1.7e308])
def test_shares_do_not_depend_on_how_large_the_weights_are(unit: float) -> None:
    world = World(POLICIES["round_robin"], 9, floor=0.2, aggression=0.1)
    world.update(endpoints(1, 2, weight=unit))
    world.now += WINDOW
    world.update(endpoints(0, 1, 2, weight=unit))
    assert world.run(30)[0] == pytest.approx(0.2, rel=0.15)


@every_policy
def test_what_is_there_from_the_beginning_is_not_warmed_up(policy: Callable[[], Policy]) -> None:
    world = World(policy, 0, 1, 2)
    assert all(share == pytest.approx(1, rel=0.2) for share in world.run(5).values())


@every_policy
def test_a_set_that_is_all_new_is_not_slowed(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2)
    world.update(endpoints(3, 4, 5))
    assert all(share == pytest.approx(1, rel=0.2) for share in world.run(5).values())
    world.now += 20
    world.update(endpoints(3, 4, 5, 6))
    assert world.run(5)[6] == pytest.approx(1, rel=0.2)


@every_policy
def test_a_few_old_nodes_are_not_flooded(policy: Callable[[], Policy]) -> None:
    """Nine of ten are new: with a tenth of a share for each of them, the old one would have nine shares."""
    world = World(policy, 0)
    world.update(endpoints(*range(10)))
    assert world.run(20)[0] < 3.2


@every_policy
def test_half_of_the_nodes_may_be_new(policy: Callable[[], Policy]) -> None:
    world = World(policy, 5, 6, 7, 8, 9, floor=0.2, aggression=0.1)
    world.update(endpoints(*range(10)))
    shares = world.run(30)
    assert all(shares[new] == pytest.approx(0.2, rel=0.25) for new in range(5))
    assert all(shares[old] == pytest.approx(1.8, rel=0.15) for old in range(5, 10))


@every_policy
def test_a_node_back_from_its_ejection_is_warmed_up(policy: Callable[[], Policy]) -> None:
    world = World(policy, 0, 1, 2, 3)
    world.run(1)
    world.eject(0)
    assert 0 not in world.run(29.5)
    world.now += 1
    probe = world.balancer.pick(Call(now=world.now))
    assert probe is world.node(0)
    world.begin(probe)
    world.run(0.5)
    assert probe.ejected_at is None
    assert world.run(10)[0] == pytest.approx(0.1, abs=0.05)
    world.now += WINDOW
    assert world.run(10)[0] == pytest.approx(1, rel=0.15)


@every_policy
def test_updates_in_between_change_nothing(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2, 3, floor=0.2, aggression=0.1)
    world.update(endpoints(0, 1, 2, 3))
    found = 0.0
    for second in range(30):
        found += world.run(1).get(0, 0.0) / 30
        world.update([*endpoints(0), *endpoints(1, 2, 3, metadata={"second": str(second)})])
        world.balancer._regroup(world.now)
    assert found == pytest.approx(0.2, rel=0.25)


@every_policy
def test_one_node_takes_everything(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1)
    world.update(endpoints(0))
    assert world.run(1) == {0: 1}


@every_policy
def test_a_retry_goes_to_a_new_node_rather_than_to_none(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1)
    world.update(endpoints(0, 1))
    call = Call(now=world.now)
    call.tried = (world.node(1),)
    assert world.balancer.pick(call) is world.node(0)


@every_policy
def test_when_the_others_are_full_a_new_node_takes_what_it_can(policy: Callable[[], Policy]) -> None:
    """200 requests a second of 0.2 s are 40 at a time, and three nodes with 10 each take 30."""
    world = World(policy, 1, 2, 3, limit=10)
    world.update(endpoints(0, 1, 2, 3))
    shares = world.run(10)
    assert shares[0] > 0.6
    assert max(node.in_flight for node in world.balancer.nodes.values()) <= 10


@every_policy
def test_below_the_limit_a_new_node_keeps_to_its_share(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2, 3, limit=30)
    world.update(endpoints(0, 1, 2, 3))
    assert world.run(10)[0] == pytest.approx(0.1, abs=0.05)
    assert not world.refused


@every_policy
def test_one_that_left_during_its_slow_start_is_forgotten(policy: Callable[[], Policy]) -> None:
    world = World(policy, 1, 2)
    world.update(endpoints(0, 1, 2))
    world.run(1)
    world.update(endpoints(1, 2))
    assert all(share == pytest.approx(1, rel=0.2) for share in world.run(5).values())


def test_clients_do_not_come_to_a_new_server_all_at_once() -> None:
    """Of 200 clients that send one request each, about as many go to the new one as its share says."""
    took = 0
    for seed in range(200):
        balancer = Balancer(
            "users",
            lambda seed=seed: RoundRobin(rng=random.Random(seed)),  # type: ignore[misc]
            slow_start=SlowStart(window=WINDOW, floor=0.3),
            rng=random.Random(seed),
        )
        balancer.update(endpoints(1), 0.0)
        balancer.update(endpoints(0, 1), 10.0)
        for _ in range(4):
            took += balancer.pick(Call(now=10.0)) is balancer.nodes["10.0.0.0:80"]
    assert took == pytest.approx(200 * 4 * 0.3 / 2, rel=0.25)


@pytest.mark.parametrize("option", ["window", "aggression"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_window_and_aggression_are_numbers_above_0(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a number above 0, not ") as caught:
        SlowStart(**{option: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan"), "1", None, True])
def test_a_floor_is_above_0_and_at_most_1(value: Any) -> None:
    with pytest.raises(ValueError, match="floor must be above 0 and at most 1, not ") as caught:
        SlowStart(floor=value)
    assert repr(value) in str(caught.value)
