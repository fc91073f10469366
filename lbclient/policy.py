"""How to choose: a policy picks one node of a tuple, a load says how busy a node is."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import Protocol, runtime_checkable

from lbclient.node import Node

__all__ = [
    "LeastRequest",
    "Load",
    "Policy",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "in_flight",
    "least_request",
]

Load = Callable[[Node], float]


@runtime_checkable
class Policy(Protocol):
    """Chooses a node. Called for every attempt, so it takes no lock and never awaits."""

    def pick(self, nodes: tuple[Node, ...]) -> Node:
        """One of the nodes; there is at least one. The tuple is the same object until the set changes."""
        ...


def in_flight(node: Node) -> float:
    """Attempts under way, whatever the node's weight."""
    return node.in_flight


def least_request(node: Node) -> float:
    """Attempts under way, this one included, by weight (Envoy's least request with active_request_bias 1)."""
    # A registered weight of 0 is only ever picked where nothing else is left.
    return (node.in_flight + 1) / (node.weight or 1e-9)


class RoundRobin:
    """One node after the other, whatever their weights. The start is random and the position survives updates.

    Starting at the first node after each update floods it (envoy#3271, grpc-go#3793).
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._position = (rng or random.Random()).randrange(1 << 30)

    def pick(self, nodes: tuple[Node, ...]) -> Node:
        """The next one."""
        self._position = position = self._position + 1
        return nodes[position % len(nodes)]


class Random:
    """A node at random, in proportion to the weights."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random
        self._nodes: tuple[Node, ...] = ()
        self._bounds: list[float] | None = None

    def pick(self, nodes: tuple[Node, ...]) -> Node:
        """One by the weights; evenly where all weights are equal or zero."""
        if nodes is not self._nodes:
            self._nodes = nodes
            bounds = list(accumulate(node.weight for node in nodes))
            even = len({node.weight for node in nodes}) == 1
            self._bounds = None if even else bounds
        if self._bounds is None:
            return nodes[int(self._random() * len(nodes))]
        # Rounding may put the product on the last bound itself.
        return nodes[min(bisect(self._bounds, self._random() * self._bounds[-1]), len(nodes) - 1)]


class LeastRequest:
    """The node with the lowest load of all: for small sets, since each pick looks at every node.

    Among equals it is the next in turn, so that idle nodes share evenly.
    """

    def __init__(self, load: Load = least_request, rng: random.Random | None = None) -> None:
        self._load = load
        self._position = (rng or random.Random()).randrange(1 << 30)

    def pick(self, nodes: tuple[Node, ...]) -> Node:
        """The least loaded one."""
        self._position += 1
        start = self._position % len(nodes)
        load = self._load
        best = nodes[start]
        lowest = load(best)
        for node in nodes[start + 1 :] + nodes[:start]:
            if (loaded := load(node)) < lowest:
                best, lowest = node, loaded
        return best


class PowerOfTwo:
    """The less loaded of two *different* nodes drawn at random (Mitzenmacher 2001): close to the best, at O(1).

    On a tie the first draw stays, which is random itself.
    """

    def __init__(self, load: Load = least_request, rng: random.Random | None = None) -> None:
        self._load = load
        self._random = (rng or random.Random()).random

    def pick(self, nodes: tuple[Node, ...]) -> Node:
        """The better of two."""
        count = len(nodes)
        if count == 1:
            return nodes[0]
        draw = self._random
        a = int(draw() * count)
        b = int(draw() * (count - 1))
        if b >= a:
            b += 1
        first, second = nodes[a], nodes[b]
        return second if self._load(second) < self._load(first) else first
