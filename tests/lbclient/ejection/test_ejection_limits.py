"""How many nodes may be out, for how long, and what is said about it."""

from __future__ import annotations

import logging

import pytest
from ejection_rig import World, endpoints

from lbclient import Routing
from lbclient.outcome import Outcome

DOWN = [Outcome.CONNECT] * 3
BAD = [Outcome.ERROR] * 5


@pytest.mark.parametrize(
    ("nodes", "share", "most"),
    [
        (2, 0.1, 1),
        (10, 0.1, 1),
        (19, 0.1, 1),
        (20, 0.1, 2),
        (25, 0.1, 2),
        (100, 0.29, 29),
        (10, 0.0, 1),
        (10, 1.0, 9),
    ],
)
def test_no_more_than_a_share_of_the_nodes_is_taken_out_and_one_always(
    nodes: int, share: float, most: int
) -> None:
    """Counted with the candidate; and never the last one."""
    world = World(*range(nodes), max_ejected=share, routing=Routing(overprovisioning=1))
    for number in range(nodes):
        world.see(number, *BAD)
    assert len(world.out()) == most


def test_one_goes_as_soon_as_there_is_room() -> None:
    world = World(1, 2, 3)
    world.see(1, *BAD)
    world.see(2, *BAD)
    assert world.out() == {1}
    world.end(world.probe(1), Outcome.SUCCESS)
    world.see(2, Outcome.ERROR)
    assert world.out() == {2}, "it never stopped to fail"


def test_failed_connections_are_exempt_but_count() -> None:
    world = World(*range(20))
    for number in range(5):
        world.see(number, *DOWN)
    world.see(6, *BAD)
    assert world.out() == set(range(5))


def test_who_left_makes_room() -> None:
    world = World(1, 2, 3)
    world.see(1, *BAD)
    world.update(2, 3)
    world.see(2, *BAD)
    assert world.out() == {2}


def test_the_last_node_stays_in_even_if_others_are_there_that_cannot_be_used() -> None:
    world = World(1, 2, 3, max_ejected=1.0)
    world.balancer.set_health(world.node(2), healthy=False, now=world.now)
    world.balancer.set_leaving(world.node(3), leaving=True, now=world.now)
    world.see(1, *BAD)
    assert world.out() == set()
    world.balancer.set_leaving(world.node(3), leaving=False, now=world.now)
    world.see(1, Outcome.ERROR)
    assert world.out() == {1}


def test_weight_zero_is_nobody_who_could_stand_in() -> None:
    world = World(1, 2)
    world.balancer.update([*endpoints(1), *endpoints(2, weight=0)], world.now)
    world.see(1, *BAD)
    assert world.out() == set()


@pytest.mark.parametrize(
    ("others", "spared"),
    [
        ([101, 102, 103], True),
        ([101, 102, 103, 104], True),
        ([101, 102], False),
    ],
)
def test_the_last_of_a_priority_goes_only_if_the_others_can_take_all(others: list[int], spared: bool) -> None:
    """One of the others is down: 1.4 x 2/3 = 93 %, 1.4 x 3/4 = 105 %, 1.4 x 1/2 = 70 %; or none: 100 %."""
    world = World(1, *others, max_ejected=1.0)
    if len(others) != 3:
        world.balancer.set_health(world.node(others[-1]), healthy=False, now=world.now)
    world.see(1, *BAD)
    assert world.out() == ({1} if spared else set())


def test_the_last_of_a_priority_that_fails_to_connect_goes_in_any_case() -> None:
    world = World(1, 101, 102)
    world.balancer.set_health(world.node(101), healthy=False, now=world.now)
    world.see(1, *DOWN)
    assert world.out() == {1}
    assert world.picked() == {102}


# For how long


def test_the_jitter_makes_it_longer_and_never_shorter() -> None:
    times = set()
    for number in range(40):
        world = World(1, 2, jitter=0.1)
        for _ in range(number):
            world.balancer._random()
        world.see(1, *DOWN)
        until = world.node(1).ejected_until
        assert until is not None
        times.add(until - world.now)
    assert all(30 <= seconds <= 33 for seconds in times)
    assert max(times) - min(times) > 2


def test_a_failed_probe_doubles_the_time_up_to_the_longest() -> None:
    world = World(1, 2, base=10, cap=50)
    world.see(1, *BAD)
    for seconds in (10, 20, 40, 50, 50):
        assert world.node(1).ejected_until == world.now + seconds
        world.end(world.probe(1), Outcome.ERROR)


def test_a_time_out_is_forgotten_for_each_healthy_one() -> None:
    world = World(1, 2, base=10)
    for _ in range(3):
        world.see(1, *BAD)
        world.end(world.probe(1), Outcome.SUCCESS)
    assert world.node(1).ejections == 3
    world.now += 25
    world.see(1, *BAD)
    assert world.node(1).ejected_until == world.now + 20, "two of three are forgotten"


# What is said


def test_each_ejection_says_why_and_for_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient.ejection")
    world = World(1, 2)
    attempt = world.begin(1)
    world.see(1, *BAD[1:])
    attempt.error = "ServerDisconnectedError: gone"
    world.end(attempt, Outcome.FAULT)
    expected = "5 failures in a row, the last: ServerDisconnectedError: gone"
    assert world.node(1).as_dict(world.now)["ejected_because"] == expected
    assert world.node(1).as_dict(world.now)["ejected_for"] == 30
    world.end(world.probe(1), Outcome.ERROR)
    assert world.node(1).as_dict(world.now)["ejected_because"] == "its probe failed: error"
    world.end(world.probe(1), Outcome.SUCCESS)
    assert world.node(1).as_dict(world.now)["ejected_because"] is None
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"users: s1:80 is ejected for 30 s: {expected}"),
        ("WARNING", "users: s1:80 is ejected for 60 s: its probe failed: error"),
        ("INFO", "users: s1:80 is back in service, 60 s after it last failed"),
    ]


def test_counters_say_how_often_which_rule_applied() -> None:
    world = World(1, 2)
    zero = dict.fromkeys(
        ("connect_failures", "failures", "gateway_failures", "success_rate", "failure_rate", "probe"), 0
    )
    assert world.counts == {"ejections": zero, "would_have_ejected": zero, "restored": 0}
    world.see(1, *DOWN)
    world.end(world.probe(1), Outcome.FAULT)
    world.end(world.probe(1), Outcome.SUCCESS)
    world.see(1, *BAD)
    assert world.counts["ejections"] == zero | {"connect_failures": 1, "failures": 1, "probe": 1}
    assert world.counts["restored"] == 1


def test_without_enforcement_nobody_is_out_but_it_is_said_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(1, 2, enforce=False)
    world.see(1, *BAD * 10)
    world.see(2, *DOWN * 10)
    assert world.out() == set()
    assert world.picked() == {1, 2}
    said = [message for message in caplog.messages if "ejected" in message]
    assert said == [
        "users: s1:80 would have been ejected: 5 failures in a row, the last: error",
        "users: s2:80 would have been ejected: 3 failed connections in a row, the last: connect",
    ]
    assert sum(world.counts["ejections"].values()) == 0
    assert {rule: n for rule, n in world.counts["would_have_ejected"].items() if n} == {
        "connect_failures": 1,
        "failures": 1,
    }
    world.now += 30
    world.see(1, Outcome.ERROR)
    assert world.counts["would_have_ejected"]["failures"] == 2


# How it comes back


def test_a_node_that_is_back_gets_its_share_bit_by_bit_without_being_asked_to() -> None:
    world = World(*range(10))
    world.see(0, *DOWN)
    world.end(world.probe(0), Outcome.SUCCESS)

    def share(seconds: float) -> float:
        world.now += seconds
        return sum(world.pick() is world.node(0) for _ in range(1000)) / 100

    assert share(1) == pytest.approx(0.1, abs=0.03)
    assert share(4) == pytest.approx(0.5, abs=0.1)
    assert share(5) == pytest.approx(1.0, abs=0.01)


def test_without_a_slow_start_it_is_back_at_once() -> None:
    world = World(*range(10), slow_start=None)
    world.see(0, *DOWN)
    world.end(world.probe(0), Outcome.SUCCESS)
    assert sum(world.pick() is world.node(0) for _ in range(1000)) == 100


@pytest.mark.parametrize("what", ["health", "leaving"])
def test_a_node_that_is_healthy_again_or_stays_after_all_has_a_slow_start(what: str) -> None:
    world = World(*range(10))
    for number in range(10):
        world.see(number, Outcome.SUCCESS)
    node = world.node(0)
    if what == "health":
        world.balancer.set_health(node, healthy=False, now=world.now)
        assert 0 not in world.picked()
        world.balancer.set_health(node, healthy=True, now=world.now)
    else:
        world.balancer.set_leaving(node, leaving=True, now=world.now)
        assert 0 not in world.picked()
        world.balancer.set_leaving(node, leaving=False, now=world.now)
    assert sum(world.pick() is node for _ in range(1000)) == pytest.approx(10, abs=3)


def test_a_new_node_that_had_to_be_found_healthy_first_is_just_new() -> None:
    world = World(*range(10))
    node = world.node(0)
    world.balancer.set_health(node, healthy=False, now=world.now)
    world.balancer.set_health(node, healthy=True, now=world.now)
    assert sum(world.pick() is node for _ in range(1000)) == 100


def test_picks_take_the_short_way_while_nothing_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(*range(10))
    monkeypatch.setattr(world.balancer, "_pick_another", None)
    world.picked()
    world.see(0, *DOWN)
    world.picked()
    world.now += 30
    assert world.pick() is world.node(0)
    world.see(0, Outcome.SUCCESS)
    world.now += 10
    assert len(world.picked()) == 10


def test_a_health_check_ends_an_ejection_for_failed_connections_and_no_other() -> None:
    world = World(1, 2, 3)
    world.see(1, *DOWN)
    world.balancer.health_confirmed(world.node(1), world.now)
    assert world.out() == set()
    world.see(2, *BAD)
    world.balancer.health_confirmed(world.node(2), world.now)
    assert world.out() == {2}, "the check lies"
    world.end(world.probe(2), Outcome.CONNECT)
    world.balancer.health_confirmed(world.node(2), world.now)
    assert world.out() == {2}, "nor does it when the probe could not even connect"
    world.see(3, *DOWN[1:])
    world.balancer.health_confirmed(world.node(3), world.now)
    world.see(3, *DOWN[1:])
    assert world.out() == {2}, "that one could connect in between"


def test_a_node_that_left_is_not_touched_any_more() -> None:
    world = World(1, 2)
    node, attempt = world.node(1), world.begin(1)
    world.update(2)
    world.balancer.health_confirmed(node, world.now)
    world.balancer.set_health(node, healthy=False, now=world.now)
    world.balancer.set_leaving(node, leaving=True, now=world.now)
    assert (node.healthy, node.leaving, node.out) == (True, False, False)
    for _ in range(9):
        world.balancer.observe(attempt, Outcome.FAULT, world.now)
    assert node.ejected_at is None
