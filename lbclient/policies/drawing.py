"""`Draw`: nodes at random in proportion to the weights; shared by the policies that draw."""

from __future__ import annotations

import copy
import random
from bisect import bisect
from collections.abc import Collection
from itertools import accumulate
from typing import Any

from lbclient.node import Node

__all__ = ["Draw"]

# Draws that may hit an excluded node before the rest is looked at one by one.
_DRAWS = 8


class Draw:
    """Draws nodes of a tuple by weight; evenly where all weights are equal or zero.

    Nodes of the same weight are drawn as one, and then one of them: O(log m) for m different weights. A table that
    needs no search (Walker's alias method) takes ten times as long to make, at every change of the set.
    """

    __slots__ = ("_alike", "_bounds", "_heavy", "_last", "_nodes", "_random", "_rest", "_rng", "_size", "nodes")

    def __init__(self, nodes: tuple[Node, ...], rng: random.Random) -> None:
        self.nodes = nodes
        self._rng = rng
        self._random = rng.random
        self._nodes = tuple([node for node in nodes if node.weight > 0]) or nodes
        self._size = len(self._nodes)
        # The nodes of each weight, and the sums of weights up to and with them; None where all weights are equal.
        self._alike: list[list[Node]] = []
        self._bounds: list[float] | None = None
        self._last = 0
        # A node with more than half of the weight, and a draw among the others, made when it is needed.
        self._heavy: Node | None = None
        self._rest: Draw | None = None
        weights = [node.weight for node in self._nodes]
        if weights.count(weights[0]) < self._size:
            self._weigh(weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draw:
        # A bound method of the source of randomness would stay that of the original.
        return Draw(self.nodes, copy.deepcopy(self._rng, memo))

    def _weigh(self, weights: list[float]) -> None:
        alike: dict[float, list[Node]] = {}
        for node, weight in zip(self._nodes, weights, strict=True):
            if (members := alike.get(weight)) is None:
                members = alike[weight] = []
            members.append(node)
        top = max(alike)
        # Their sum may be infinite; parts of the largest add up to the number of nodes at most.
        self._bounds = bounds = list(accumulate(weight / top * len(members) for weight, members in alike.items()))
        self._alike = list(alike.values())
        self._last = len(bounds) - 1
        if len(alike[top]) == 1 and bounds[-1] < 2:  # noqa: PLR2004 - it has more than half
            self._heavy = alike[top][0]

    def one(self) -> Node:
        """A node."""
        bounds, random_ = self._bounds, self._random
        if bounds is None:
            return self._nodes[int(random_() * self._size)]
        # Rounding may put the point on the last sum itself.
        alike = self._alike[bisect(bounds, random_() * bounds[-1], 0, self._last)]
        return alike[0] if len(alike) == 1 else alike[int(random_() * len(alike))]

    def two(self) -> tuple[Node, Node]:
        """Two different nodes: one by weight, and one of the others by weight.

        The same one twice if there is no other with a weight.
        """
        size = self._size
        if self._bounds is None:
            first = int(self._random() * size)
            second = int(self._random() * (size - 1))
            if second >= first and size > 1:
                second += 1
            return self._nodes[first], self._nodes[second]
        one = self.one()
        if one is self._heavy:
            return one, (self._rest or self._without_heavy()).one()
        # Others have half of the weight or more: two draws on average are enough.
        while (other := self.one()) is one:
            pass
        return one, other

    def one_but(self, excluded: Collection[Node]) -> Node | None:
        """A node that is none of the excluded ones; None if there is no other."""
        if self._heavy is not None and self._heavy in excluded:
            rest = self._rest or self._without_heavy()
            if (other := rest.one_but(excluded)) is not None:
                return other
        for _ in range(_DRAWS):
            if (node := self.one()) not in excluded:
                return node
        others = tuple(node for node in self.nodes if node not in excluded)
        return Draw(others, self._rng).one() if others else None

    def _without_heavy(self) -> Draw:
        self._rest = rest = Draw(tuple([node for node in self._nodes if node is not self._heavy]), self._rng)
        return rest
