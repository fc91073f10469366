"""Failures in a row: which outcomes count, what resets them, and bodies that break off after a good head."""

from __future__ import annotations

import random

import pytest
from ejection_rig import World

from lbclient.outcome import Outcome

SUCCESS, ERROR, GATEWAY, OVERLOAD = Outcome.SUCCESS, Outcome.ERROR, Outcome.GATEWAY, Outcome.OVERLOAD
CONNECT, LEFT, FAULT = Outcome.CONNECT, Outcome.LEFT, Outcome.FAULT
TIMEOUT, BROKEN, OURS = Outcome.TIMEOUT, Outcome.BROKEN, Outcome.OURS


@pytest.mark.parametrize(
    ("outcomes", "rule"),
    [
        # Failed connections
        ([CONNECT] * 3, "connect_failures"),
        ([CONNECT] * 2, None),
        ([CONNECT, CONNECT, SUCCESS, CONNECT, CONNECT], None),
        *[([CONNECT, CONNECT, answer, CONNECT, CONNECT], None) for answer in (ERROR, GATEWAY, OVERLOAD)],
        *[([CONNECT, CONNECT, other, CONNECT], "connect_failures") for other in (FAULT, TIMEOUT, BROKEN)],
        *[([CONNECT, CONNECT, nothing, CONNECT], "connect_failures") for nothing in (OURS, LEFT)],
        # Failures
        *[([outcome] * 4, None) for outcome in (ERROR, GATEWAY, FAULT, TIMEOUT, BROKEN)],
        ([ERROR] * 5, "failures"),
        ([GATEWAY, FAULT, TIMEOUT, BROKEN, ERROR], "failures"),
        ([ERROR] * 4 + [SUCCESS] + [ERROR] * 4, None),
        *[([ERROR] * 4 + [other] + [ERROR], "failures") for other in (OVERLOAD, OURS, LEFT, CONNECT)],
        *[([outcome] * 50, None) for outcome in (OVERLOAD, OURS, LEFT, SUCCESS)],
        # Gateway failures
        *[([outcome] * 5, "gateway_failures") for outcome in (GATEWAY, FAULT, TIMEOUT, BROKEN)],
        ([GATEWAY] * 4 + [OVERLOAD, OURS, GATEWAY], "gateway_failures"),
    ],
)
def test_which_rule_takes_a_node_out(outcomes: list[Outcome], rule: str | None) -> None:
    world = World(1, 2, success_rate_deviations=None)
    world.see(1, *outcomes)
    assert world.out() == ({1} if rule else set())
    assert {name: count for name, count in world.counts["ejections"].items() if count} == (
        {rule: 1} if rule else {}
    )


def test_a_servers_own_500_resets_gateway_failures() -> None:
    world = World(1, 2, failures=None, gateway_failures=3)
    world.see(1, *[GATEWAY, GATEWAY, ERROR] * 5)
    assert world.out() == set()
    world.see(1, GATEWAY, GATEWAY, GATEWAY)
    assert world.out() == {1}


@pytest.mark.parametrize("off", [None, 0])
def test_a_rule_that_is_off_takes_nobody_out(off: int | None) -> None:
    world = World(1, 2, connect_failures=off, failures=off, gateway_failures=off)
    for outcome in Outcome:
        world.see(1, *[outcome] * 20)
    assert world.out() == set()


def test_what_began_before_a_node_came_back_does_not_take_it_out_again() -> None:
    """A thousand requests that hang in a server that was restarted all fail at once, and too late."""
    world = World(1, 2)
    hanging = [world.begin(1) for _ in range(20)]
    world.now += 1
    world.see(1, *[CONNECT] * 3)
    world.end(world.probe(1), SUCCESS)
    assert world.out() == set()
    world.now += 1
    for attempt in hanging:
        world.end(attempt, FAULT)
    assert world.out() == set()
    assert world.node(1).failures == 23
    world.see(1, *[FAULT] * 5)
    assert world.out() == {1}


def test_the_state_says_how_many_failed_in_a_row() -> None:
    world = World(1, 2)
    world.see(1, ERROR, ERROR, ERROR)
    assert world.node(1).as_dict(world.now)["failures_in_row"] == 3
    world.see(1, SUCCESS)
    assert world.node(1).as_dict(world.now)["failures_in_row"] == 0
    assert world.node(2).as_dict(world.now)["failures_in_row"] == 0


# Bodies that break off


def test_a_server_whose_every_body_breaks_off_is_taken_out() -> None:
    world = World(1, 2)
    for number in range(5):
        assert world.out() == set(), number
        attempt = world.begin(1)
        world.head(attempt)
        world.end(attempt, FAULT)
    assert world.out() == {1}
    assert world.counts["ejections"]["gateway_failures"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_and_so_it_is_with_many_under_way_in_any_order(seed: int) -> None:
    """Heads of later answers arrive before bodies of earlier ones break off."""
    rng = random.Random(seed)
    world = World(1, 2)
    heads = [world.begin(1) for _ in range(30)]
    bodies = []
    broken = 0
    while world.out() == set():
        if heads and (not bodies or rng.random() < 0.6):
            bodies.append(heads.pop())
            world.head(bodies[-1])
        else:
            world.end(bodies.pop(rng.randrange(len(bodies))), FAULT)
            broken += 1
    assert broken == 5


def test_a_body_that_is_good_to_its_end_resets_the_row() -> None:
    world = World(1, 2)
    for _ in range(10):
        for _ in range(4):
            attempt = world.begin(1)
            world.head(attempt)
            world.end(attempt, FAULT)
        good = world.begin(1)
        world.head(good)
        good.land()
    assert world.out() == set()


@pytest.mark.parametrize("bad", [3, 10])
def test_one_bad_body_among_many_good_ones_that_are_under_way_is_no_row(bad: int) -> None:
    """Ten are under way at any time, and each third or tenth breaks off."""
    world = World(1, 2, success_rate_deviations=None)
    under_way = []
    for number in range(300):
        attempt = world.begin(1)
        world.head(attempt)
        under_way.append((number, attempt))
        if len(under_way) > 10:
            ended, oldest = under_way.pop(0)
            if ended % bad:
                oldest.land()
            else:
                world.end(oldest, FAULT)
    assert world.out() == set()


def test_bad_bodies_and_failures_make_one_row() -> None:
    world = World(1, 2)
    for good in (world.begin(1) for _ in range(20)):
        world.head(good)
        good.land()
    world.see(1, ERROR, ERROR)
    attempt = world.begin(1)
    world.head(attempt)
    world.end(attempt, FAULT)
    world.see(1, ERROR)
    assert world.out() == set()
    attempt = world.begin(1)
    world.head(attempt)
    world.end(attempt, FAULT)
    assert world.out() == {1}


def test_a_body_that_breaks_off_is_one_failure_and_teaches_no_latency() -> None:
    world = World(1, 2)
    node = world.node(1)
    attempt = world.begin(1)
    attempt.elapsed = 0.25
    world.head(attempt)
    world.now += 60
    attempt.elapsed = 60.0
    world.end(attempt, FAULT)
    assert (node.latency, node.failures, node.requests) == (0.25, 1, 1)
    assert node.failing > 0
    world.end(attempt, FAULT)
    assert node.failures == 1, "it is said twice"


@pytest.mark.parametrize("head", [ERROR, GATEWAY, OVERLOAD])
def test_an_answer_that_was_a_failure_already_does_not_fail_again(head: Outcome) -> None:
    world = World(1, 2)
    for _ in range(2):
        attempt = world.begin(1)
        world.balancer.observe(attempt, head, world.now)
        world.end(attempt, FAULT)
    assert world.node(1).failures == 2
    assert world.node(1).as_dict(world.now)["failures_in_row"] == (0 if head is OVERLOAD else 2)


def test_an_answer_that_the_caller_does_not_read_to_its_end_is_no_failure() -> None:
    world = World(1, 2)
    for _ in range(9):
        attempt = world.begin(1)
        world.head(attempt)
        world.end(attempt, OURS)
    assert (world.out(), world.node(1).failures) == (set(), 0)


def test_bad_bodies_count_in_the_statistics_once() -> None:
    world = World(*range(10), failures=None, gateway_failures=None)
    for number in range(10):
        for _ in range(100):
            attempt = world.begin(number)
            world.head(attempt)
            if number == 3:
                world.end(attempt, FAULT)
            else:
                attempt.land()
    world.now += 10
    world.see(0, SUCCESS)
    assert world.out() == {3}
    assert world.node(3).ejected_because.startswith("0.0% of 100 requests succeeded")


def test_bodies_that_break_off_in_the_next_interval_do_not_fail_more_often_than_there_were_requests() -> None:
    world = World(*range(10), failures=None, gateway_failures=None)
    late = [world.begin(3) for _ in range(100)]
    for attempt in late:
        world.head(attempt)
    world.now += 10
    world.see(3, SUCCESS)
    for attempt in late:
        world.end(attempt, FAULT)
    for number in range(10):
        world.see(number, *[SUCCESS] * 120)
    world.now += 10
    world.see(0, SUCCESS)
    assert world.out() == set()


def test_a_probe_whose_body_breaks_off_has_failed_after_all() -> None:
    world = World(1, 2)
    world.see(1, *[CONNECT] * 3)
    probe = world.probe(1)
    world.head(probe)
    assert world.out() == set()
    world.end(probe, FAULT)
    assert world.out() == {1}
    assert world.node(1).ejected_until == world.now + 60
    assert world.counts["ejections"]["probe"] == 1


def test_unless_others_were_good_since_then() -> None:
    """It may be an endless stream."""
    world = World(1, 2)
    world.see(1, *[CONNECT] * 3)
    probe = world.probe(1)
    world.head(probe)
    world.see(1, SUCCESS)
    world.end(probe, FAULT)
    assert world.out() == set()
