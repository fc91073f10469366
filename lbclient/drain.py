"""Closing the connections to nodes that left: idle ones at once, busy ones after their body, all in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakSet

import aiohttp

from lbclient.node import Node

__all__ = ["Drain"]

log = logging.getLogger(__name__)

# Closing a socket costs the loop about 12 µs; a thousand of them in one go are a pause that nobody notices.
_SLICE = 1000


class Drain:
    """Ends the connections to nodes that left.

    Args:
        timeout: seconds after which what still runs to a node that has left is cut.
        listed: whether some service still lists an address; its connections are then left alone.
    """

    def __init__(self, timeout: float, listed: Callable[[str], bool]) -> None:
        self._timeout = timeout
        self._listed = listed
        self._connectors: WeakSet[aiohttp.BaseConnector] = WeakSet()
        # Nodes that left with attempts under way; the deadline is set once no service lists the address any more.
        self._draining: dict[Node, asyncio.TimerHandle | None] = {}

    @property
    def nodes(self) -> list[Node]:
        """Nodes that have left and still have attempts under way."""
        return [node for node in self._draining if node.attempts]

    def watch_over(self, session: aiohttp.ClientSession) -> None:
        """Learn about a session whose connections may have to be closed."""
        if session.connector is not None:
            self._connectors.add(session.connector)

    def begin(self, left: Iterable[Node]) -> None:
        """Close what is idle in this very turn of the loop, let what is busy end, and set the deadline."""
        left = list(left)
        self._close_idle({(node.endpoint.host, node.endpoint.port): node.address for node in left})
        self._draining = {node: handle for node, handle in self._draining.items() if node.attempts or handle}
        self._draining.update((node, None) for node in left if node.attempts)
        for node, deadline in self._draining.items():
            if deadline is None and not self._listed(node.address):
                self._draining[node] = asyncio.get_running_loop().call_later(self._timeout, self._cut, node)
                for attempt in node.attempts:
                    if attempt.conn is not None and attempt.conn.protocol is not None:
                        # The connector closes it instead of keeping it, as after `Connection: close`.
                        attempt.conn.protocol.force_close()

    def _cut(self, node: Node) -> None:
        self._draining.pop(node, None)
        attempts = [attempt for attempt in node.attempts if attempt.conn is not None]
        if attempts:
            log.warning("%s: cut %d attempts, %g s after it left", node.address, len(attempts), self._timeout)
        for attempt in attempts:
            if attempt.conn is not None and attempt.conn.transport is not None:
                attempt.conn.transport.abort()

    def _close_idle(self, addresses: dict[tuple[str, int], str]) -> None:
        idle = list(self._idle({key for key, address in addresses.items() if not self._listed(address)}))
        for protocol in idle[:_SLICE]:
            protocol.close()
        if len(idle) > _SLICE:
            asyncio.get_running_loop().call_soon(self._close_idle, addresses)

    def _idle(self, addresses: set[tuple[str, int]]) -> Iterator[Any]:
        for connector in self._connectors:
            # The one private name that is read. If it vanishes, idle connections still die with the
            # connector's keepalive_timeout, because no attempt goes to a node that has left.
            for key, connections in getattr(connector, "_conns", {}).items():
                if (key.host, key.port) in addresses:
                    yield from (protocol for protocol, *_ in connections if protocol.is_connected())

    def close(self) -> None:
        """Forget the deadlines; the connections are the session's to close."""
        for deadline in self._draining.values():
            if deadline is not None:
                deadline.cancel()
        self._draining.clear()
