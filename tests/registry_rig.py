"""For tests with registries: waiting without polling, a proxy that breaks the way, a server that says anything."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

from patience import patience

from discovery import Snapshot, Watcher


def hosts(snapshot: Snapshot) -> list[str]:
    """The hosts of all endpoints."""
    return [endpoint.host for endpoint in snapshot.endpoints]


def sees(*expected: str) -> Callable[[Snapshot], bool]:
    """A check for `until`: live, with exactly these hosts."""
    return lambda snapshot: snapshot.state == "live" and hosts(snapshot) == list(expected)


def stale(snapshot: Snapshot) -> bool:
    """A check for `until`."""
    return snapshot.state == "stale"


async def until(
    watcher: Watcher,
    check: Callable[[Snapshot], object],
    timeout: float = 10.0,  # noqa: ASYNC109 - the message names the snapshot
) -> Snapshot:
    """Wait until a watcher's snapshot passes a check, without polling; a failure shows the snapshot.

    The time-out is in seconds that the loop had: the machine may give it none for a while.
    """
    found: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()

    def look(snapshot: Snapshot) -> None:
        if not found.done() and check(snapshot):
            found.set_result(snapshot)

    end = watcher.subscribe(look)
    look(watcher.snapshot)
    try:
        async with patience(timeout):
            return await found
    except TimeoutError:
        raise AssertionError(f"still {watcher!r} after {timeout} s: {watcher.snapshot.as_dict()}") from None
    finally:
        end()


class Proxy:
    """TCP to another address, with faults.

    Attributes:
        address: where it listens, `host:port`.
        sent: everything that clients sent.
        accepted: how many connections there were.
    """

    def __init__(self, target: str, context: ssl.SSLContext | None = None) -> None:
        self.address = ""
        self.accepted = 0
        self.sent = bytearray()
        self._target = target.rpartition(":")
        self._context = context
        self._held = b""
        self._more = asyncio.Event()
        self._flow = asyncio.Event()
        self._flow.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def accept(self) -> None:
        """Listen, again at the same address after `cut`."""
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(
            self._serve, host or "127.0.0.1", int(port or 0), ssl=self._context
        )
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def cut(self) -> None:
        """Refuse connections and break those that are there."""
        if self._server is not None:
            self._server.close()
        self.sever()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def sever(self) -> None:
        """Break the connections that are there."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def saw(self, request: bytes, times: int = 1) -> None:
        """Wait until clients have sent this so many times."""
        async with patience(5):
            while self.sent.count(request) < times:
                self._more.clear()
                await self._more.wait()

    def hold(self, request: bytes) -> None:
        """Hold back the answers on connections on which this was sent last, until `release`."""
        self._held = request
        self._flow.clear()

    def release(self) -> None:
        """Let everything through."""
        self._flow.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.accepted += 1
        # A handler that ends cancelled would be an error in the log.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            back, forth = await asyncio.open_connection(self._target[0], int(self._target[2]))
            self._writers.add(forth)
            last = bytearray()
            answers = asyncio.create_task(self._answers(back, writer, last))
            try:
                while data := await reader.read(65536):
                    self.sent += data
                    self._more.set()
                    if b" HTTP/1.1\r\n" in data:
                        last.clear()
                    last += data
                    forth.write(data)
            finally:
                forth.transport.abort()
                self._writers.discard(forth)
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
        writer.transport.abort()
        self._writers.discard(writer)
        self._tasks.discard(task)

    async def _answers(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, last: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await back.read(65536):
                if self._held and self._held in last:
                    await self._flow.wait()
                writer.write(data)
        writer.transport.abort()


class Fake:
    """An HTTP server that says what a test wants.

    Attributes:
        address: where it listens, `host:port`.
        requests: the head of each request, as text.

    Args:
        answer: given the head of a request, bytes as they go over the wire; None breaks the connection.
    """

    def __init__(self, answer: Callable[[str], Awaitable[bytes | None]]) -> None:
        self.address = ""
        self.requests: list[str] = []
        self._more = asyncio.Event()
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def asked(self, check: Callable[[], bool]) -> None:
        """Wait until the check holds; it is made with each request."""
        async with patience(5):
            while not check():
                self._more.clear()
                await self._more.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int((head.lower().partition("content-length: ")[2] or "0").split()[0]))
                self.requests.append(head)
                answering = asyncio.ensure_future(self._answer(head))
                await asyncio.sleep(0)  # it has seen the request now
                self._more.set()
                answer = await answering
                if answer is None:
                    break
                writer.write(answer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


def http(body: bytes | str, *, status: str = "200 OK", headers: str = "") -> bytes:
    """One answer as it goes over the wire."""
    body = body if isinstance(body, bytes) else body.encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
