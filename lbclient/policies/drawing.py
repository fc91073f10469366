"""`Draw`: nodes at random in proportion to the weights; shared by the policies that draw."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection
from math import inf

from lbclient.node import Node

__all__ = ["Draw"]

# Draws that may hit an excluded node before the rest is looked at one by one.
_DRAWS = 8


class Draw:
    """Draws nodes of a tuple by weight; evenly where all weights are equal or zero.

    O(1), by Walker's alias method: each of n equal slots belongs to one node up to some point, and beyond it to
    another. Made anew for each tuple, in O(n) (Vose 1991). Shares are as exact as floats: to 1 in 10¹² and better.
    """

    __slots__ = ("_heavy", "_kept", "_nodes", "_others", "_random", "_rest", "_rng", "_size", "nodes")

    def __init__(self, nodes: tuple[Node, ...], rng: random.Random) -> None:
        self.nodes = nodes
        self._rng = rng
        self._random = rng.random
        self._nodes = tuple([node for node in nodes if node.weight > 0]) or nodes
        self._size = len(self._nodes)
        weights = [node.weight for node in self._nodes]
        # The part of each slot that its own node keeps, and whose the rest is; None where all weights are equal.
        self._kept: array[float] | None = None
        # A node with more than half of the weight, and a draw among the others, made when it is needed.
        self._heavy: Node | None = None
        self._rest: Draw | None = None
        if weights.count(weights[0]) < len(weights):
            parts = _parts(weights)
            heaviest = max(range(self._size), key=parts.__getitem__)
            if parts[heaviest] > self._size / 2:
                self._heavy = self._nodes[heaviest]
            self._kept, self._others = _slots(parts)

    def one(self) -> Node:
        """A node."""
        point = self._random() * self._size
        slot = int(point)
        kept = self._kept
        if kept is None or point - slot < kept[slot]:
            return self._nodes[slot]
        return self._nodes[self._others[slot]]

    def two(self) -> tuple[Node, Node]:
        """Two different nodes: one by weight, and one of the others by weight.

        The same one twice if there is no other with a weight.
        """
        size = self._size
        if self._kept is None:
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


def _parts(weights: list[float]) -> list[float]:
    """The weights scaled to an average of 1. Those of the largest first, since their sum may be infinite."""
    top = max(weights)
    parts = [weight / top for weight in weights]
    scale = len(parts) / sum(parts)
    return [part * scale for part in parts]


def _slots(parts: list[float]) -> tuple[array[float], array[int]]:
    """Fill each slot that its node leaves partly empty from a node that has more than its slot holds."""
    kept, others = parts.copy(), list(range(len(parts)))
    givers = iter([place for place, part in enumerate(parts) if part >= 1])
    giver = next(givers)
    left = parts[giver]
    for slot in [place for place, part in enumerate(parts) if part < 1]:
        others[slot] = giver
        left += parts[slot] - 1
        # Now it is partly empty itself, and the next one fills it.
        while left < 1:
            following = next(givers, giver)
            kept[giver], others[giver] = left, following
            # Without a next one all are full but for rounding.
            left = left + parts[following] - 1 if following != giver else inf
            giver = following
    return array("d", kept), array("l", others)
