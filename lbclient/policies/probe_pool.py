"""`ProbePool`: what servers said of their load a moment ago, and which of them is the best and the worst."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection
from math import ceil, inf
from operator import attrgetter

from lbclient.node import Node
from lbclient.policies.loads import avoided

__all__ = ["Probe", "ProbePool"]

# Answers that the quantile is taken of: eight pools full of them.
_SEEN = 128
# Ranks in three classes, far enough apart that no latency (seconds) or load reaches the next one.
_HOT = 1e9
_FAILING = 1e18


class Probe:
    """One server's answer.

    Attributes:
        node: who said it.
        load: its requests in flight by weight, and those that were sent to it since.
        latency: seconds that a request takes there now.
        received_at: `time.monotonic()` seconds.
        uses: how often it may still be chosen.
    """

    __slots__ = ("latency", "load", "node", "received_at", "uses")

    def __init__(self, node: Node, load: float, latency: float, received_at: float, uses: int) -> None:
        self.node = node
        self.load = load
        self.latency = latency
        self.received_at = received_at
        self.uses = uses

    def __repr__(self) -> str:
        return f"<Probe {self.node.address}: load {self.load:g}, {self.latency * 1000:.1f} ms>"


class ProbePool:
    """The newest answers, at most one for each node, the oldest first.

    Args:
        size: the most answers that are kept.
        max_age: seconds for which one is believed.
        quantile: an answer is *hot* if its load is above this quantile (0 to 1) of the loads seen lately. With 0
            all are hot, so that only load counts; with 1 none is, so that only latency counts.
    """

    __slots__ = ("_loads", "_max_age", "_quantile", "_size", "_sorted", "limit", "probes")

    def __init__(self, size: int, max_age: float, quantile: float) -> None:
        self._size = size
        self._max_age = max_age
        self._quantile = quantile
        self._loads: deque[float] = deque()
        self._sorted: list[float] = []
        self.probes: list[Probe] = []
        self.limit = inf if quantile > 0 else -inf

    def add(self, probe: Probe) -> None:
        """Take an answer in place of an earlier one of the same node, or of the oldest if the pool is full."""
        self._see(probe.load)
        probes = self.probes
        for index, known in enumerate(probes):
            if known.node is probe.node:
                del probes[index]
                break
        else:
            if len(probes) >= self._size:
                del probes[0]
        probes.append(probe)

    def _see(self, load: float) -> None:
        loads, ordered = self._loads, self._sorted
        if len(loads) >= _SEEN:
            del ordered[bisect_left(ordered, loads.popleft())]
        loads.append(load)
        insort(ordered, load)
        if 0 < self._quantile < 1:
            self.limit = ordered[ceil(self._quantile * len(ordered)) - 1]

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        probes, since = self.probes, now - self._max_age
        while probes and probes[0].received_at < since:
            del probes[0]

    def keep(self, nodes: Collection[Node]) -> None:
        """Forget all other nodes."""
        self.probes = [probe for probe in self.probes if probe.node in nodes]

    def extremes(self, excluded: Collection[Node], now: float) -> tuple[Probe, Probe] | None:
        """The best and the worst of two or more answers; None if there are fewer.

        Cold ones are ranked by latency, behind them hot ones by load, behind them those of nodes that fail.
        """
        probes, limit = self.probes, self.limit
        if excluded:
            probes = [probe for probe in probes if probe.node not in excluded]
        if len(probes) < 2:  # noqa: PLR2004 - without a choice it is no balancing (the paper's number, too)
            return None
        best = worst = probes[0]
        lowest, highest = inf, -inf
        for probe in probes:
            rank = probe.latency if probe.load <= limit else _HOT + probe.load
            # What such a node says must not make it a sink that swallows all.
            if (failing := probe.node.failing) and avoided(probe.node, now):
                rank = _FAILING * (1.0 + failing)
            if rank < lowest:
                lowest, best = rank, probe
            if rank > highest:
                highest, worst = rank, probe
        return best, worst

    def remove(self, probe: Probe) -> None:
        """Forget an answer, if it is still there."""
        if probe in self.probes:
            self.probes.remove(probe)

    def remove_oldest(self) -> None:
        """Forget the oldest answer; there must be one."""
        del self.probes[0]

    def use(self, probe: Probe) -> None:
        """Count a request that is sent because of an answer."""
        probe.uses -= 1
        probe.load += 1.0 / (probe.node.weight or 1e-9)
        if probe.uses <= 0:
            self.remove(probe)

    def take_back(self, probe: Probe) -> None:
        """Undo `use`, for a request that goes elsewhere."""
        if probe.uses <= 0 and all(known.node is not probe.node for known in self.probes):
            insort(self.probes, probe, key=attrgetter("received_at"))
        probe.uses += 1
        probe.load -= 1.0 / (probe.node.weight or 1e-9)

    def raise_load(self, node: Node) -> None:
        """Count a request that is sent to a node for another reason."""
        for probe in self.probes:
            if probe.node is node:
                probe.load += 1.0 / (node.weight or 1e-9)
                return
