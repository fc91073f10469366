"""`WarmUp`: the nodes in their slow start, and what each of them may take."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from lbclient.node import Node
from lbclient.routing.slow_start import SlowStart

__all__ = ["Pace", "WarmUp"]

# Requests that a node may have earned and not taken. Drawing policies come by at random, and what they leave for
# the moment is not lost; more would be a burst for a cold server.
_MOST = 10.0
# With it, older nodes have at most three times their share. Half of the nodes may be new until it is felt.
_MOST_FOR_OTHERS = 2.0


class Pace:
    """How fast the nodes of a tuple earn requests.

    Attributes:
        picks: for how many requests a node of the tuple was picked.
        count: of the nodes.
        weight: their mean weight; registered ones may be so large that their sum is infinite.
        older: the part of it that nodes have which are not in their slow start.
    """

    __slots__ = ("count", "older", "picks", "weight")

    def __init__(self, count: int, weight: float, older: float) -> None:
        self.picks = 0
        self.count = count
        self.weight = weight
        self.older = older


class _Earned(NamedTuple):
    requests: float
    picks: int
    pace: Pace | None


class _Start(NamedTuple):
    at: float
    slow_start: SlowStart


class WarmUp:
    """Holds new nodes back, for any policy.

    With each pick a node earns `factor(age)` of its fair share of a request, which is its share of the weights,
    and it takes one when it has earned one. (To take each one that it is picked for with that probability would
    do for policies that draw, but those that look at the load pick an idle node again and again.)

    Args:
        rng: so that not all clients come to a new server with the same request.

    Attributes:
        until: `time.monotonic()` seconds from which on no node is in its slow start: one comparison per pick.
    """

    def __init__(self, rng: random.Random) -> None:
        self.until = -math.inf
        self._rng = rng
        self._starts: dict[Node, _Start] = {}
        self._earned: dict[Node, _Earned] = {}

    def begin(self, node: Node, now: float, slow_start: SlowStart | None) -> None:
        """The node came, or came back, just now; None gives it its whole share at once."""
        if slow_start is None:
            self.forget(node)
            return
        if now >= self.until:
            self._starts.clear()
            self._earned.clear()
        self._starts[node] = _Start(now, slow_start)
        self._earned[node] = _Earned(self._rng.random(), 0, None)
        self.until = max(self.until, now + slow_start.window)

    def forget(self, node: Node) -> None:
        """The node is out."""
        self._starts.pop(node, None)
        self._earned.pop(node, None)

    def factor(self, node: Node, now: float) -> float | None:
        """The part of its share that a node in its slow start gets; None for the others."""
        start = self._starts.get(node)
        factor = 1.0 if start is None else start.slow_start.factor(now - start.at)
        return factor if factor < 1 else None

    def pace(self, nodes: tuple[Node, ...]) -> Pace:
        """For a new tuple."""
        count = len(nodes)
        older = sum(node.weight / count for node in nodes if node not in self._starts)
        return Pace(count, sum(node.weight / count for node in nodes), older)

    def admits(self, node: Node, pace: Pace, now: float) -> bool:
        """Whether the node takes the request that it was picked for."""
        start = self._starts.get(node)
        if start is None or not pace.weight:
            return True
        factor = start.slow_start.factor(now - start.at)
        if factor >= 1:
            self.forget(node)
            pace.older += node.weight / pace.count
            return True
        # Where most are new, what they do not take would be too much for the others.
        factor = max(factor, 1 - _MOST_FOR_OTHERS * pace.older / pace.weight)
        fair = node.weight / pace.count / pace.weight
        requests, picks, before = self._earned[node]
        requests += (pace.picks - (picks if before is pace else 0)) * factor * fair
        admitted = factor >= 1 or requests >= 1
        self._earned[node] = _Earned(min(requests, _MOST) - (requests >= 1), pace.picks, pace)
        return admitted
