"""What the tests of this folder share: servers in the test's own loop, a policy that obeys, and waiting."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDictProxy
from patience import patience

from discovery.endpoint import join_host_port
from lbclient import BalancedSession, attempts
from lbclient.call import Call
from lbclient.node import Node
from lbclient.sandbox import Backend, PortStats

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes


@dataclass
class Local:
    """An HTTP server whose behaviour the test writes itself; `seen` is what arrived."""

    answer: Answer
    address: str = ""
    seen: list[Seen] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    connections: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if "Expect" in request.headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()
        self.seen.append(Seen(request.method, request.raw_path, request.headers, body))
        return await self.answer(request)


async def ok(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="ok")


async def drop(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hang(_: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


class Websockets:
    """Echoes what comes through websockets; `codes` are those that clients closed theirs with, None for none."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        code = None
        try:
            while (message := await websocket.receive()).type is web.WSMsgType.TEXT:
                await websocket.send_str(message.data)
            code = message.data if message.type is web.WSMsgType.CLOSE else None
        finally:
            self.codes.append(code)
        return websocket


async def events(request: web.BaseRequest) -> web.StreamResponse:
    """One server-sent event, and then silence."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await asyncio.Event().wait()
    return response


@asynccontextmanager
async def local(
    answer: Answer = ok, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Local]:
    """Serve on a free port."""
    server = Local(answer)
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: server.names.append(name)

    class Counting(web.Server):
        def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
            server.connections += 1
            super().connection_made(handler, transport)

    http = Counting(server.handle, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(http, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, host, 0, ssl_context=tls).start()
    server.address = join_host_port(*runner.addresses[0][:2])
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def wire(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve with bare hands: `talk` has the connection; yields the address."""
    talks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            talks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for task in tuple(talks):
            task.cancel()
        if talks:
            await asyncio.wait(tuple(talks))


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address at which connecting neither succeeds nor fails: its queue of connections to accept is full."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.setblocking(False)  # noqa: FBT003 - it takes no keywords
        await loop.sock_connect(first, listener.getsockname())
        yield "{}:{}".format(*listener.getsockname())


class Prefer:
    """A policy that picks the earliest in its list of addresses; others come after those."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        order = self._addresses
        nodes = tuple(node for node in nodes if node not in call.excluded)
        return min(nodes, key=lambda node: order.index(node.address) if node.address in order else len(order))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 5.0) -> None:
    """Wait until the condition holds, for so many seconds as the loop has them."""
    async with patience(seconds):
        while True:
            holds = condition()
            if not (holds if isinstance(holds, bool) else await holds):
                await asyncio.sleep(0.002)
                continue
            return


async def stats_of(backends: Iterable[Backend]) -> dict[str, PortStats]:
    """The statistics of each backend's first port, by address."""
    backends = list(backends)
    stats = await asyncio.gather(*(backend.stat() for backend in backends))
    return {backend.address: stat for backend, stat in zip(backends, stats, strict=True)}


async def times_processed(backends: Iterable[Backend], request_id: str) -> int:
    """How often servers began to process requests with this `X-Request-Id`."""
    return sum(stat["ids"].get(request_id, 0) for stat in (await stats_of(backends)).values())


def node_of(session: BalancedSession, address: str) -> dict[str, Any]:
    """What the session knows of one node."""
    services = session.describe()["services"].values()
    found: dict[str, Any] = next(n for s in services for n in s["nodes"] if n["address"] == address)
    return found


def expire_ejection(session: BalancedSession, address: str) -> None:
    """Have the time for which a node is out pass at once."""
    balancer = session._balancing._services["service"].balancer
    balancer.nodes[address].ejected_until = 0.0
    balancer._regroup(time.monotonic())


def in_flight(session: BalancedSession) -> int:
    """How many attempts are under way, departed nodes included."""
    state = session.describe()
    nodes = [node for service in state["services"].values() for node in service["nodes"]] + state["draining"]
    return sum(node["in_flight"] for node in nodes)


class Loopback(AbstractResolver):
    """For it, some names are this machine, and no others exist."""

    def __init__(self, *names: str) -> None:
        self._names = names

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        if host not in self._names:
            raise OSError(f"{host} is not to be looked up")
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """Nothing to close."""


def resolving(*names: str) -> aiohttp.TCPConnector:
    """A connector for which these names are this machine, and no others exist."""
    return aiohttp.TCPConnector(limit=0, resolver=Loopback(*names))


def waiting(session: BalancedSession) -> int:
    """How many requests wait for a slot."""
    return sum(service["waiting"] for service in session.describe()["services"].values())


class Gate:
    """An answer that waits until the test lets it through."""

    def __init__(self) -> None:
        self._open: asyncio.Queue[None] = asyncio.Queue()

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._open.put_nowait(None)

    async def __call__(self, _: web.BaseRequest) -> web.StreamResponse:
        await self._open.get()
        return web.Response(text="ok")


def paths(server: Local) -> list[str]:
    """What was asked for, in the order of arrival."""
    return [seen.target for seen in server.seen]


class Crowd:
    """Requests that were started and not waited for."""

    def __init__(self, session: BalancedSession) -> None:
        self.session = session
        self.tasks: list[asyncio.Task[list[str]]] = []

    async def start(self, *paths: str) -> None:
        """Start one after the other; each has begun or waits in the queue before the next one is started."""
        for path in paths:
            before = in_flight(self.session) + waiting(self.session)
            self.tasks.append(asyncio.create_task(self.get(path)))
            await until(lambda before=before: in_flight(self.session) + waiting(self.session) > before)

    async def get(self, path: str) -> list[str]:
        """The addresses that were tried for it."""
        async with self.session.get(path) as response:
            await response.read()
            return [attempt.endpoint.address for attempt in attempts(response)]

    async def stop(self) -> None:
        """Cancel those that have not ended."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def crowd(source: Any, **options: Any) -> AsyncIterator[Crowd]:
    """A session with this source and these options, and requests to it; cancels those that are left in the end."""
    async with BalancedSession(source, **options) as session:
        crowd = Crowd(session)
        try:
            yield crowd
        finally:
            await crowd.stop()
            assert in_flight(session) == waiting(session) == 0
