"""`BoundedLoad`: how many of the attempts under way one node may have, whatever the keys are."""

from __future__ import annotations

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["BoundedLoad"]


class BoundedLoad:
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016).

    A node has room as long as it has fewer attempts under way than ceil(`factor` * (all + 1) * share): its share goes
    by weight, and all + 1 counts the attempt to be placed. These add up to more than all, so some node has room.

    Args:
        factor: above 1, usually 1.25 to 2. The nearer to 1, the more requests leave the first node of their key.

    Raises:
        ValueError: for another factor.
    """

    __slots__ = ("_allowance", "_factor", "_floor")

    def __init__(self, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 < factor < float("inf"):
            raise ValueError(f"bounded_load must be a number above 1, such as 1.25, not {factor!r}")
        self._factor = factor
        # Of one attempt under way in all, for each unit of weight.
        self._allowance = 0.0
        # Weights that are zero everywhere count as one everywhere; a single zero gets nothing.
        self._floor = 1.0

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set as it is."""
        # Divided before it is summed up, since the sum of the largest weights is infinite.
        mean = sum(node.weight / len(nodes) for node in nodes)
        self._floor = 0.0 if mean else 1.0
        self._allowance = self._factor / len(nodes) / (mean or 1.0)

    def has_room(self, node: Node, call: Call) -> bool:
        """Whether the node may have one more."""
        # Whole numbers below a bound are those below its ceiling.
        return node.in_flight < (call.in_flight + 1) * self._allowance * (node.weight or self._floor)
