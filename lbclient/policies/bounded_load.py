"""`BoundedLoad`: how many of the attempts under way one node may have, whatever the keys are."""

from __future__ import annotations

from collections.abc import Iterable

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["BoundedLoad"]


class BoundedLoad:
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016).

    A node has room as long as it has fewer attempts under way than ceil(`factor` * (all + 1) * share): its share
    goes by weight, and all + 1 counts the attempt to be placed. That adds up to more than all: some node has room.

    Args:
        factor: above 1, usually 1.25 to 2. The nearer to 1, the more requests leave the first node of their key.

    Raises:
        ValueError: for another factor.
    """

    __slots__ = ("_factor", "_floor", "_heaviest", "_total")

    def __init__(self, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 < factor < float("inf"):
            raise ValueError(f"bounded_load must be a number above 1, such as 1.25, not {factor!r}")
        self._factor = factor
        # Weights are taken as parts of the heaviest, since the sum of great ones is infinite.
        self._heaviest = 1.0
        self._total = 1.0
        # Weights that are zero everywhere count as one everywhere; a single zero gets nothing.
        self._floor = 1.0

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set as it is."""
        heaviest = max(node.weight for node in nodes)
        self._heaviest = heaviest or 1.0
        self._floor = 0.0 if heaviest else 1.0
        self._total = sum(node.weight / self._heaviest or self._floor for node in nodes)

    def has_room(self, node: Node, call: Call) -> bool:
        """Whether the node may have one more."""
        # The whole numbers below a bound are those below its ceiling. With equal weights nothing is rounded here.
        part = node.weight / self._heaviest or self._floor
        return node.in_flight * self._total < self._factor * (call.in_flight + 1) * part

    def least_loaded(self, nodes: Iterable[Node]) -> Node:
        """The one that has the fewest by weight, for when none of those that may be picked has room."""
        floor = self._floor or 5e-324
        return min(nodes, key=lambda node: (node.in_flight + 1) / (node.weight / self._heaviest or floor))
