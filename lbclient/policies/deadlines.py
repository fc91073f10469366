"""`DeadlineOrder`: turns by weight in O(log n), for sets of any size."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush, heapreplace

from lbclient.node import Node
from lbclient.policies.turns import TURN

__all__ = ["DeadlineOrder"]


class DeadlineOrder:
    """Turns by earliest deadline first: a node of weight w has one every 1/w of a virtual time.

    Each node starts at a random offset of its own, and keeps it. In a virtual time of 1, wherever that begins, it
    has w turns: so any stretch as long as the sum of the weights holds exactly each node's share.

    The deadline of c parts of turns is the whole number floor(c * s / w), for s the square of the largest weight.
    Nothing is lost by that: different fractions c/w are at least 1/s apart, so that their floors differ and are in
    the same order, and c is the ceiling of deadline * w / s. Equal ones go by the place in the tuple. Deadlines as
    sums of floats (Envoy) would break ties by their rounding.

    Args:
        nodes: at least one.
        weights: whole numbers above 0.
        waits: how long each node still had to wait in an order before, in parts of a turn (`TURN`); nodes that are
            not among them wait for a random part of one.
        rng: the source of randomness.
    """

    def __init__(
        self, nodes: tuple[Node, ...], weights: list[int], waits: Mapping[Node, int], rng: random.Random
    ) -> None:
        self.nodes = nodes
        self._weights = weights
        self._scale = scale = max(weights) ** 2
        self._bits = bits = len(nodes).bit_length()
        self._mask = (1 << bits) - 1
        parts = [waits[node] if node in waits else 1 + int(TURN * rng.random()) for node in nodes]
        # The next deadline of each node and its place in one number: quick to compare, and one thing to look up.
        self._heap = [
            part * scale // weight << bits | place
            for place, (part, weight) in enumerate(zip(parts, weights, strict=True))
        ]
        heapify(self._heap)

    def next(self) -> Node:
        """The node whose turn it is."""
        heap, scale = self._heap, self._scale
        place = heap[0] & self._mask
        weight = self._weights[place]
        # The same as in `_later`, without a call.
        parts = TURN - (-(heap[0] >> self._bits) * weight // scale)
        heapreplace(heap, parts * scale // weight << self._bits | place)
        return self.nodes[place]

    def next_but(self, excluded: Collection[Node]) -> Node | None:
        """The first in turn that is not excluded; None if all are.

        The excluded ones keep one turn each and no more: one that was full for long must not get all that it
        missed in a row.
        """
        heap, skipped = self._heap, []
        while heap and self.nodes[heap[0] & self._mask] in excluded:
            skipped.append(heappop(heap))
        now = heap[0] >> self._bits if heap else 0
        node = self.next() if heap else None
        for key in skipped:
            missed = (now - (key >> self._bits)) * self._weights[key & self._mask] // (self._scale * TURN)
            heappush(heap, self._later(key, max(0, missed)))
        return node

    def _later(self, key: int, turns: int) -> int:
        place = key & self._mask
        weight = self._weights[place]
        parts = turns * TURN - (-(key >> self._bits) * weight // self._scale)
        return parts * self._scale // weight << self._bits | place

    def waits(self) -> dict[Node, int]:
        """How long each node still has to wait, in parts of a turn."""
        weights, scale, bits, mask = self._weights, self._scale, self._bits, self._mask
        now = self._heap[0] >> bits
        waits = [0] * len(weights)
        for key in self._heap:
            place = key & mask
            waits[place] = ((key >> bits) - now) * weights[place] // scale + 1
        # In the order of the nodes: thousands of them are looked at faster one after the other than to and fro.
        return dict(zip(self.nodes, waits, strict=True))
