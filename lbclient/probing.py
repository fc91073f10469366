"""`Prober`: asks nodes how busy they are, for policies that want to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from yarl import URL

from lbclient.load_report import HEADER
from lbclient.node import Node
from lbclient.policies import Policy, Prequal, Sticky

__all__ = ["Prober", "prequal_in"]

log = logging.getLogger(__name__)

# Probes under way at once, to all nodes of a service: beyond it they would be late anyway.
_AT_ONCE = 100
_MULTIPLE_CHOICES = 300


def prequal_in(policy: Policy) -> Prequal | None:
    """The policy that wants to probe: this one, or the one inside of it; None if there is no such."""
    while isinstance(policy, Sticky):
        policy = policy.policy
    return policy if isinstance(policy, Prequal) else None


class Prober:
    """Sends the probes that the `Prequal` policies of one service ask for, and hands them the answers.

    A probe goes the way of the service's requests (connector, scheme, `Host`, certificate's name), but carries
    none of the session's headers and cookies and shows in none of its middlewares and traces. It counts neither
    as a request nor as in flight. There is one to a node at a time; one to a node that leaves is cancelled.

    Args:
        name: the service's name, the host in the URLs of its requests.

    Attributes:
        counts: probes `sent`, those that brought a report (`answered`) and those that did not (`missed`).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = {"sent": 0, "answered": 0, "missed": 0}
        self._under_way: dict[Node, asyncio.Task[None]] = {}
        # As the last request of the service was sent.
        self._connector: aiohttp.BaseConnector | None = None
        self._session: aiohttp.ClientSession | None = None
        self._scheme = "http"
        self._server_hostname: str | None = None
        self._ssl: Any = True

    def equip(self, new_policy: Callable[[], Policy]) -> Policy:
        """Make a policy; if it, or one inside of it, wants to probe, it does so here."""
        policy = new_policy()
        if (prequal := prequal_in(policy)) is not None:
            prequal.probe = partial(self.send, prequal)
        return policy

    def imitate(self, req: ClientRequest) -> None:
        """Send probes as this request is sent."""
        self._connector = req.session.connector
        self._scheme = req.url.scheme
        self._server_hostname = req.server_hostname
        self._ssl = req.ssl

    def send(self, policy: Prequal, node: Node) -> None:
        """Begin a probe for the policy, unless one is under way or there are too many."""
        if node.left or node in self._under_way or len(self._under_way) >= _AT_ONCE:
            return
        session = self._open()
        if session is None:
            return
        self.counts["sent"] += 1
        task = asyncio.get_running_loop().create_task(self._probe(policy, node, session))
        self._under_way[node] = task
        task.add_done_callback(lambda _: self._under_way.pop(node, None))

    def forget(self, left: Iterable[Node]) -> None:
        """Cancel the probes to nodes that left."""
        for node in left:
            if (task := self._under_way.get(node)) is not None:
                task.cancel()

    async def close(self) -> None:
        """Cancel all probes and send no more until there is another request."""
        self._connector = None
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession | None:
        connector = self._connector
        if connector is None or connector.closed:
            return None
        if self._session is None or self._session.connector is not connector:
            if self._session is not None:
                self._session.detach()
            self._session = aiohttp.ClientSession(
                connector=connector, connector_owner=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def _probe(self, policy: Prequal, node: Node, session: aiohttp.ClientSession) -> None:
        if session.closed:
            return
        try:
            read = await self._ask(policy, node, session)
        except Exception as error:  # noqa: BLE001 - nobody waits for a probe, and so nobody would see what it raises
            log.debug("%s: probe failed: %s: %s", node.address, type(error).__name__, error)
            read = False
        self.counts["answered" if read else "missed"] += 1
        if not read:
            policy.missed(node, time.monotonic())

    async def _ask(self, policy: Prequal, node: Node, session: aiohttp.ClientSession) -> bool:
        url = URL.build(scheme=self._scheme, host=self.name).join(URL(policy.path))
        server_hostname = self._server_hostname

        async def aim(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
            node.aim(req, url, server_hostname)
            return await handler(req)

        timeout = aiohttp.ClientTimeout(total=policy.timeout)
        async with session.get(
            url, timeout=timeout, ssl=self._ssl, middlewares=(aim,), allow_redirects=False
        ) as response:
            header = response.headers.get(HEADER)
            if response.status >= _MULTIPLE_CHOICES or header is None:
                log.debug("%s: no load report, but status %d", node.address, response.status)
                return False
            return policy.read(node, header, time.monotonic())
