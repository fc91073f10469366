"""Probes that end without a finding, or never: they neither keep a node out for ever nor cost many requests."""

from __future__ import annotations

from ejection_rig import World, endpoints

from lbclient import Routing
from lbclient.node import Node
from lbclient.outcome import Outcome


def test_a_probe_that_never_ends_does_not_keep_its_node_out_for_ever() -> None:
    """A request without a deadline waits for ever for an answer of a machine that is gone."""
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    lost = world.probe(0)
    world.now += 29
    assert world.picked() == {1}
    world.now += 1
    probe = world.begin(world.node(0)) if world.pick() is world.node(0) else None
    assert probe is not None
    assert world.picked() == {1}, "one at a time"
    world.end(lost, Outcome.FAULT)
    assert world.node(0).probe is probe
    world.end(probe, Outcome.SUCCESS)
    assert world.out() == set()


def try_thrice(world: World, dead: set[Node]) -> list[Node]:
    """The nodes that a request goes to, until one of them answers."""
    tried: list[Node] = []
    for _ in range(3):
        node = world.pick(*(int(node.endpoint.host[1:]) for node in tried))
        assert node is not None
        tried.append(node)
        world.see(int(node.endpoint.host[1:]), Outcome.CONNECT if node in dead else Outcome.SUCCESS)
        if node not in dead:
            break
    return tried


def test_a_request_is_the_probe_of_one_node_and_not_with_all_of_its_attempts() -> None:
    """Where requests are rare all nodes that are down are due each time: with three of them none comes through."""
    world = World(*range(10))
    dead = {world.node(number) for number in range(3)}
    for number in range(3):
        world.see(number, *[Outcome.CONNECT] * 3)
    for _ in range(20):
        world.now += 600
        first, *further = try_thrice(world, dead)
        assert first in dead
        assert len(further) == 1
        assert not dead & set(further)


def test_a_request_is_one_probe_also_where_only_nodes_work_that_are_to_get_no_new_ones() -> None:
    """Those of weight 0 are used since there is nothing else, while the others are due twice a second."""
    world = World(*range(4))
    world.balancer.update([*endpoints(0, 1, 2), *endpoints(3, weight=0)], world.now)
    dead = {world.node(number) for number in range(3)}
    for number in range(3):
        world.see(number, *[Outcome.CONNECT] * 3)
    world.now += 600
    assert try_thrice(world, dead)[1:] == [world.node(3)]


def test_where_nothing_works_each_attempt_is_a_probe() -> None:
    for routing in (Routing(panic="all"), Routing(panic="fail"), Routing(panic="wait")):
        world = World(*range(3), routing=routing)
        for number in range(3):
            world.see(number, *[Outcome.CONNECT] * 3)
        world.now += 1
        assert len(set(try_thrice(world, {world.node(0), world.node(1), world.node(2)}))) == 3
        assert world.counts["ejections"]["probe"] == 3


def test_a_lost_probe_is_followed_by_another_one_after_any_change_of_the_nodes() -> None:
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    world.probe(0)
    world.update(0, 1, 2)
    assert world.picked() == {1, 2}
    world.now += 30
    assert world.pick() is world.node(0)


def test_requests_that_are_given_up_are_not_all_probes_of_the_same_silent_node() -> None:
    """A caller whose deadline is short says nothing about the node, and neither does the next one."""
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    world.now += 30
    lost = 0
    for _ in range(1000):
        node = world.pick()
        assert node is not None
        attempt = world.begin(node)
        world.now += 1
        world.end(attempt, Outcome.OURS if node is world.node(0) else Outcome.SUCCESS)
        lost += node is world.node(0)
    assert 80 < lost < 100, "one in each interval"
    assert len(world.balancer._probes._heap) < 5


def test_probes_that_are_given_up_leave_nothing_behind() -> None:
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    for _ in range(1000):
        world.end(world.probe(0), Outcome.OURS)
    assert len(world.balancer._probes._heap) == 1


def test_the_probes_of_a_long_outage_leave_nothing_behind() -> None:
    """Others look for a node while they are under way, and find when those would take too long."""
    world = World(*range(10), base=300, routing=Routing(panic="fail"))
    for number in range(10):
        world.see(number, *[Outcome.CONNECT] * 3)
    for _ in range(1000):
        world.now += 0.5
        probes = []
        while (node := world.pick()) is not None:
            probes.append(world.begin(node))
        assert len(probes) == 10
        for probe in probes:
            world.end(probe, Outcome.CONNECT)
    assert len(world.balancer._probes._heap) < 200


def test_who_waits_since_the_others_are_full_is_told_when_a_node_is_due() -> None:
    """Nothing else may happen until then: what is under way at the others may take for ever."""
    world = World(0, 1, limit=1)
    assert world.balancer.due_in(world.now) is None
    world.see(0, *[Outcome.CONNECT] * 3)
    world.begin(1)
    assert world.pick() is None
    assert world.balancer.due_in(world.now) == 30
    world.now += 30
    assert world.pick() is world.node(0)
