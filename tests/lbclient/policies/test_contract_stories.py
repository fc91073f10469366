"""Random stories of updates, picks, outcomes and time, through a balancer with every policy and every option."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from contract_rig import Client
from contract_rows import Row, rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discovery import Endpoint
from lbclient import Routing, SlowStart
from lbclient.attempt import Attempt
from lbclient.node import NOWHERE, Node
from lbclient.outcome import Outcome
from lbclient.routing import Portion


@dataclass(frozen=True, slots=True, kw_only=True)
class Thirds(Routing):
    """Three routes by the number in the name: one for most requests, one for the rest, one that only helps out."""

    def split(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        """Of the usable ones."""
        portions = Routing.split(self, nodes)
        panic = all(portion.panic for portion in portions)
        usable = [node for portion in portions for node in portion.nodes]
        parts = [tuple(n for n in usable if int(n.endpoint.host[1:]) % 3 == rest) for rest in range(3)]
        shares = (0.7, 0.3, 0.0)
        return tuple(Portion(f"third {n}", part, shares[n], panic) for n, part in enumerate(parts) if part)


OPTIONS = st.fixed_dictionaries(
    {
        "limit_per_node": st.sampled_from([0, 1, 2]),
        "slow_start": st.sampled_from([None, SlowStart(window=10)]),
        "routing": st.sampled_from(
            [Routing(), Thirds(), Routing(zone="a", min_zone_nodes=0), Routing(panic_threshold=0.5)]
        ),
    }
)
WEIGHTS = st.sampled_from([1, 1, 1, 2, 0, 0.5, 1e6])
FOUND = st.dictionaries(st.integers(1, 7), WEIGHTS, min_size=1)
ENDS = st.sampled_from([*Outcome, Outcome.SUCCESS, Outcome.ERROR, *[Outcome.CONNECT] * 6])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), FOUND),
        st.tuples(st.just("reweigh"), st.integers(1, 7), WEIGHTS),
        st.tuples(st.just("try"), st.sets(st.integers(1, 7)), st.integers(0, 9)),
        st.tuples(st.just("try"), st.just(()), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 5), ENDS, st.floats(0, 5)),
        st.tuples(st.just("fail"), st.integers(1, 7)),
        st.tuples(st.just("wait"), st.sampled_from([0, 0.5, 3, 29, 31, 400, 1e6])),
    ),
    min_size=12,
    max_size=40,
)

# The only node is down and is to be probed by any request, another attempt as well.
IN_AN_OUTAGE: list[tuple[Any, ...]] = [
    ("update", {7: 1}),
    ("try", (), 0),
    ("try", (), 0),
    ("fail", 7),
    ("wait", 0.5),
    ("try", {1}, 0),
]


class Story:
    """A client and what must be true of it after every step, told without the balancer's own words."""

    def __init__(self, row: Row, found: dict[int, float], options: dict[str, Any]) -> None:
        self.limit = options["limit_per_node"] or float("inf")
        self.panics = options["routing"].panic_threshold > 0
        self.found = found
        self.client = Client(row, self.described(), **options)
        self.under_way: list[Attempt] = []
        # The nodes that left, with attempts still under way.
        self.gone: list[Node] = []

    def described(self) -> list[Endpoint]:
        return [
            Endpoint(host=f"s{n}", port=80, weight=weight, zone="ab"[n % 2], priority=n // 4)
            for n, weight in sorted(self.found.items())
        ]

    def update(self, found: dict[int, float]) -> None:
        before = self.client.balancer.nodes
        left = self.client.update(self._now_found(found))
        after = self.client.balancer.nodes
        assert set(after) == {f"s{number}:80" for number in found}
        assert all(after[address] is node for address, node in before.items() if address in after)
        assert set(left) == {node for address, node in before.items() if address not in after}
        assert all(node.left and node.group is NOWHERE for node in left)
        self.gone += left

    def _now_found(self, found: dict[int, float]) -> list[Endpoint]:
        self.found = found
        return self.described()

    def reweigh(self, number: int, weight: float) -> None:
        if number in self.found:
            self.update(self.found | {number: weight})

    def wait(self, seconds: float) -> None:
        self.client.now += seconds

    def fail(self, number: int) -> None:
        """A server goes down: connections are refused until it is out, or the last one."""
        if number in self.found:
            node = self.client.node(number)
            self.client.see(node, *[Outcome.CONNECT] * 3, elapsed=0.0)
            assert node.ejected_at is not None, "the last one as well: what goes on then is a panic"

    def end(self, index: int, outcome: Outcome, elapsed: float) -> None:
        if self.under_way:
            was = self.works()
            self.client.end(self.under_way.pop(index % len(self.under_way)), outcome, elapsed)
            if outcome is not Outcome.CONNECT:
                assert self.works() >= was, "what answers is never taken out as the last one"

    def try_(self, tried: Collection[int], key: int) -> None:
        """One attempt, of a request that went to those before."""
        client = self.client
        client.key = f"user-{key}"
        been = tuple(node for node in [*client.nodes, *self.gone] if int(node.endpoint.host[1:]) in tried)
        expected, due = self.candidates(been), self.due(been)
        node = client.pick(*been)
        if due:
            assert node in due
            assert node is not None
            assert node.state == "probing"
        elif node is None:
            assert not expected, f"not {expected}, though they have room"
        else:
            assert node in expected
        if node is not None:
            self.under_way.append(client.begin(node))

    def works(self) -> bool:
        """Whether a node is in that has a weight."""
        return any(node.ejected_at is None and node.weight > 0 for node in self.client.nodes)

    def free(self, node: Node) -> bool:
        return node.in_flight < self.limit

    def due(self, been: tuple[Node, ...]) -> list[Node]:
        """Who is to be probed now, for the first time or since the probe takes too long.

        An attempt after another one is no probe as long as a node is in, and a usable one was not tried.
        """
        inside = any(node.ejected_at is None for node in self.client.nodes)
        if been and inside and not all(node in been for node in self.client.balancer.usable):
            return []
        return [
            node
            for node in self.client.nodes
            if node.ejected_until is not None
            if (node.probe.started_at + 30.0 if node.probing else node.ejected_until) <= self.client.now
            if (node.weight > 0 or not self.works()) and node not in been and self.free(node)
        ]

    def candidates(self, been: tuple[Node, ...]) -> list[Node]:
        """Who may be picked: the usable that were not tried; then whoever was not; then any. None that is full."""
        usable = self.client.balancer.usable
        if untried := [node for node in usable if node not in been]:
            return list(filter(self.free, untried))
        others = [node for node in self.client.nodes if node not in been and node.weight > 0]
        return list(filter(self.free, others or usable))

    def usable(self) -> list[Node]:
        """Those that are in and have a weight; if there are none, those that are in, or have one, or just all."""
        every = self.client.nodes
        inside = [node for node in every if node.ejected_at is None]
        weighted = [node for node in every if node.weight > 0]
        return [node for node in inside if node.weight > 0] or inside or weighted or list(every)

    def check(self) -> None:
        """Who is usable belongs to one route, and routes know how busy they are."""
        balancer = self.client.balancer
        for route in balancer.routes:
            assert route.nodes
            assert route.in_flight == sum(node.in_flight for node in route.nodes)
            assert all(node.group is route for node in route.nodes)
        for node in self.client.nodes:
            assert node.in_flight == sum(attempt.node is node for attempt in self.under_way) >= 0
            assert node.in_flight <= self.limit
            assert (node in balancer.usable) == (node.group is not NOWHERE)
            assert 0 <= node.failing < 1
        assert len(set(balancer.usable)) == len(balancer.usable) > 0
        if self.panics:
            working = {node for node in self.client.nodes if node.ejected_at is None and node.weight > 0}
            assert set(balancer.usable) >= working
        else:
            assert set(balancer.usable) == set(self.usable())

    def finish(self) -> None:
        """All that is under way ends."""
        while self.under_way:
            self.end(0, Outcome.OURS, 1.0)
        self.check()
        assert not any(node.in_flight or node.attempts for node in [*self.client.nodes, *self.gone])


@rows()
@given(FOUND, OPTIONS, STEPS)
@example({1: 1}, {"limit_per_node": 0, "slow_start": None, "routing": Thirds()}, IN_AN_OUTAGE)
@settings(max_examples=15)
def test_whatever_happens_who_is_picked_is_there_and_counts_are_right(
    row: Row, found: dict[int, float], options: dict[str, Any], steps: list[tuple[Any, ...]]
) -> None:
    story = Story(row, found, options)
    story.check()
    for kind, *details in steps:
        getattr(story, "try_" if kind == "try" else kind)(*details)
        story.check()
    story.finish()
