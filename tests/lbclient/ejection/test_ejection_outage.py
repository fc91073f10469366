"""No node is usable, or too few: panic by name, and how the first server that is back is found."""

from __future__ import annotations

import logging
from typing import Any, Literal

import pytest
from ejection_rig import World, endpoints

from lbclient import Routing
from lbclient.outcome import Outcome

DOWN = [Outcome.CONNECT] * 3
Panic = Literal["all", "fail", "wait"]


def outage(panic: Panic, *numbers: int, **options: Any) -> World:
    """All fail to connect."""
    world = World(*numbers, routing=Routing(panic=panic), **options)
    for number in numbers:
        world.see(number, *DOWN)
    assert world.out() == set(numbers)
    return world


def test_requests_go_to_all_nodes_and_one_answer_restores_a_node() -> None:
    world = outage("all", 1, 2, 3, 4)
    assert world.picked() == {1, 2, 3, 4}
    world.see(1, Outcome.CONNECT)
    assert world.picked() == {1, 2, 3, 4}
    world.see(3, Outcome.ERROR)
    assert world.out() == {1, 2, 4}, "any answer: it can be reached"
    assert world.picked() == {3}


def test_the_others_are_probed_soon_after_the_first_one_is_back_and_the_time_is_not_doubled_before() -> None:
    """Or it would have all requests for half a minute, or for five after a long outage."""
    world = outage("all", *range(6))
    for _ in range(20):
        world.now += 1.1
        for number in range(6):
            world.end(world.probe(number), Outcome.CONNECT)
    world.see(0, Outcome.SUCCESS)
    due = [world.node(number).ejected_until or 0 for number in range(1, 6)]
    assert all(world.now <= at <= world.now + 10 for at in due)
    assert len(set(due)) == 5, "not all at once"
    world.end(world.probe(1), Outcome.CONNECT)
    assert world.node(1).ejected_until == world.now + 10
    world.see(2, Outcome.SUCCESS)
    world.see(3, Outcome.SUCCESS)
    world.end(world.probe(1), Outcome.CONNECT)
    assert world.node(1).ejected_until == world.now + 60, "as after the first time: it was out once"


def test_servers_that_come_back_one_by_one_are_found_soon_until_most_are_there_or_it_lasts_for_long() -> None:
    world = outage("all", *range(6))
    world.see(0, Outcome.SUCCESS)
    back_at = world.now
    while world.now < back_at + 280:
        world.end(world.probe(1), Outcome.CONNECT)
        assert world.node(1).ejected_until == world.now + 10
    world.now = back_at + 301
    world.end(world.probe(1), Outcome.CONNECT)
    assert world.node(1).ejected_until == world.now + 60, "it is no recovery any more"


def test_after_an_outage_of_many_nodes_there_are_ten_probes_a_second() -> None:
    world = outage("all", *range(300))
    world.see(0, Outcome.SUCCESS)
    world.end(world.probe(1), Outcome.CONNECT)
    assert world.node(1).ejected_until == pytest.approx(world.now + 29.9)


def test_whoever_is_back_is_found_within_a_second_whatever_the_policy_thinks_of_it() -> None:
    """A server that was killed with requests under way looks worse than those that only refuse connections."""
    world = outage("all", *range(6), jitter=0.1)
    for _ in range(100):
        for number in range(6):
            world.end(world.probe(number), Outcome.CONNECT)
        assert all((world.node(number).ejected_until or 0) <= world.now + 0.6 for number in range(6))


def test_an_outage_is_no_storm_of_probes() -> None:
    """Whoever is due twice a second is so for one request each."""
    world = outage("fail", 1, 2, 3)
    assert world.pick() is None
    world.now += 0.5
    probes = []
    for _ in range(10):
        node = world.pick()
        if node is not None:
            probes.append(world.begin(node))
    assert sorted(probe.node.address for probe in probes) == ["s1:80", "s2:80", "s3:80"]
    assert world.pick() is None
    for probe in probes:
        world.end(probe, Outcome.CONNECT)
    assert world.pick() is None
    world.now += 0.5
    assert world.pick() is not None


@pytest.mark.parametrize("panic", ["fail", "wait"])
def test_fail_and_wait_pick_nobody_until_a_probe_succeeds(panic: Panic) -> None:
    world = outage(panic, 1, 2)
    balancer = world.balancer
    assert (balancer.usable, balancer.fails_fast) == ((), panic == "fail")
    assert balancer.due_in(world.now) == 0.5
    assert world.pick() is None
    assert world.pick(1) is None
    world.end(world.probe(1), Outcome.SUCCESS)
    assert world.picked() == {1}
    assert not balancer.fails_fast


def test_who_waits_for_another_node_than_the_one_that_is_due_does_not_look_all_the_time() -> None:
    world = outage("wait", 1, 2)
    world.now += 1
    assert world.pick(1, 2) is None
    assert 0.01 < (world.balancer.due_in(world.now) or 0) < 0.5


def test_all_is_the_default_and_never_without_a_node() -> None:
    assert Routing().panic == "all"
    world = World(1, 2)
    for number in (1, 2):
        world.balancer.set_health(world.node(number), healthy=False, now=world.now)
    assert world.picked() == {1, 2}
    assert not world.balancer.fails_fast
    world.update()
    assert world.balancer.usable == ()


@pytest.mark.parametrize("panic", ["all", "fail", "wait"])
def test_when_all_are_unhealthy_it_is_a_panic_and_when_all_leave_it_is_none(panic: Panic) -> None:
    """Who is about to stop still answers."""
    world = World(1, 2, 3, routing=Routing(panic=panic))
    for number in (1, 2, 3):
        world.balancer.set_leaving(world.node(number), leaving=True, now=world.now)
    assert world.picked() == {1, 2, 3}
    world.see(1, *DOWN)
    world.balancer.set_health(world.node(2), healthy=False, now=world.now)
    assert world.picked() == {3}
    world.balancer.set_health(world.node(3), healthy=False, now=world.now)
    assert world.picked() == ({1, 2, 3} if panic == "all" else set())


@pytest.mark.parametrize("panic", ["fail", "wait"])
def test_too_few_are_as_good_as_none(panic: Panic) -> None:
    world = World(1, 2, 3, 4, routing=Routing(panic=panic, panic_threshold=0.5))
    for number in (1, 2):
        world.see(number, *DOWN)
    assert world.picked() == {3, 4}
    world.see(3, *DOWN)
    assert world.picked() == set()
    world.balancer.health_confirmed(world.node(3), world.now)
    assert 4 in world.picked()


def test_a_priority_that_panics_alone_goes_on_with_what_is_usable() -> None:
    """1.1 x 1/4 = 27 % and 1.1 x 1/2 = 55 % are less than all: 1/4 is below the threshold, 1/2 is not."""
    world = World(1, 2, 3, 4, 101, 102, routing=Routing(panic="fail", panic_threshold=0.5, overprovisioning=1.1))
    for number in (1, 2, 3, 101):
        world.see(number, *DOWN)
    assert world.picked(100) == {4, 102}
    world.see(102, *DOWN)
    assert world.picked() == set()


def test_panics_are_logged_once_when_they_begin_and_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient.routing")
    world = outage("wait", 1, 2)
    world.update(1, 2, zone="x")
    world.balancer.health_confirmed(world.node(1), world.now)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("lbclient.routing")] == [
        "users: panic, too few of 2 nodes are usable: requests wait",
        "users: panic is over",
    ]


def test_probes_of_an_outage_are_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    world = outage("all", 1, 2)
    caplog.clear()
    for _ in range(5):
        world.now += 1
        world.end(world.probe(1), Outcome.CONNECT)
    assert caplog.messages == []
    assert world.counts["ejections"]["probe"] == 5


@pytest.mark.parametrize("wrong", ["ALL", "", None, 1])
def test_a_panic_has_one_of_three_names(wrong: Any) -> None:
    with pytest.raises(ValueError, match="panic must be one of all, fail, wait, not ") as caught:
        Routing(panic=wrong)
    assert repr(wrong) in str(caught.value)


def test_all_that_are_due_at_once_are_probed_by_one_request_each() -> None:
    """Half of the nodes are due at once, and each pick takes the next."""
    world = World(*range(100))
    for number in range(50):
        world.see(number, *DOWN)
    world.now += 30
    taken = set()
    for _ in range(50):
        node = world.pick()
        assert node is not None
        taken.add(world.begin(node).node)
    assert {int(node.endpoint.host[1:]) for node in taken} == set(range(50))
    assert world.picked(100) == set(range(50, 100))


@pytest.mark.parametrize("panic", ["fail", "wait"])
def test_nodes_are_probed_soon_while_a_panic_keeps_requests_from_those_that_are_in(panic: Panic) -> None:
    """Nobody is served, although some are in: as bad as if there were none."""
    world = World(*range(10), routing=Routing(panic=panic, panic_threshold=0.5))
    for number in range(6):
        world.see(number, *DOWN)
    assert world.balancer.usable == ()
    assert world.pick() is None
    assert world.balancer.due_in(world.now) == 0.5
    world.end(world.probe(0), Outcome.CONNECT)
    assert world.node(0).ejected_until == world.now + 0.5
    world.end(world.probe(1), Outcome.SUCCESS)
    assert len(world.balancer.usable) == 5


@pytest.mark.parametrize("panic", ["all", "fail", "wait"])
def test_nodes_of_weight_zero_come_back_where_there_are_no_others(panic: Panic) -> None:
    """One is out, then both."""
    world = World(1, 2, routing=Routing(panic=panic))
    world.update(1, 2, weight=0)
    world.see(1, *DOWN)
    world.now += 29
    assert world.picked() == {2}
    world.end(world.probe(1), Outcome.SUCCESS)
    assert world.out() == set()
    for number in (1, 2):
        world.see(number, *DOWN)
    assert world.node(2).ejected_until == world.now + 0.5
    world.end(world.probe(2), Outcome.SUCCESS)
    assert world.picked() == {2}


@pytest.mark.parametrize("panic", ["fail", "wait"])
def test_a_node_of_weight_zero_comes_back_while_the_others_are_ill(panic: Panic) -> None:
    world = World(1, 2, routing=Routing(panic=panic))
    world.balancer.update([*endpoints(1), *endpoints(2, weight=0)], world.now)
    world.balancer.set_health(world.node(1), healthy=False, now=world.now)
    assert world.picked() == {2}
    world.see(2, *DOWN)
    assert world.picked() == set()
    world.end(world.probe(2), Outcome.SUCCESS)
    assert world.picked() == {2}
    world.see(2, *DOWN)
    world.balancer.set_health(world.node(1), healthy=True, now=world.now)
    world.now += 600
    assert world.picked() == {1}, "there is no need for it any more"


def test_thousands_that_go_down_and_come_back_are_taken_in_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """To make the routes anew takes 10 ms at 10 000 nodes: once for each of them, it would be all that is done."""
    world = World(*range(2000), jitter=0.1, routing=Routing(panic="wait"))
    balancer, made, regroup = world.balancer, 0, world.balancer._regroup

    def counted(*args: float, **options: bool) -> None:
        nonlocal made
        made += 1
        regroup(*args, **options)

    monkeypatch.setattr(balancer, "_regroup", counted)
    for number in range(2000):
        world.see(number, *DOWN)
        world.now += 0.0001
        if number != 1999:
            assert world.pick() is not None
    assert made <= 0.2 / 0.02 + 1
    assert 0 < (balancer.due_in(world.now) or 0) < 0.1, "who waits looks again when they are taken in"
    world.now += 0.02
    assert world.pick() is None
    assert (balancer.usable, len(world.out())) == ((), 2000)
    made = 0
    for number in range(2000):
        world.now += 0.0001
        balancer.health_confirmed(world.node(number), world.now)
    assert made <= 0.2 / 0.02 + 1
    world.now += 0.02
    world.pick()
    assert len(balancer.usable) == 2000
    world.see(7, *DOWN)
    world.now += 0.02
    world.see(7, Outcome.SUCCESS)
    world.see(8, *DOWN)
    assert world.balancer.as_dict(world.now)["usable"] == 1999, "who looks sees what is"


def test_a_single_node_of_thousands_is_taken_out_at_once() -> None:
    world = World(*range(2000))
    world.now += 1
    world.see(7, *DOWN)
    assert world.node(7) not in world.balancer.usable
    world.now += 30
    assert world.pick() is world.node(7)
    world.see(7, Outcome.SUCCESS)
    assert world.node(7) in world.balancer.usable
