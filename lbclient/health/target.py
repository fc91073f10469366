"""`Target`: a node that is checked, and what the checks showed."""

from __future__ import annotations

import asyncio
from typing import Any

from lbclient.health.health_check import HealthCheck
from lbclient.health.state import HealthState, Verdict
from lbclient.node import Node

__all__ = ["Target"]


class Target:
    """A node that is checked.

    Attributes:
        gone: it is checked no more.
        task: the check under way.
        last: verdict and reason of the last check, and the loop's time then.
        confirmed: checks in a row that succeeded since it was ejected; `ejected_at`: when it was.
    """

    __slots__ = ("_says_little", "confirmed", "ejected_at", "gone", "last", "node", "state", "task")

    def __init__(self, node: Node, check: HealthCheck) -> None:
        self.node = node
        self.state = HealthState(check)
        # A connection says nothing of the handshake that requests need.
        self._says_little = check.path is None and node.endpoint.tls
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.last: tuple[Verdict, str, float] | None = None
        self.ejected_at: float | None = None
        self.confirmed = 0

    def confirms(self, verdict: Verdict, started_at: float) -> int:
        """Count the checks that succeeded since the node was ejected, in a row."""
        ejected_at = self.node.ejected_at
        if self._says_little:
            return 0
        if verdict is Verdict.UNKNOWN and ejected_at == self.ejected_at:
            return 0
        if ejected_at != self.ejected_at or verdict is not Verdict.OK:
            self.ejected_at = ejected_at
            self.confirmed = 0
        if ejected_at is None or verdict is not Verdict.OK or started_at < ejected_at:
            return 0
        self.confirmed += 1
        return self.confirmed

    def as_dict(self, now: float) -> dict[str, Any] | None:
        """The last check; None before the first."""
        if self.last is None:
            return None
        verdict, why, at = self.last
        state = self.state
        in_a_row = state.successes or state.failures
        return {"result": verdict.value, "why": why, "ago": now - at, "in_a_row": in_a_row}
