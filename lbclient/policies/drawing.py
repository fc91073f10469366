"""`Draw`: a node at random in proportion to the weights; shared by the policies that draw."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Collection
from itertools import accumulate

from lbclient.node import Node

__all__ = ["Draw"]

# Draws that may hit an excluded node before the rest is looked at one by one.
_DRAWS = 8


class Draw:
    """Draws nodes of a tuple by weight; evenly where all weights are equal or zero.

    O(log n), and O(1) for equal weights. Made anew for each tuple, in O(n).
    """

    __slots__ = ("_bounds", "_random", "_rng", "nodes")

    def __init__(self, nodes: tuple[Node, ...], rng: random.Random) -> None:
        self.nodes = nodes
        self._rng = rng
        self._random = rng.random
        weights = [node.weight for node in nodes]
        # Equal weights need no search.
        self._bounds = None if weights.count(weights[0]) == len(weights) else list(accumulate(weights))

    def one(self) -> Node:
        """A node."""
        nodes, bounds = self.nodes, self._bounds
        if bounds is None:
            return nodes[int(self._random() * len(nodes))]
        # Rounding may put the product on the last bound itself.
        return nodes[min(bisect(bounds, self._random() * bounds[-1]), len(nodes) - 1)]

    def one_but(self, excluded: Collection[Node]) -> Node | None:
        """A node that is none of the excluded ones; None if there is no other."""
        for _ in range(_DRAWS):
            if (node := self.one()) not in excluded:
                return node
        others = tuple(node for node in self.nodes if node not in excluded)
        return Draw(others, self._rng).one() if others else None
