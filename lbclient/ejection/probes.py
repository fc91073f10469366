"""`Probes`: which ejected node is due for its probe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["Probes"]

# Entries that are out of date before they are looked for, beside one for each node.
_SLACK = 100


class Probes:
    """The ejected nodes by the time at which they are due.

    Args:
        patience: seconds after which a probe that is still under way keeps no other one from being sent.

    Attributes:
        next_at: `time.monotonic()` seconds before which no node is due: one comparison per pick.
    """

    def __init__(self, patience: float) -> None:
        self.next_at = math.inf
        self._patience = patience
        self._weightless = False
        self._numbers = count()
        # What is out of date in it is dropped when its time has come.
        self._heap: list[tuple[float, int, Node]] = []
        # Of each node the entry that counts.
        self._entries: dict[Node, float] = {}

    def rebuild(self, nodes: Iterable[Node], *, weightless: bool) -> None:
        """Take these, all that are ejected, in place of the ones before; of weight 0 only where it says so."""
        self._weightless = weightless
        due = ((node, self._due_at(node)) for node in nodes)
        self._entries = {node: at for node, at in due if at is not None}
        self._tidy()
        self._note()

    def add(self, node: Node) -> None:
        """A node is ejected, or its probe showed nothing."""
        self._push(node)
        # A probe that ends before its time leaves one that is `patience` seconds away: in an outage two a second.
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._tidy()
        self._note()

    def take(self, call: Call, limit: float) -> Node | None:
        """A node that is due, was not tried, and has fewer attempts under way than the limit.

        The next attempt that begins at it is its probe; if none does it is due with the next call again.
        """
        heap, passed = self._heap, []
        found = None
        while found is None and heap and heap[0][0] <= call.now:
            until, _, node = heap[0]
            if self._entries.get(node) != until:
                heappop(heap)
            elif self._due_at(node) != until:
                # Its probe has begun.
                heappop(heap)
                self._push(node)
            elif node in call.tried or node.in_flight >= limit:
                passed.append(heappop(heap))
            else:
                node.awaits_probe = True
                found = node
        for entry in passed:
            heappush(heap, entry)
        self._note()
        return found

    def _tidy(self) -> None:
        self._heap = [(at, next(self._numbers), node) for node, at in self._entries.items()]
        heapify(self._heap)

    def _push(self, node: Node) -> None:
        at = self._due_at(node)
        if at is None:
            self._entries.pop(node, None)
        elif at != self._entries.get(node):
            self._entries[node] = at
            heappush(self._heap, (at, next(self._numbers), node))

    def _due_at(self, node: Node) -> float | None:
        # Weight 0 means no new traffic, and a probe is a request like any other; but where there is nothing else
        # such nodes get requests, and would stay out for ever. Who is unhealthy would fail it.
        willing = (node.weight > 0 or self._weightless) and node.healthy and not node.leaving and not node.left
        if not willing or node.ejected_at is None:
            return None
        # A request without a deadline may wait for ever for a server that is gone, and the node with it.
        return node.ejected_until if node.probe is None else float(node.probe.started_at + self._patience)

    def _note(self) -> None:
        self.next_at = self._heap[0][0] if self._heap else math.inf
