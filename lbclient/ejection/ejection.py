"""Taking a node out of service when it fails, and letting it back in."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lbclient.node import Node
from lbclient.outcome import ANSWERS, Outcome

__all__ = ["Ejection"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """When a node is taken out and for how long. Decides only; the `Balancer` keeps the last node in.

    Attributes:
        connect_failures: connection failures in a row that take a node out; any answer starts the count anew.
        base: seconds out of service the first time; doubled each further time (Envoy: 30 s).
        cap: the longest time out of service in seconds (Envoy: 300 s).

    The number of earlier ejections that doubles the time is forgotten one by one, one for each `base` seconds in
    which the node stayed in.
    """

    connect_failures: int = 3
    base: float = 30.0
    cap: float = 300.0

    def __post_init__(self) -> None:
        if self.connect_failures < 1:
            raise ValueError(f"connect_failures must be 1 or more, not {self.connect_failures!r}")
        if not 0 < self.base <= self.cap:
            raise ValueError(f"need 0 < base <= cap, not base={self.base!r}, cap={self.cap!r}")

    def fails(self, node: Node, outcome: Outcome) -> bool:
        """Count the outcome; True if the node should be out now."""
        if outcome in ANSWERS:
            node.connect_failures = 0
        elif outcome is Outcome.CONNECT:
            node.connect_failures += 1
            return node.connect_failures >= self.connect_failures
        return False

    def eject(self, node: Node, now: float) -> None:
        """Take the node out until `node.ejected_until`."""
        if node.ejected_at is None:
            healthy = max(0.0, now - node.returned_at)
            node.ejections = max(0, node.ejections - int(healthy / self.base))
        # Beyond 32 doublings the cap holds anyway; the power would overflow some day.
        seconds = min(self.cap, self.base * 2 ** min(node.ejections, 32))
        node.ejections += 1
        node.ejected_at = now
        node.ejected_until = now + seconds
        node.probing = False
        log.warning("%s: ejected for %.0f s", node.address, seconds)

    def restore(self, node: Node, now: float) -> None:
        """Let the node back in."""
        node.ejected_at = node.ejected_until = None
        node.probing = False
        node.connect_failures = 0
        node.returned_at = now
        log.info("%s: back in service", node.address)
