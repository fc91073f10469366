"""Policies that take turns: `RoundRobin` and `WeightedRoundRobin`."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import of_type
from lbclient.policies.deadlines import DeadlineOrder
from lbclient.policies.smooth import SmoothOrder
from lbclient.policies.turns import whole_weights

__all__ = ["RoundRobin", "WeightedRoundRobin"]

# Up to here nginx's order is about as cheap as deadlines.
_SMALL = 16


class RoundRobin:
    """One node after the other, whatever their weights. The start is random and the turn survives updates.

    Starting at the first node after each update floods it (envoy#3271, grpc-go#3793).
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        of_type("rng", rng, random.Random)
        self._rng = rng or random.Random()
        self._nodes: tuple[Node, ...] = ()
        self._place = -1

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The next one."""
        if nodes is not self._nodes:
            self._turn_to(nodes)
        # The place of the last one: -1 is the last of the tuple, and so before the first.
        place = self._place + 1
        while call.excluded and nodes[place] in call.excluded:
            place = place + 1 if place + 1 < len(nodes) else 0
        self._place = place if place + 1 < len(nodes) else -1
        return nodes[place]

    def _turn_to(self, nodes: tuple[Node, ...]) -> None:
        """Go on with the one that was next. If it left, anywhere: its successor must not get all its clients."""
        following = self._nodes[self._place + 1] if self._nodes else None
        start = nodes.index(following) if following in nodes else self._rng.randrange(len(nodes))
        self._nodes = nodes
        self._place = start - 1


class WeightedRoundRobin:
    """Nodes in turn, each as often as its weight says: exactly, and spread as evenly as can be.

    Up to 16 nodes take turns in nginx's smooth order, more of them by earliest deadline first, in O(log n). With
    whole weights any stretch of picks as long as the sum of the weights holds exactly each node's share, in both:
    in nginx's order until the nodes or weights change (see `SmoothOrder`, `DeadlineOrder`, `whole_weights`).

    The start is random. How long a node still has to wait for its turn survives updates and changes of weight, and
    a new one waits for a random part of a turn, so that clients do not all run to it at once.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        of_type("rng", rng, random.Random)
        self._rng = rng or random.Random()
        self._nodes: tuple[Node, ...] = ()
        self._order: SmoothOrder | DeadlineOrder | None = None

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The one whose turn it is; one that is excluded is passed over."""
        order = self._order
        if order is None or nodes is not self._nodes:
            order = self._take(nodes)
        if not call.excluded:
            return order.next()
        # Nodes of weight 0 have no turn, but are better than none.
        return order.next_but(call.excluded) or self._rng.choice([n for n in nodes if n not in call.excluded])

    def _take(self, nodes: tuple[Node, ...]) -> SmoothOrder | DeadlineOrder:
        waits = self._order.waits() if self._order is not None else {}
        weighted, weights = whole_weights(nodes)
        new_order = SmoothOrder if len(weighted) <= _SMALL else DeadlineOrder
        self._nodes = nodes
        self._order = order = new_order(weighted, weights, waits, self._rng)
        return order
