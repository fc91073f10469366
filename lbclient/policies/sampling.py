"""Policies that draw at random: `Random` and `PowerOfTwo`."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import load_function, of_type
from lbclient.policies.drawing import Draw
from lbclient.policies.loads import Load, avoided, least_request

__all__ = ["PowerOfTwo", "Random"]

# Draws that may hit the first node again before the excluded ones, which may be thousands, are copied; and those
# that may hit nodes that fail before one of them is taken.
_DRAWS = 8


class Random:
    """A node at random, in proportion to the weights."""

    def __init__(self, rng: random.Random | None = None) -> None:
        of_type("rng", rng, random.Random)
        self._rng = rng or random.Random()
        self._draw: Draw | None = None

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """One by the weights; evenly where all weights are equal or zero."""
        draw = self._draw
        if draw is None or draw.nodes is not nodes:
            self._draw = draw = Draw(nodes, self._rng)
        if call.excluded and (other := draw.one_but(call.excluded)) is not None:
            return other
        return draw.one()


class PowerOfTwo:
    """The less loaded of two *different* nodes drawn at random (Mitzenmacher 2001): close to the best, at O(1).

    Nodes are drawn by weight and compared by load, which counts by weight as well (Berenbrink et al., "Balls into
    non-uniform bins"). On a tie the first draw stays, which is random itself.

    Args:
        load: how busy a node is: `in_flight`, `least_request`, `peak_ewma`, or a function of a node and the time.
        rng: the source of randomness.
    """

    def __init__(self, load: Load = least_request, rng: random.Random | None = None) -> None:
        load_function("load", load)
        of_type("rng", rng, random.Random)
        self._load = load
        self._rng = rng or random.Random()
        self._draw: Draw | None = None

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The better of two."""
        draw = self._draw
        if draw is None or draw.nodes is not nodes:
            self._draw = draw = Draw(nodes, self._rng)
        if call.excluded:
            first, second = _two_but(draw, call)
        else:
            first, second = draw.two()
        load, now = self._load, call.now
        node = second if load(second, now) < load(first, now) else first
        return self._working(node, draw, call) if node.failing else node

    @staticmethod
    def _working(node: Node, draw: Draw, call: Call) -> Node:
        """Another one, if the better of two fails: with two such among ten, both draws hit them now and then."""
        if avoided(node, call.now):
            for _ in range(_DRAWS):
                other = draw.one_but(call.excluded)
                if other is not None and not avoided(other, call.now):
                    return other
        return node


def _two_but(draw: Draw, call: Call) -> tuple[Node, Node]:
    first = draw.one_but(call.excluded) or draw.one()
    for _ in range(_DRAWS):
        if (second := draw.one_but(call.excluded)) is not first and second is not None:
            return first, second
    return first, draw.one_but({first, *call.excluded}) or first
