"""`LeastRequest`: the least busy node of all."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import load_function, of_type
from lbclient.policies.loads import Load, least_request
from lbclient.policies.smooth import SmoothOrder
from lbclient.policies.turns import whole_weights

__all__ = ["LeastRequest"]


class LeastRequest:
    """The node with the lowest load of all: for small sets, since each pick looks at every node.

    Those that are equally busy take turns by weight, as in nginx's `least_conn`, so that idle nodes share exactly
    in proportion to their weights.

    Args:
        load: how busy a node is: `in_flight`, `least_request`, `peak_ewma`, or a function of a node and the time.
        rng: the source of randomness.
    """

    def __init__(self, load: Load = least_request, rng: random.Random | None = None) -> None:
        load_function("load", load)
        of_type("rng", rng, random.Random)
        self._load = load
        self._rng = rng or random.Random()
        self._nodes: tuple[Node, ...] = ()
        self._order: SmoothOrder | None = None

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The least loaded one."""
        order = self._order
        if order is None or nodes is not self._nodes:
            order = self._take(nodes)
        if call.excluded:
            return self._pick_but(order, nodes, call)
        load, now = self._load, call.now
        loads = [load(node, now) for node in order.nodes]
        lowest = min(loads)
        equal = loads.count(lowest)
        if equal == 1:
            return order.nodes[loads.index(lowest)]
        if equal == len(loads):
            return order.next()
        return order.next_among([place for place, value in enumerate(loads) if value == lowest])

    def _pick_but(self, order: SmoothOrder, nodes: tuple[Node, ...], call: Call) -> Node:
        load, now, excluded = self._load, call.now, call.excluded
        loads = {place: load(node, now) for place, node in enumerate(order.nodes) if node not in excluded}
        if not loads:  # nodes of weight 0 have no turn, but are better than none
            return self._rng.choice([node for node in nodes if node not in excluded])
        lowest = min(loads.values())
        return order.next_among([place for place, value in loads.items() if value == lowest])

    def _take(self, nodes: tuple[Node, ...]) -> SmoothOrder:
        waits = self._order.waits() if self._order is not None else {}
        self._nodes = nodes
        self._order = order = SmoothOrder(*whole_weights(nodes), waits, self._rng)
        return order
