"""`LeastRequest`: the least busy node of all."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies.loads import Load, least_request

__all__ = ["LeastRequest"]


class LeastRequest:
    """The node with the lowest load of all: for small sets, since each pick looks at every node.

    Among equals it is the next in turn, so that idle nodes share evenly.
    """

    def __init__(self, load: Load = least_request, rng: random.Random | None = None) -> None:
        self._load = load
        self._position = (rng or random.Random()).randrange(1 << 30)

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The least loaded one."""
        if call.excluded:
            nodes = tuple(node for node in nodes if node not in call.excluded)
        self._position += 1
        start = self._position % len(nodes)
        load, now = self._load, call.now
        best = nodes[start]
        lowest = load(best, now)
        for node in nodes[start + 1 :] + nodes[:start]:
            if (loaded := load(node, now)) < lowest:
                best, lowest = node, loaded
        return best
