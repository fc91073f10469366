"""Policies that take turns: `RoundRobin`."""

from __future__ import annotations

import random

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["RoundRobin"]


class RoundRobin:
    """One node after the other, whatever their weights. The start is random and the position survives updates.

    Starting at the first node after each update floods it (envoy#3271, grpc-go#3793).
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._position = (rng or random.Random()).randrange(1 << 30)

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The next one."""
        self._position = position = self._position + 1
        node = nodes[position % len(nodes)]
        while call.excluded and node in call.excluded:
            self._position = position = self._position + 1
            node = nodes[position % len(nodes)]
        return node
