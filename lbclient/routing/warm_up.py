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


class WarmUp:
    """Holds new nodes back, for any policy.

    With each pick a node earns `factor(age)` of its fair share of a request, which is its share of the weights,
    and it takes one when it has earned one. (To take each one that it is picked for with that probability would
    do for policies that draw, but those that look at the load pick an idle node again and again.)

    Args:
        slow_start: how fast.
        rng: so that not all clients come to a new server with the same request.
    """

    def __init__(self, slow_start: SlowStart, rng: random.Random) -> None:
        self._slow_start = slow_start
        self._rng = rng
        self._since: dict[Node, float] = {}
        self._earned: dict[Node, _Earned] = {}
        self._until = -math.inf

    def is_on(self, now: float) -> bool:
        """Whether there may be a node in its slow start."""
        return now < self._until

    def begin(self, node: Node, now: float) -> None:
        """The node came, or came back, just now."""
        if not self.is_on(now):
            self._since.clear()
            self._earned.clear()
        self._since[node] = now
        self._earned[node] = _Earned(self._rng.random(), 0, None)
        self._until = now + self._slow_start.window

    def forget(self, node: Node) -> None:
        """The node is out."""
        self._since.pop(node, None)
        self._earned.pop(node, None)

    def pace(self, nodes: tuple[Node, ...]) -> Pace:
        """For a new tuple."""
        count = len(nodes)
        older = sum(node.weight / count for node in nodes if node not in self._since)
        return Pace(count, sum(node.weight / count for node in nodes), older)

    def admits(self, node: Node, pace: Pace, now: float) -> bool:
        """Whether the node takes the request that it was picked for."""
        since = self._since.get(node)
        if since is None or not pace.weight:
            return True
        factor = self._slow_start.factor(now - since)
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
