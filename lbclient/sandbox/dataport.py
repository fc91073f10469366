"""One data port of a backend: a listening socket, its connections and their statistics."""

import asyncio
import ssl
import time

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from lbclient.sandbox.endpoints import Handler, endpoints
from lbclient.sandbox.ports import listening_socket
from lbclient.sandbox.stats import Stats

_KEEPALIVE_TIMEOUT = 75.0
_TLS_SHUTDOWN_TIMEOUT = 2.0
_POLL = 0.005


class CountingServer(web.Server):
    """aiohttp's low-level server that also knows which of its connections are idle."""

    def __init__(self, handler: Handler, stats: Stats) -> None:
        # Handlers are cancelled when their client is gone, so that "in flight" never counts the forgotten.
        super().__init__(
            self._handle,
            handler_cancellation=True,
            keepalive_timeout=_KEEPALIVE_TIMEOUT,
            access_log=None,
        )
        self.stopping = False
        self.failing = False
        self._answer = handler
        self._stats = stats
        self._open: dict[RequestHandler, asyncio.Transport] = {}
        self._busy: set[RequestHandler] = set()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; with TLS its handshake is done by now."""
        super().connection_made(handler, transport)
        self._open[handler] = transport
        self._stats.connection_opened()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection as closed, whichever side closed it."""
        super().connection_lost(handler, exc)
        if self._open.pop(handler, None) is not None:
            self._stats.connection_closed()

    def close_idle(self) -> None:
        """Close the connections that wait for a next request."""
        for handler, transport in list(self._open.items()):
            if handler not in self._busy:
                transport.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._stats.request_started(request.method, request.headers.get("X-Request-Id"))
        self._busy.add(request.protocol)
        try:
            response = web.Response(status=500) if self.failing else await self._answer(request)
            if self.stopping:
                response.force_close()
            return response
        finally:
            self._busy.discard(request.protocol)
            self._stats.request_ended()


class DataPort:
    """A server on one loopback port that can stop listening and listen again."""

    def __init__(self, name: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.stats = Stats()
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._socket = listening_socket(port)
        self.port = int(self._socket.getsockname()[1])
        self._server = CountingServer(endpoints(name, self.port), self.stats)

    async def listen(self) -> None:
        """Accept connections; fine if it does already."""
        if self._listener is not None:
            return
        if self._socket.fileno() < 0:
            self._socket = listening_socket(self.port)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._server,
            sock=self._socket,
            ssl=self._tls,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_TIMEOUT if self._tls else None,
            backlog=1024,
        )

    async def refuse(self) -> None:
        """Stop listening: connecting is refused, open connections stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._socket.close()
        await asyncio.sleep(0)

    async def close_idle(self) -> None:
        """Close the keep-alive connections that have no request in progress."""
        self._server.close_idle()

    async def fail(self) -> None:
        """Answer everything with 500 at once; what is being handled has its own answer."""
        self._server.failing = True

    async def recover(self) -> None:
        """End what `fail` began."""
        self._server.failing = False

    async def left(self) -> None:
        """Count the requests from now on as coming too late."""
        # What had reached this machine before is not late. Each pass of the loop does one step (accept, read,
        # parse, dispatch) for every socket that is readable then, so after these all of it has been started.
        for _ in range(50):
            await asyncio.sleep(0)
        self.stats.left = True

    async def back(self) -> None:
        """Stop counting requests as late."""
        self.stats.left = False

    async def drain(self) -> None:
        """Stop listening, finish the requests in progress and close all connections."""
        self._server.stopping = True
        await self.refuse()
        deadline = time.monotonic() + _TLS_SHUTDOWN_TIMEOUT + 1
        self._server.close_idle()
        while self.stats.in_flight:
            await asyncio.sleep(_POLL)
            deadline = time.monotonic() + _TLS_SHUTDOWN_TIMEOUT + 1
        # A response is written after its handler's end; those bytes are to leave as well.
        while self.stats.connections_open and time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
            self._server.close_idle()


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return a server's TLS context, None without a certificate."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context
