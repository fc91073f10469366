"""A balancer with a clock of its own, attempts that end when a test says so, and nodes by their numbers."""

from __future__ import annotations

import random
from typing import Any

from discovery import Endpoint
from lbclient import Ejection, RoundRobin, Routing
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome

__all__ = ["World", "endpoints"]


def endpoints(*numbers: int, **more: Any) -> list[Endpoint]:
    """Those of priority 1 are numbered from 100 on."""
    return [Endpoint(host=f"s{number}", port=80, priority=number // 100, **more) for number in numbers]


class World:
    """Nodes with these numbers. Options are those of `Ejection`, and some of the balancer's."""

    def __init__(self, *numbers: int, routing: Routing | None = None, limit: int = 0, **options: Any) -> None:
        self.now = 1000.0
        ejection = Ejection(**{"jitter": 0, **options})
        self.balancer = Balancer(
            "users",
            lambda: RoundRobin(random.Random(1)),
            ejection=ejection,
            routing=routing,
            limit_per_node=limit,
            rng=random.Random(2),
        )
        self.update(*numbers)

    def update(self, *numbers: int, **more: Any) -> None:
        self.balancer.update(endpoints(*numbers, **more), self.now)

    def node(self, number: int) -> Node:
        return self.balancer.nodes[f"s{number}:80"]

    @property
    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.balancer.as_dict(self.now)["counts"]
        return found

    def begin(self, node: Node | int) -> Attempt:
        attempt = Attempt(self.node(node) if isinstance(node, int) else node, "test", lambda: None)
        attempt.started_at = self.now
        return attempt

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.land()
        self.balancer.observe(attempt, outcome, self.now)

    def head(self, attempt: Attempt) -> None:
        """The head of a good answer arrives; its body goes on."""
        self.balancer.observe(attempt, Outcome.SUCCESS, self.now)

    def see(self, number: int, *outcomes: Outcome) -> None:
        """Attempts one after the other, all at this moment."""
        for outcome in outcomes:
            self.end(self.begin(number), outcome)

    def pick(self, *tried: int) -> Node | None:
        call = Call(now=self.now)
        call.tried = tuple(self.node(number) for number in tried)
        return self.balancer.pick(call)

    def picked(self, picks: int = 30) -> set[int]:
        """Which nodes requests go to that never begin."""
        found = [self.pick() for _ in range(picks)]
        return {int(node.endpoint.host[1:]) for node in found if node is not None}

    def out(self) -> set[int]:
        return {
            int(node.endpoint.host[1:]) for node in self.balancer.nodes.values() if node.ejected_at is not None
        }

    def probe(self, number: int) -> Attempt:
        """The request that is the node's probe, at the time at which it is due."""
        node = self.node(number)
        assert node.ejected_until is not None
        self.now = max(self.now, node.ejected_until)
        call = Call(now=self.now)
        call.tried = tuple(other for other in self.balancer.nodes.values() if other is not node)
        assert self.balancer.pick(call) is node
        return self.begin(node)
