"""`Server`: several workers and one queue, first come, first served."""

from __future__ import annotations

from heapq import heapreplace
from math import inf

from lbclient.load_report import LoadReport
from lbclient.load_reporter import LatencyEstimate
from simulation.plan import ServerPlan

__all__ = ["Server"]

# Seconds that a failing server needs for its 500.
_REFUSAL = 0.001


class Server:
    """A server of the simulation.

    When a request will be through is known as soon as it arrives, since those behind it cannot overtake it: so
    a request needs no event of its own for the beginning of its service.

    Attributes:
        number: its place in the plan.
        load: requests that are queued or worked on.
        latency: what it knows of its own latency, as a server with lbclient's reporter does.
    """

    __slots__ = (
        "_changes",
        "_changes_at",
        "_free_at",
        "_speed",
        "_speeds",
        "failing",
        "latency",
        "load",
        "number",
    )

    def __init__(self, number: int, plan: ServerPlan) -> None:
        self.number = number
        self.failing = plan.failing
        self.load = 0
        self.latency = LatencyEstimate()
        # A heap of the moments at which the workers are free.
        self._free_at = [0.0] * plan.workers
        self._speeds = plan.speeds
        self._speed = plan.speeds[0][1]
        self._changes = 1
        self._changes_at = plan.speeds[1][0] if len(plan.speeds) > 1 else inf

    def serve(self, now: float, work: float, deadline: float) -> float:
        """Take a request that arrives now; returns when it is through: never if it cannot begin in time."""
        if self.failing:
            return now + _REFUSAL
        free_at = self._free_at
        begin = free_at[0]
        if begin < now:
            begin = now
        elif begin >= deadline:
            return inf
        while begin >= self._changes_at:
            self._change()
        end = begin + work / self._speed
        heapreplace(free_at, end)
        return end

    def report(self, now: float) -> LoadReport:
        """What it answers to a probe."""
        return LoadReport(self.load, self.latency.at(self.load, now))

    def _change(self) -> None:
        self._speed = self._speeds[self._changes][1]
        self._changes += 1
        self._changes_at = self._speeds[self._changes][0] if self._changes < len(self._speeds) else inf
