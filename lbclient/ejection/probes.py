"""`Probes`: which ejected node is due for its probe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["Probes"]


class Probes:
    """The ejected nodes by the time at which they are due.

    Attributes:
        next_at: `time.monotonic()` seconds before which no node is due: one comparison per pick.
    """

    def __init__(self) -> None:
        self.next_at = math.inf
        self._numbers = count()
        # What is out of date in it is dropped when its time has come.
        self._heap: list[tuple[float, int, Node]] = []

    def rebuild(self, nodes: Iterable[Node]) -> None:
        """Take these, all that are ejected, in place of the ones before."""
        self._heap = [
            (node.ejected_until or 0.0, next(self._numbers), node) for node in nodes if _may_be_due(node)
        ]
        heapify(self._heap)
        self._note()

    def add(self, node: Node) -> None:
        """A node is ejected, or its probe showed nothing."""
        if _may_be_due(node):
            heappush(self._heap, (node.ejected_until or 0.0, next(self._numbers), node))
            self._note()

    def take(self, call: Call, limit: float) -> Node | None:
        """A node that is due, was not tried, and has fewer attempts under way than the limit.

        The next attempt that begins at it is its probe; if none does it is due with the next call again.
        """
        heap, passed = self._heap, []
        found = None
        while found is None and heap and heap[0][0] <= call.now:
            until, _, node = heap[0]
            if node.ejected_until != until or not _may_be_due(node):
                heappop(heap)
            elif node in call.tried or node.in_flight >= limit:
                passed.append(heappop(heap))
            else:
                node.awaits_probe = True
                found = node
        for entry in passed:
            heappush(heap, entry)
        self._note()
        return found

    def _note(self) -> None:
        self.next_at = self._heap[0][0] if self._heap else math.inf


def _may_be_due(node: Node) -> bool:
    # Weight 0 means no new traffic, and a probe is a request like any other. Who is unhealthy would fail it.
    willing = node.weight > 0 and node.healthy and not node.leaving and not node.left
    return willing and node.ejected_at is not None and node.probe is None
