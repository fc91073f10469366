"""Closing the connections to nodes that left: idle ones at once, busy ones after their body, all in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakSet

import aiohttp

from lbclient.attempt import Attempt
from lbclient.errors import ResponseCut
from lbclient.node import Node

__all__ = ["Drain"]

log = logging.getLogger(__name__)

# Closing a socket costs the loop about 12 µs; a thousand of them in one go are a pause that nobody notices.
_SLICE = 1000
# Seconds that the other side of a websocket has for its answer to "going away".
_FAREWELL = 1.0


class _Remnant:
    """What is still under way at an address since before it was left."""

    __slots__ = ("deadline", "nodes")

    def __init__(self) -> None:
        self.nodes: set[Node] = set()
        # None while some service lists the address.
        self.deadline: asyncio.TimerHandle | None = None


class Drain:
    """Ends the connections to addresses that no service lists any more.

    When the last service drops an address, idle connections to it are closed in the same turn of the loop, and
    those in use when their request has ended. What still runs `timeout` seconds later is cut; if the address is
    listed again by then it goes on, until the address is dropped the next time and the seconds begin anew.
    Websockets are closed with 1001 ("going away") then, and have a second for it.

    Args:
        timeout: seconds after which what still runs to a node that has left is cut.
        listed: whether some service still lists an address; its connections are then left alone.
    """

    def __init__(self, timeout: float, listed: Callable[[str], bool]) -> None:
        self._timeout = timeout
        self._listed = listed
        self._connectors: WeakSet[aiohttp.BaseConnector] = WeakSet()
        self._remnants: dict[str, _Remnant] = {}
        self._farewells: set[asyncio.Task[None]] = set()

    @property
    def nodes(self) -> list[Node]:
        """Nodes that have left and still have attempts under way."""
        return [node for remnant in self._remnants.values() for node in remnant.nodes if node.attempts]

    def watch_over(self, session: aiohttp.ClientSession) -> None:
        """Learn about a session whose connections may have to be closed."""
        if session.connector is not None:
            self._connectors.add(session.connector)

    def begin(self, left: Iterable[Node]) -> None:
        """Close what is idle in this very turn of the loop, let what is busy end, and set the deadline."""
        left = list(left)
        self._close_idle({(node.endpoint.host, node.endpoint.port): node.address for node in left})
        self._forget_ended()
        for node in left:
            if node.attempts:
                self._remnants.setdefault(node.address, _Remnant()).nodes.add(node)
        for address in {node.address for node in left if node.address in self._remnants}:
            if not self._listed(address):
                self._set_deadline(address, self._remnants[address])

    def _forget_ended(self) -> None:
        for address, remnant in list(self._remnants.items()):
            remnant.nodes = {node for node in remnant.nodes if node.attempts}
            if not remnant.nodes:
                del self._remnants[address]
                if remnant.deadline is not None:
                    remnant.deadline.cancel()

    def _set_deadline(self, address: str, remnant: _Remnant) -> None:
        if remnant.deadline is not None:
            # It was listed again meanwhile, or it could not have left.
            remnant.deadline.cancel()
        remnant.deadline = asyncio.get_running_loop().call_later(self._timeout, self._expire, address)
        for node in remnant.nodes:
            for attempt in node.attempts:
                if attempt.conn is not None and attempt.conn.protocol is not None:
                    # The connector closes it instead of keeping it, as after `Connection: close`.
                    attempt.conn.protocol.force_close()

    def _expire(self, address: str) -> None:
        remnant = self._remnants[address]
        remnant.deadline = None
        if self._listed(address):
            return
        attempts = [attempt for node in remnant.nodes for attempt in node.attempts if attempt.conn is not None]
        if attempts:
            why = f"{address} left {self._timeout:g} s ago"
            log.warning("%s: %d attempts are cut", why, len(attempts))
            # Without an answer it is as if the server had closed the connection: another one may be asked.
            self.cut(attempts, why, aiohttp.ServerDisconnectedError)
        # Those that say farewell are under way until then.
        self._forget_ended()

    def cut(
        self,
        attempts: Iterable[Attempt],
        why: str,
        unanswered: Callable[[str], Exception],
        *,
        politely: bool = True,
    ) -> None:
        """End these attempts; those without an answer with this error, and websockets with a farewell."""
        for attempt in attempts:
            websocket = None if attempt.websocket is None else attempt.websocket()
            if websocket is None or websocket.closed or not politely:
                attempt.cut(ResponseCut(f"the response was cut: {why}"), unanswered(why))
            else:
                farewell = asyncio.get_running_loop().create_task(self._say_farewell(attempt, websocket, why))
                self._farewells.add(farewell)
                farewell.add_done_callback(self._farewells.discard)

    async def _say_farewell(self, attempt: Attempt, websocket: Any, why: str) -> None:
        error = ResponseCut(f"the websocket was closed: {why}")
        try:
            async with asyncio.timeout(_FAREWELL):
                await websocket.say_farewell(error)
        except Exception as failure:  # noqa: BLE001 - whatever a user's class of websockets raises, it is cut
            log.debug("%s: no farewell: %r", attempt.node.address, failure)
        finally:
            attempt.cut(error, error)

    async def farewells(self) -> None:
        """Wait until all websockets are closed that were to be."""
        if self._farewells:
            await asyncio.wait(self._farewells)

    def _close_idle(self, addresses: dict[tuple[str, int], str]) -> None:
        idle = list(self._idle({key for key, address in addresses.items() if not self._listed(address)}))
        for protocol in idle[:_SLICE]:
            protocol.close()
        if len(idle) > _SLICE:
            asyncio.get_running_loop().call_soon(self._close_idle, addresses)

    def _idle(self, addresses: set[tuple[str, int]]) -> Iterator[Any]:
        for connector in self._connectors:
            # A private name that is read. If it vanishes, idle connections still die with the
            # connector's keepalive_timeout, because no attempt goes to a node that has left.
            for key, connections in getattr(connector, "_conns", {}).items():
                if (key.host, key.port) in addresses:
                    yield from (protocol for protocol, *_ in connections if protocol.is_connected())

    def close(self) -> None:
        """Forget the deadlines; the connections are the session's to close."""
        for remnant in self._remnants.values():
            if remnant.deadline is not None:
                remnant.deadline.cancel()
        self._remnants.clear()
        for farewell in self._farewells:
            farewell.cancel()
