"""Policies that draw at random: `Random` and `PowerOfTwo`."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import load_function, of_type
from lbclient.policies.drawing import Draw
from lbclient.policies.loads import Load, least_request

__all__ = ["PowerOfTwo", "Random"]


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
        return second if load(second, now) < load(first, now) else first


def _two_but(draw: Draw, call: Call) -> tuple[Node, Node]:
    first = draw.one_but(call.excluded) or draw.one()
    return first, draw.one_but((first, *call.excluded)) or first
