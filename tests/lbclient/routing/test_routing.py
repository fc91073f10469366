"""What a `Balancer` does with its `Routing`: portions, retries, logs, and the live state."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import pytest

from discovery import Endpoint
from lbclient import PowerOfTwo, RoundRobin, Routing
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome


def endpoints(*counts: int, first: int = 0, **more: Any) -> list[Endpoint]:
    """So many of each priority: those of priority 1 are 10.0.1.x."""
    return [
        Endpoint(host=f"10.0.{first + level}.{number}", port=80, priority=first + level, **more)
        for level, count in enumerate(counts)
        for number in range(count)
    ]


class World:
    """A balancer, and a clock that stands still before the first probe."""

    def __init__(self, found: list[Endpoint], **options: Any) -> None:
        self.balancer = Balancer(
            "users", lambda: RoundRobin(random.Random(1)), routing=Routing(**options), rng=random.Random(2)
        )
        self.balancer.update(found, 0.0)

    def eject(self, *addresses: str) -> None:
        for address in addresses:
            node = self.balancer.nodes[f"{address}:80"]
            for _ in range(3):
                self._see(node, Outcome.CONNECT)

    def restore(self, address: str) -> None:
        node = self.balancer.nodes[f"{address}:80"]
        self._see(node, Outcome.SUCCESS)

    def _see(self, node: Node, outcome: Outcome) -> None:
        attempt = Attempt(node, "test", lambda: None)
        attempt.started_at = 1.0
        attempt.land()
        self.balancer.observe(attempt, outcome, 1.0)

    def pick(self, *tried: Node, key: str | None = None) -> Node:
        call = Call(key, now=1.0)
        call.tried = tried
        node = self.balancer.pick(call)
        assert node is not None
        return node

    def picked(self, picks: int = 4000) -> dict[str, float]:
        """The share of each group of addresses."""
        found = Counter(self.pick().endpoint.host.rpartition(".")[0] for _ in range(picks))
        return {net: count / picks for net, count in sorted(found.items())}

    def portions(self) -> list[tuple[str, float, int, bool]]:
        return [
            (each["name"], round(each["share"], 6), each["nodes"], each["panic"])
            for each in self.balancer.as_dict(1.0)["portions"]
        ]


def test_all_goes_to_the_preferred_priority_while_it_is_healthy() -> None:
    world = World(endpoints(3, 2))
    assert world.portions() == [("priority 0", 1, 3, False), ("priority 1", 0, 2, False)]
    assert world.picked() == {"10.0.0": 1}


def test_lower_numbers_are_preferred_and_may_be_negative() -> None:
    world = World([*endpoints(2, 2), Endpoint(host="a", port=1, priority=-5)])
    assert [name for name, *_ in world.portions()] == ["priority -5", "priority 0", "priority 1"]


def test_requests_spill_over_in_proportion() -> None:
    world = World(endpoints(4, 4))
    world.eject("10.0.0.0", "10.0.0.1")
    assert world.portions() == [("priority 0", 0.7, 2, False), ("priority 1", 0.3, 4, False)]
    assert world.picked() == pytest.approx({"10.0.0": 0.7, "10.0.1": 0.3}, abs=0.03)


def test_a_priority_without_usable_nodes_is_no_portion() -> None:
    world = World(endpoints(1, 2))
    world.eject("10.0.0.0")
    assert world.portions() == [("priority 1", 1, 2, False)]


def test_overprovisioning_of_1_spills_with_the_first_node() -> None:
    world = World(endpoints(4, 4), overprovisioning=1)
    world.eject("10.0.0.0")
    assert [share for _, share, *_ in world.portions()] == [0.75, 0.25]


def test_a_key_stays_in_its_portion() -> None:
    world = World(endpoints(4, 4))
    world.eject("10.0.0.0", "10.0.0.1")
    for key in map(str, range(50)):
        assert len({world.pick(key=key).endpoint.priority for _ in range(5)}) == 1
    assert {world.pick(key=str(key)).endpoint.priority for key in range(50)} == {0, 1}


def test_a_retry_that_tried_all_preferred_ones_goes_to_the_next_priority() -> None:
    world = World(endpoints(2, 1, 1))
    first = world.pick()
    second = world.pick(first)
    third = world.pick(first, second)
    fourth = world.pick(first, second, third)
    assert [node.endpoint.priority for node in (first, second, third, fourth)] == [0, 0, 1, 2]


def test_a_retry_that_tried_the_whole_zone_goes_to_any_other() -> None:
    found = [
        Endpoint(host=f"10.0.{net}.{n}", port=80, zone=zone) for net, zone in enumerate("abc") for n in (1, 2)
    ]
    world = World(found, zone="a")
    tried = [node for node in world.balancer.nodes.values() if node.endpoint.zone == "a"]
    assert {world.pick(*tried).endpoint.zone for _ in range(20)} == {"b", "c"}


def test_full_nodes_are_looked_for_once() -> None:
    class Counting(RoundRobin):
        picks = 0

        def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
            self.picks += 1
            return super().pick(nodes, call)

    policy = Counting()
    balancer = Balancer("users", lambda: policy, limit_per_node=1)
    balancer.update(endpoints(200), 0.0)
    for _ in range(200):
        node = balancer.pick(Call())
        assert node is not None
        Attempt(node, "test", lambda: None)
    policy.picks = 0
    assert balancer.pick(Call()) is None
    assert policy.picks <= 3


def test_zones_are_of_the_priority_that_takes_requests() -> None:
    found = [
        Endpoint(host=f"10.{level}.{net}.{n}", port=80, zone=zone, priority=level)
        for level in (0, 1)
        for net, zone in enumerate("ab")
        for n in range(5)
    ]
    world = World(found, zone="a")
    world.eject(*(f"10.0.0.{n}" for n in range(3)))
    # 7 of 10 are left, a health of 98; zone a has 2 of them, 2/7 of the capacity for half of the clients.
    assert world.portions() == [
        ("priority 0, zone a", 0.56, 2, False),
        ("priority 0, zone b", 0.42, 5, False),
        ("priority 1, zone a", 0.02, 5, False),
        ("priority 1, other zones", 0, 5, False),
    ]


def test_weight_zero_is_no_part_of_a_priority() -> None:
    world = World([*endpoints(2, 2), Endpoint(host="a", port=80, weight=0)])
    assert world.portions() == [("priority 0", 1, 2, False), ("priority 1", 0, 2, False)]


def test_weight_zero_is_used_when_nothing_else_is_left() -> None:
    world = World([Endpoint(host="a", port=80, weight=0), Endpoint(host="b", port=80, weight=0, priority=1)])
    assert world.portions() == [("", 1, 2, False)]


def test_panic_takes_all_nodes_of_a_priority() -> None:
    world = World(endpoints(4), panic_threshold=0.5)
    world.eject("10.0.0.0", "10.0.0.1")
    assert world.portions() == [("", 1, 2, False)]
    world.eject("10.0.0.2")
    assert world.portions() == [("", 1, 4, True)]
    assert {world.pick().address for _ in range(8)} == {f"10.0.0.{n}:80" for n in range(4)}


def test_without_a_threshold_there_is_panic_only_when_no_node_is_left() -> None:
    world = World(endpoints(3))
    world.eject("10.0.0.0", "10.0.0.1")
    assert world.portions() == [("", 1, 1, False)]
    world.balancer.update(endpoints(2), 1.0)
    assert world.portions() == [("", 1, 2, True)]


def test_panic_and_spilling_over_are_logged_when_they_begin_and_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient.routing")

    def said() -> list[str]:
        found = [message for message in caplog.messages if message.startswith("users: ")]
        caplog.clear()
        return [message for message in found if " is ejected " not in message and " is back " not in message]

    world = World(endpoints(4, 4), panic_threshold=0.5)
    world.eject("10.0.0.0")
    assert said() == []
    world.eject("10.0.0.1")
    assert said() == ["users: requests go to priority 0 70.0%, priority 1 30.0%"]
    world.eject("10.0.0.2")
    assert said() == [], "it goes on, with other shares"
    world.eject("10.0.1.0", "10.0.1.1")
    assert said() == []
    world.eject("10.0.1.2")
    (begun, other) = said()
    assert begun.startswith("users: panic, too few nodes are usable: all 4 are taken, usable or not (priority 0)")
    assert other.endswith("(priority 1)")
    world.balancer.update(endpoints(4, 4, zone="x"), 1.0)
    assert said() == [], "still the same"
    for number in range(3):
        world.restore(f"10.0.1.{number}")
        world.restore(f"10.0.0.{number}")
    assert said() == [
        "users: panic is over (priority 0)",
        "users: panic is over (priority 1)",
        "users: requests go to priority 0 100.0%",
    ]


def test_the_state_of_a_node_has_its_priority() -> None:
    world = World(endpoints(1, 1))
    assert [node["priority"] for node in world.balancer.as_dict(1.0)["nodes"]] == [0, 1]


def test_policies_keep_their_state_while_portions_come_and_go() -> None:
    world = World(endpoints(4, 4))
    before = {route.name: route.policy for route in world.balancer.routes}
    world.eject("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3")
    world.restore("10.0.0.0")
    assert {route.name: route.policy for route in world.balancer.routes} == before
    assert len(set(map(id, before.values()))) == 2


def test_policies_of_portions_that_are_long_gone_are_dropped() -> None:
    world = World(endpoints(2))
    for level in range(200):
        world.balancer.update(endpoints(1, 1, first=level), 1.0)
    assert len(world.balancer._routes._policies) <= 101


def test_a_new_endpoint_outside_of_the_filter_is_no_node() -> None:
    where = {"version": "v2"}
    world = World(endpoints(2, metadata=where), where=where)
    left = world.balancer.update([*endpoints(1, metadata=where), *endpoints(1, first=1)], 1.0)
    assert [node.address for node in left] == ["10.0.0.1:80"]
    assert list(world.balancer.nodes) == ["10.0.0.0:80"]


@pytest.mark.parametrize(
    ("option", "wrong", "allowed"),
    [
        ("fallback", ["all", None, 1], "fallback must be one of any, none, not "),
        ("subset", [0, -1, 1.5, "3", True], "subset must be a whole number, 1 or more, a Subset, or None, not "),
        ("zone", [None, 1, b"a"], "zone must be a text, not "),
        (
            "zone_share",
            [0, -0.1, 1.1, float("nan"), "1", True],
            "zone_share must be a number above 0, at most 1, or None, not ",
        ),
        ("min_zone_nodes", [-1, 1.5, None, True, "6"], "min_zone_nodes must be a whole number, 0 or more, not "),
        (
            "overprovisioning",
            [0.9, 0, -1, float("nan"), float("inf"), "1.4", None, True],
            "overprovisioning must be a number, 1 or more, not ",
        ),
        (
            "panic_threshold",
            [-0.1, 1.1, float("nan"), "0.5", None, True],
            "panic_threshold must be a number from 0 to 1, not ",
        ),
    ],
)
def test_a_wrong_option_is_refused_with_the_value_and_what_is_allowed(
    option: str, wrong: list[Any], allowed: str
) -> None:
    for value in wrong:
        with pytest.raises((TypeError, ValueError)) as caught:
            Routing(**{option: value})
        assert str(caught.value) == f"{allowed}{value!r}"


def test_options_are_compared_by_value_and_cannot_be_changed() -> None:
    assert Routing(where={"a": "b"}, subset=3) == Routing(where={"a": "b"}, subset=3)
    assert hash(Routing(where={"a": "b"})) is not None
    with pytest.raises(AttributeError):
        Routing().zone = "a"  # type: ignore[misc]


def test_the_default_is_all_nodes_in_one_portion_without_a_name() -> None:
    world = World(endpoints(3))
    assert world.portions() == [("", 1, 3, False)]
    assert Balancer("users", PowerOfTwo).as_dict(0.0)["portions"] == []
