"""`Attempt`: one try at one node."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from yarl import URL

from lbclient.errors import NodeLeft
from lbclient.node import NO_ATTEMPTS, Node
from lbclient.outcome import Outcome

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientResponse
    from aiohttp.connector import Connection

__all__ = ["Attempt"]


class Attempt:
    """One try at one node, from the pick until the end of the body.

    Attributes:
        endpoint: where it went.
        outcome: what it showed; None while it is under way.
        elapsed: seconds until the head of the response, or until the failure.
        picked: why this node, in words.
        error: what failed, in words; empty after a success.
        sent: whether the request began to be written; sent_at: when, in `time.monotonic()` seconds.
        observed: the outcome that the balancer has learned from; None before.
    """

    __slots__ = (
        "_on_land",
        "_req",
        "conn",
        "elapsed",
        "endpoint",
        "error",
        "node",
        "observed",
        "outcome",
        "picked",
        "sent",
        "sent_at",
        "started_at",
    )

    def __init__(self, node: Node, picked: str, on_land: Callable[[], None]) -> None:
        self.node = node
        self._on_land = on_land
        self.endpoint = node.endpoint
        self.picked = picked
        self.outcome: Outcome | None = None
        self.observed: Outcome | None = None
        self.elapsed = 0.0
        self.error = ""
        self.sent = False
        self.sent_at: float | None = None
        self.conn: Connection | None = None
        self._req: ClientRequest | None = None
        self.started_at = time.monotonic()
        node.in_flight += 1
        node.group.in_flight += 1
        node.requests += 1
        if node.attempts is NO_ATTEMPTS:
            node.attempts = set()
        node.attempts.add(self)
        if node.awaits_probe:
            node.awaits_probe = False
            node.probe = self

    def __repr__(self) -> str:
        return f"<Attempt {self}>"

    def __str__(self) -> str:
        said = f"{self.endpoint.address}: {self.outcome.value if self.outcome else 'under way'}"
        said += f" after {self.elapsed * 1000:.1f} ms ({self.picked})"
        return f"{said}: {self.error}" if self.error else said

    def aim(self, req: ClientRequest, url: URL, server_hostname: str | None) -> None:
        """Point the request at the node, and be told when it is written."""
        self.node.aim(req, url, server_hostname)
        self._req = req
        # Between connecting and writing is the last moment at which a node that has left can be noticed.
        setattr(req, "send", self.send)  # noqa: B010 - a method, as far as types are concerned

    def send(self, conn: Connection) -> Awaitable[ClientResponse]:
        """Stand in for `ClientRequest.send`: the connection is there, nothing was written yet."""
        req, self._req = self._req, None
        if req is None or self.node.left:
            raise NodeLeft(f"{self.node.address} left while a connection to it was being made")
        self.conn = conn
        self.sent = True
        self.sent_at = time.monotonic()
        conn.add_callback(self.land)
        return type(req).send(req, conn)

    def land(self) -> None:
        """The connection is free again, or there will be none: the attempt is over. Doing it twice is harmless."""
        node = self.node
        if self in node.attempts:
            node.attempts.remove(self)
            node.in_flight -= 1
            node.group.in_flight -= 1
            self.conn = None
            self._req = None
            self._on_land()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `elapsed` in seconds."""
        return {
            "address": self.endpoint.address,
            "outcome": self.outcome.value if self.outcome else None,
            "elapsed": self.elapsed,
            "picked": self.picked,
            "error": self.error,
        }
