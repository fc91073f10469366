"""`SmoothOrder`: nginx's order of turns by weight, O(n) for each."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from operator import add

from lbclient.node import Node
from lbclient.policies.turns import TURN

__all__ = ["SmoothOrder"]

# Where the cycle starts is found by taking turns: at most this often, and in small sets only.
_START = 1000
_SMALL = 16


class SmoothOrder:
    """Turns in the order of nginx's smooth weighted round robin.

    At each turn every node is credited with its weight, and the one with the most credit (the first on a tie) pays
    the sum of the weights for it. Weights 5, 1 and 1 give a a b a c a a. Started anew, the order repeats itself
    after the sum of the weights, so that any stretch of that length holds exactly each node's share.

    Args:
        nodes: at least one.
        weights: whole numbers above 0.
        waits: how long each node still had to wait in an order before, in parts of a turn (`TURN`); the order goes
            on from there, and nodes that are not among them wait for a random part of one. If empty, the order
            starts anew, at a random point of its cycle.
        rng: the source of randomness.
    """

    def __init__(
        self, nodes: tuple[Node, ...], weights: list[int], waits: Mapping[Node, int], rng: random.Random
    ) -> None:
        self.nodes = nodes
        self._weights = weights
        self._total = total = sum(weights)
        self._credits = [0] * len(nodes)
        if waits or len(nodes) > _SMALL:
            found = [waits[node] if node in waits else int(TURN * rng.random()) for node in nodes]
            # Half a turn is what a node without credit has to wait, on average.
            self._credits = [((TURN // 2 - wait) * total + TURN // 2) // TURN for wait in found]
        else:
            for _ in range(rng.randrange(min(total, _START))):
                self.next()

    def next(self) -> Node:
        """The node whose turn it is."""
        self._credits = credits_ = list(map(add, self._credits, self._weights))
        best = credits_.index(max(credits_))
        credits_[best] -= self._total
        return self.nodes[best]

    def next_among(self, places: Sequence[int]) -> Node:
        """The same among the nodes at these places of `nodes`; the others neither gain nor lose."""
        credits_, weights = self._credits, self._weights
        total = 0
        for place in places:
            total += weights[place]
            credits_[place] += weights[place]
        best = max(places, key=credits_.__getitem__)
        credits_[best] -= total
        return self.nodes[best]

    def next_but(self, excluded: Collection[Node]) -> Node | None:
        """The same among the nodes that are not excluded; None if all are."""
        places = [place for place, node in enumerate(self.nodes) if node not in excluded]
        return self.next_among(places) if places else None

    def waits(self) -> dict[Node, int]:
        """How long each node still has to wait, in parts of a turn."""
        total, average = self._total, TURN // 2
        return {n: average - credit * TURN // total for n, credit in zip(self.nodes, self._credits, strict=True)}
