"""Updates, picks and outcomes, without sockets and with a clock of our own."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery import Endpoint
from lbclient import Ejection, RoundRobin
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome


def endpoints(*numbers: int, **more: Any) -> list[Endpoint]:
    return [Endpoint(host=f"10.0.0.{number}", port=80, **more) for number in numbers]


class World:
    """A balancer, a clock, and attempts that end at once."""

    def __init__(self, *numbers: int, **options: Any) -> None:
        options.setdefault("ejection", Ejection(jitter=0))
        self.balancer = Balancer("users", lambda: RoundRobin(random.Random(1)), **options)
        self.now = 1000.0
        self.update(endpoints(*numbers))

    def update(self, found: list[Endpoint]) -> list[Node]:
        return self.balancer.update(found, self.now)

    def node(self, number: int) -> Node:
        return self.balancer.nodes[f"10.0.0.{number}:80"]

    def begin(self, node: Node) -> Attempt:
        attempt = Attempt(node, "test", lambda: None)
        attempt.started_at = self.now
        return attempt

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.land()
        self.balancer.observe(attempt, outcome, self.now)

    def see(self, number: int, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.end(self.begin(self.node(number)), outcome)

    def pick(self, *tried: int) -> Node:
        call = Call(now=self.now)
        call.tried = tuple(self.node(number) for number in tried)
        node = self.balancer.pick(call)
        assert node is not None
        return node

    def full(self) -> bool:
        return self.balancer.pick(Call(now=self.now)) is None

    def picked(self, picks: int = 30) -> set[str]:
        return {self.pick().endpoint.host[-1] for _ in range(picks)}


DOWN = [Outcome.CONNECT] * 3


def test_an_update_reports_who_left_and_keeps_what_was_learned() -> None:
    world = World(1, 2, 3)
    second = world.node(2)
    second.requests = 7
    left = world.update(endpoints(2, 4, weight=5))
    assert {node.address for node in left} == {"10.0.0.1:80", "10.0.0.3:80"}
    assert all(node.left for node in left)
    assert world.node(2) is second
    assert (second.requests, second.weight, second.endpoint.weight) == (7, 5, 5)


def test_a_node_that_comes_back_is_a_new_one() -> None:
    world = World(1, 2)
    first = world.node(1)
    world.update(endpoints(2))
    world.update(endpoints(1, 2))
    assert world.node(1) is not first
    assert first.left
    assert not world.node(1).left


def test_weight_zero_gets_nothing_unless_there_is_nothing_else() -> None:
    world = World(1)
    world.update([*endpoints(1), *endpoints(2, weight=0)])
    assert world.picked() == {"1"}
    world.update(endpoints(2, 3, weight=0))
    assert world.picked() == {"2", "3"}


def test_tried_nodes_are_excluded_and_the_ejected_ones_are_the_last_resort() -> None:
    world = World(1, 2, 3)
    world.see(3, *DOWN)
    assert {world.pick(1).address for _ in range(20)} == {"10.0.0.2:80"}
    assert world.pick(1, 2) is world.node(3)
    assert not world.balancer.exhausted((world.node(1), world.node(2)))
    assert world.balancer.exhausted((world.node(1), world.node(2), world.node(3)))


@pytest.mark.parametrize(
    ("outcomes", "out"),
    [
        ([Outcome.CONNECT] * 2, False),
        ([Outcome.CONNECT] * 3, True),
        ([Outcome.CONNECT, Outcome.CONNECT, Outcome.SUCCESS, Outcome.CONNECT], False),
        ([Outcome.CONNECT, Outcome.OURS, Outcome.CONNECT, Outcome.LEFT, Outcome.CONNECT], True),
        ([Outcome.OURS] * 9, False),
        ([Outcome.OVERLOAD] * 9, False),
        ([Outcome.FAULT] * 4, False),
        ([Outcome.FAULT] * 5, True),
    ],
)
def test_three_connect_failures_in_a_row_take_a_node_out_and_five_others(
    outcomes: list[Outcome], out: bool
) -> None:
    world = World(1, 2)
    world.see(1, *outcomes)
    assert world.picked() == ({"2"} if out else {"1", "2"})
    assert world.node(1).state == ("ejected" if out else "ready")


def test_the_last_node_that_answers_stays_in_whatever_it_says() -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    world.see(2, *[Outcome.ERROR] * 20)
    assert world.picked() == {"2"}
    world.update(endpoints(1))
    assert world.picked() == {"1"}, "an ejected node is better than none"


def test_when_all_fail_to_connect_requests_go_to_all_and_the_first_that_answers_takes_them() -> None:
    world = World(1, 2, 3)
    for number in (1, 2, 3):
        world.see(number, *DOWN)
    assert world.picked() == {"1", "2", "3"}
    world.see(2, Outcome.SUCCESS)
    assert world.picked() == {"2"}


def test_one_probe_brings_it_back() -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    world.now += 29.9
    assert world.picked() == {"2"}
    world.now += 0.1
    probe = world.begin(world.pick())
    assert probe.node is world.node(1)
    assert probe.node.state == "probing"
    assert world.picked() == {"2"}, "one probe at a time"
    world.end(probe, Outcome.SUCCESS)
    assert world.picked() == {"1", "2"}


@pytest.mark.parametrize("outcome", [Outcome.CONNECT, Outcome.FAULT, Outcome.BROKEN])
def test_a_failed_probe_doubles_the_time_up_to_the_cap(outcome: Outcome) -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    for seconds in (30, 60, 120, 240, 300, 300):
        node = world.node(1)
        assert node.ejected_until == world.now + seconds
        world.now = node.ejected_until
        probe = world.begin(world.pick())
        assert probe.node is node
        world.end(probe, outcome)


@pytest.mark.parametrize("outcome", [Outcome.OURS, Outcome.LEFT])
def test_a_probe_that_showed_nothing_is_repeated_at_once(outcome: Outcome) -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    world.now += 30
    world.end(world.begin(world.pick()), outcome)
    assert world.pick() is world.node(1)


def test_an_answer_to_an_older_attempt_does_not_bring_a_node_back() -> None:
    """A server that stopped listening still answers on the connections it has."""
    world = World(1, 2)
    old = world.begin(world.node(1))
    world.now += 1
    world.see(1, *DOWN)
    world.now += 1
    world.end(old, Outcome.SUCCESS)
    assert world.picked() == {"2"}


def test_weight_zero_gets_no_probe_until_it_has_a_weight_again() -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    world.update([*endpoints(1, weight=0), *endpoints(2)])
    world.now += 31
    assert world.picked() == {"2"}
    world.update(endpoints(1, 2))
    assert world.pick() is world.node(1)


def test_earlier_ejections_are_forgotten_while_healthy() -> None:
    world = World(1, 2)
    for _ in range(3):
        world.see(1, *DOWN)
        world.now = world.node(1).ejected_until or 0
        world.end(world.begin(world.pick()), Outcome.SUCCESS)
    assert world.node(1).ejections == 3
    world.now += 65
    world.see(1, *DOWN)
    assert world.node(1).ejected_until == world.now + 60, "two of three forgotten in 65 s"


def test_a_change_of_description_keeps_a_node_out_and_a_return_lets_it_in() -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    world.update(endpoints(1, 2, weight=9))
    assert world.picked() == {"2"}
    world.update(endpoints(2))
    world.update(endpoints(1, 2))
    assert world.picked() == {"1", "2"}


def waited(world: World, seconds: float, outcome: Outcome, *, connecting: float = 0.0) -> None:
    attempt = world.begin(world.node(1))
    world.now += seconds
    attempt.elapsed = seconds
    if connecting:
        attempt.sent_at = attempt.started_at + connecting
    world.end(attempt, outcome)


def test_an_attempt_that_was_given_up_shows_how_slow_a_node_is_at_least_and_no_fault() -> None:
    world = World(1, 2)
    waited(world, 0.9, Outcome.OURS)
    assert world.node(1).latency is None, "a caller who gives up at once does not make it a fast one"
    waited(world, 5, Outcome.OURS)
    assert world.node(1).latency == 5
    waited(world, 2, Outcome.OURS)
    assert world.node(1).latency == 5, "it may be slower than that"
    world.now += 60
    waited(world, 2, Outcome.OURS)
    assert world.node(1).latency == 2, "what was seen a minute ago has faded"
    assert (world.node(1).failing, world.node(1).failures) == (0, 0)


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.FAULT, Outcome.CONNECT, Outcome.LEFT])
def test_a_failure_says_nothing_of_the_latency(outcome: Outcome) -> None:
    world = World(1, 2)
    waited(world, 0.2, Outcome.SUCCESS)
    waited(world, 5, outcome)
    assert world.node(1).latency == 0.2


def test_the_time_for_connecting_is_no_latency() -> None:
    world = World(1, 2)
    waited(world, 0.3, Outcome.SUCCESS, connecting=0.25)
    assert world.node(1).latency == pytest.approx(0.05)


def test_the_limit_of_a_node_is_kept() -> None:
    world = World(1, 2, limit_per_node=2)
    begun = [world.begin(world.pick()) for _ in range(4)]
    assert {attempt.node.in_flight for attempt in begun} == {2}
    assert world.full()
    begun[0].land()
    assert world.pick() is begun[0].node


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sets(st.integers(1, 6), min_size=1)),
        st.tuples(st.just("try"), st.sampled_from(Outcome)),
        st.tuples(st.just("wait"), st.floats(0, 400)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=300)
def test_whatever_happens_a_listed_node_is_picked_and_counts_return_to_zero(steps: list[tuple[str, Any]]) -> None:
    world = World(1, 2, 3)
    under_way: list[tuple[Attempt, Outcome]] = []
    for kind, value in steps:
        if kind == "update":
            world.update(endpoints(*value))
        elif kind == "wait":
            world.now += value
            for attempt, outcome in under_way:
                world.end(attempt, outcome)
            under_way.clear()
        else:
            under_way.append((world.begin(world.pick()), value))
        balancer = world.balancer
        assert balancer.policy.pick(balancer.usable, Call()).address in balancer.nodes
        assert all(route.in_flight == sum(n.in_flight for n in route.nodes) for route in balancer.routes)
        inside = [node for node in balancer.nodes.values() if node.ejected_at is None]
        assert set(balancer.usable) == set(inside or balancer.nodes.values())
    for attempt, outcome in under_way:
        world.end(attempt, outcome)
    assert all(not node.in_flight and not node.attempts for node in world.balancer.nodes.values())


def test_connect_failures_keep_no_request_away_so_that_three_of_them_are_soon_together() -> None:
    world = World(1, 2)
    world.see(1, Outcome.CONNECT, Outcome.CONNECT)
    assert (world.node(1).failing, world.node(1).failures) == (0, 2)


def test_a_hundred_and_fifty_priorities_keep_a_policy_each() -> None:
    found = [Endpoint(host="10.0.0.1", port=n, priority=n) for n in range(1, 151)]
    balancer = Balancer("users", RoundRobin)
    balancer.update(found, 0.0)
    policies = [route.policy for route in balancer.routes]
    assert len({id(policy) for policy in policies}) == 150
    balancer.update(found[::-1], 1.0)
    assert [route.policy for route in balancer.routes] == policies
    for n in range(300):
        balancer.update([Endpoint(host="10.0.0.1", port=1, priority=n)], 2.0)
    assert len(balancer._routes._policies) <= 102


def test_a_failure_where_nothing_else_is_left_makes_no_routes_anew() -> None:
    world = World(1, 2)
    world.see(1, *DOWN)
    before = world.balancer.routes
    world.see(1, Outcome.FAULT, Outcome.OURS)
    assert world.balancer.routes is before
