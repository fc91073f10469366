"""`Balancer`: the nodes of one service; update, pick, observe. It never awaits and needs no socket."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from discovery import Endpoint
from lbclient.node import Attempt, Node
from lbclient.outcome import Outcome
from lbclient.outlier import Ejection
from lbclient.policy import Policy

__all__ = ["Balancer"]

log = logging.getLogger(__name__)


class Balancer:
    """Keeps one `Node` per address and chooses among the usable ones.

    Usable are the nodes that are not ejected and have a weight above 0; if there are none, those that
    are not ejected; if there are none either, all: a balancer with nodes always has a usable one.

    Args:
        name: the service's name, for log lines.
        policy: chooses one of the usable nodes.
        ejection: takes failing nodes out.
        limit_per_node: attempts under way at one node at the same time; 0 for no limit.
    """

    def __init__(
        self, name: str, policy: Policy, *, ejection: Ejection | None = None, limit_per_node: int = 0
    ) -> None:
        self.name = name
        self.policy = policy
        self.nodes: dict[str, Node] = {}
        self.usable: tuple[Node, ...] = ()
        self._ejection = ejection or Ejection()
        self._limit = limit_per_node or math.inf
        # The first moment at which an ejected node is due for a probe: one comparison per pick.
        self._probe_at = math.inf

    def update(self, endpoints: Iterable[Endpoint]) -> list[Node]:
        """Take the new set as it is; returns the nodes that left. What was learned about the others stays."""
        old, self.nodes = self.nodes, {}
        for endpoint in endpoints:
            node = old.pop(endpoint.address, None)
            if node is None:
                node = Node(endpoint)
            elif node.endpoint is not endpoint and node.endpoint != endpoint:
                node.describe_as(endpoint)
            self.nodes[node.address] = node
        for node in old.values():
            node.left = True
        self._regroup()
        return list(old.values())

    def pick(self, now: float, tried: tuple[Node, ...] = ()) -> Node | None:
        """A node, and one that was not tried if there is such; None if all of those are at their limit.

        `now` is `time.monotonic()` seconds. There must be a node.
        """
        if now >= self._probe_at and (node := self._due(now, tried)) is not None:
            return node
        candidates = self._untried(tried) or self.usable if tried else self.usable
        node = self.policy.pick(candidates)
        if node.in_flight >= self._limit:
            free = tuple(node for node in candidates if node.in_flight < self._limit)
            return self.policy.pick(free) if free else None
        return node

    def exhausted(self, tried: tuple[Node, ...]) -> bool:
        """Whether every node was tried."""
        return not self._untried(tried)

    def observe(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Learn from an attempt that came to its end, or to the head of its response."""
        node = attempt.node
        if outcome is not Outcome.SUCCESS and outcome not in (Outcome.OURS, Outcome.LEFT):
            node.failures += 1
        failing = self._ejection.fails(node, outcome)
        if node.left:
            return
        if node.ejected_at is None:
            if failing:
                self._eject(node, attempt, now)
        elif attempt.started_at >= node.ejected_at:
            self._observe_probe(node, attempt, outcome, now)

    def _observe_probe(self, node: Node, attempt: Attempt, outcome: Outcome, now: float) -> None:
        # Attempts that began before the ejection say nothing new. Later ones are probes, or went there
        # because nothing else was left; they decide equally.
        if outcome is Outcome.SUCCESS:
            self._ejection.restore(node, now)
        elif outcome in (Outcome.OURS, Outcome.LEFT):
            node.probing = False
        elif node.probing:
            self._eject(node, attempt, now)
            return
        self._regroup()

    def _eject(self, node: Node, attempt: Attempt, now: float) -> None:
        others = any(n.ejected_at is None and n.weight > 0 for n in self.nodes.values() if n is not node)
        if not others and node.ejected_at is None:
            return
        log.warning("%s: %s fails: %s", self.name, node.address, attempt.error)
        self._ejection.eject(node, now)
        self._regroup()

    def _due(self, now: float, tried: tuple[Node, ...]) -> Node | None:
        for node in self.nodes.values():
            if _awaits_probe(node) and now >= (node.ejected_until or 0) and node not in tried:
                node.probing = True
                self._regroup()
                return node
        return None

    def _untried(self, tried: tuple[Node, ...]) -> tuple[Node, ...]:
        return tuple(node for node in self.usable if node not in tried) or tuple(
            node for node in self.nodes.values() if node not in tried
        )

    def _regroup(self) -> None:
        nodes = self.nodes.values()
        inside = tuple(node for node in nodes if node.ejected_at is None)
        self.usable = tuple(node for node in inside if node.weight > 0) or inside or tuple(nodes)
        self._probe_at = min((node.ejected_until or 0 for node in nodes if _awaits_probe(node)), default=math.inf)

    def as_dict(self, now: float) -> dict[str, Any]:
        """The live state as plain data."""
        return {
            "policy": type(self.policy).__name__,
            "usable": len(self.usable),
            "nodes": [node.as_dict(now) for node in self.nodes.values()],
        }


def _awaits_probe(node: Node) -> bool:
    # Weight 0 means no new traffic, and a probe is a request like any other.
    return node.ejected_until is not None and not node.probing and node.weight > 0
