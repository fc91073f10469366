"""`SideRequests`: small requests of our own to a given node, sent as the requests of its service are."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from yarl import URL

from lbclient.node import Node

if TYPE_CHECKING:
    from aiohttp.connector import Connection

__all__ = ["SideRequests", "Trip"]

_PLAIN = {"ws": "http", "wss": "https"}


class Trip:
    """How one of them goes its way, and what happened to it there.

    Attributes:
        keeps_new: a connection that is made for it is kept.
        keeps_old: one that was there already is kept.
        connected: a connection was made for it.
        queued: it waits for a place in a pool whose limit is reached, which is no fault of the node.
    """

    __slots__ = ("connected", "keeps_new", "keeps_old", "queued")

    def __init__(self, *, keeps_new: bool = True, keeps_old: bool = True) -> None:
        self.keeps_new = keeps_new
        self.keeps_old = keeps_old
        self.connected = False
        self.queued = False

    def send(self, req: ClientRequest, conn: Connection) -> Awaitable[ClientResponse]:
        """Stand in for `ClientRequest.send`; with the end of the body it is too late to say what is not kept."""
        keeps = self.keeps_new if self.connected else self.keeps_old
        if not keeps and conn.protocol is not None:
            conn.protocol.force_close()
        return type(req).send(req, conn)


class SideRequests:
    """Asks nodes of a service something in the way its requests go: connector, scheme, `Host`, certificate's name.

    They carry none of the session's headers and cookies and show in none of its middlewares and traces. They count
    neither as requests nor as in flight. Redirects are not followed, bodies not unpacked.

    Args:
        name: the service's name, the host in the URLs of its requests.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._connector: aiohttp.BaseConnector | None = None
        self._session: aiohttp.ClientSession | None = None
        # As the last request of the service was sent.
        self._scheme = "http"
        self._server_hostname: str | None = None
        self._ssl: Any = True
        self._urls: dict[tuple[str, str], URL] = {}

    @property
    def ready(self) -> bool:
        """Whether it is known by now how requests are sent, and can still be done."""
        return self._connector is not None and not self._connector.closed

    @property
    def kept_for(self) -> float:
        """Seconds for which connections are kept that nobody uses."""
        # A private name. If it vanishes nothing is relied on being kept.
        return getattr(self._connector, "_keepalive_timeout", None) or 0.0

    def adopt(self, session: aiohttp.ClientSession, base_url: URL | None) -> None:
        """The session through which requests will come, before there was one."""
        self._connector = session.connector
        if base_url is not None and base_url.raw_host == self.name:
            self._scheme = base_url.scheme

    def imitate(self, req: ClientRequest) -> None:
        """Send them as this request of the service is sent."""
        self._connector = req.session.connector
        scheme = req.url.scheme
        self._scheme = _PLAIN.get(scheme, scheme)
        self._server_hostname = req.server_hostname
        self._ssl = req.ssl

    def get(  # the timeout is aiohttp's
        self, node: Node, path: str, *, timeout: float, agent: str, trip: Trip | None = None
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """Send a GET to the node; to be used with `async with`, and only while `ready`.

        Args:
            node: where to.
            path: and a query, perhaps.
            timeout: seconds for all of it, up to the end of the body.
            agent: the `User-Agent`, so that servers can tell it from users' requests.
            trip: says what becomes of the connection, and takes down what happens on the way.
        """
        url = self._url(path)
        server_hostname = self._server_hostname

        async def aim(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
            node.aim(req, url, server_hostname)
            if trip is not None:
                setattr(req, "send", partial(trip.send, req))  # noqa: B010 - a method, as far as types are concerned
            return await handler(req)

        return self._open().get(
            url,
            headers={"User-Agent": agent},
            timeout=aiohttp.ClientTimeout(total=timeout),
            ssl=self._ssl,
            middlewares=(aim,),
            allow_redirects=False,
            trace_request_ctx=trip,
        )

    async def close(self) -> None:
        """Send no more until there is another request."""
        self._connector = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _url(self, path: str) -> URL:
        url = self._urls.get((self._scheme, path))
        if url is None:
            # The same object each time: nodes remember it with their address in it.
            url = URL.build(scheme=self._scheme, host=self.name).join(URL(path))
            self._urls[self._scheme, path] = url
        return url

    def _open(self) -> aiohttp.ClientSession:
        if self._connector is None:
            raise RuntimeError("it is not known how requests are sent")
        if self._session is None or self._session.connector is not self._connector:
            if self._session is not None:
                self._session.detach()
            # aiohttp's own single retry stays on: that a server closes an idle connection while it is
            # being used again is no fault of the server.
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                connector_owner=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trace_configs=[_TRACE],
            )
        return self._session


async def _connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.connected = True


async def _queued(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.queued = True


async def _admitted(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.queued = False


_TRACE = aiohttp.TraceConfig()
_TRACE.on_connection_create_start.append(_connected)
_TRACE.on_connection_queued_start.append(_queued)
_TRACE.on_connection_queued_end.append(_admitted)
_TRACE.freeze()
