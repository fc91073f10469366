"""`Call`: what a policy may know of the request that it chooses a node for."""

from __future__ import annotations

from collections.abc import Collection

from lbclient.node import Node

__all__ = ["Call"]


class Call:
    """One request on its way through a balancer; its attempts share it.

    Attributes:
        now: `time.monotonic()` seconds of this pick; for `answered` those of the answer's head.
        key: what a hashing policy hashes, and what a route is chosen by; None if the request has none.
        session: what names the node that it should stay with; None if nothing does. It may be forged, so nothing
            else is decided by it.
        tried: nodes that earlier attempts of the request went to.
        excluded: nodes that must not be picked now: tried, at their limit, or being warmed up. Never all of
            the policy's nodes. Almost always empty, and small if not.
        in_flight: attempts under way at all nodes of the policy together.
    """

    __slots__ = ("excluded", "in_flight", "key", "now", "session", "tried")

    def __init__(self, key: str | None = None, now: float = 0.0, session: str | None = None) -> None:
        self.key = key
        self.session = session
        self.now = now
        self.tried: tuple[Node, ...] = ()
        self.excluded: Collection[Node] = ()
        self.in_flight = 0
