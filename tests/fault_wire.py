"""HTTP/1.1 as bytes on one connection, of which a fault server reads and writes any part."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from fault_record import Meter
from faults import Fault

__all__ = ["Ear", "Head", "Wire", "answer", "split"]

_PIECE = 65536
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True)
class Head:
    """A request as far as it is known before its body."""

    method: str
    target: str
    version: str
    headers: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Head:
        lines = data.decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return cls(method, target, version, {name.lower(): value.strip() for name, _, value in pairs})

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length > 0

    @property
    def keeps(self) -> bool:
        said = self.headers.get("connection", "").lower()
        return said != "close" and (self.version == "HTTP/1.1" or said == "keep-alive")


class Ear(asyncio.StreamReader):
    """A stream that says that it ended before all of it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


class Wire:
    """One connection. What is read raises EOFError where the client has ended it, or ConnectionError."""

    def __init__(self, reader: Ear, writer: asyncio.StreamWriter, meter: Meter) -> None:
        self._reader = reader
        self._writer = writer
        self._meter = meter
        self._buffer = bytearray()

    async def _more(self) -> None:
        data = await self._reader.read(_PIECE)
        if not data:
            raise EOFError
        self._meter.received += len(data)
        self._buffer += data

    async def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            await self._more()
        return self._take(at + len(end))

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def target(self) -> str:
        """Wait for the first bytes of a request; what it asks for, or nothing where they do not say it yet."""
        while not self._buffer:
            await self._more()
        words = self._buffer.split(b"\r\n", 1)[0].split(b" ")
        return words[1].decode("latin-1") if len(words) > 1 else ""

    async def head(self) -> Head:
        return Head.parse((await self._until(b"\r\n\r\n"))[:-4])

    async def body(self, head: Head) -> bytes:
        if head.has_body and not self._buffer and head.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not head.chunked:
            return await self._exactly(head.length)
        body = bytearray()
        while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
            body += await self._exactly(size)
            await self._exactly(2)
        while await self._until(b"\r\n") != b"\r\n":
            pass
        return bytes(body)

    def write(self, data: bytes) -> None:
        self._meter.sent += len(data)
        self._writer.write(data)

    async def drip(self, pieces: Iterable[bytes], pause: float) -> None:
        """Write one piece after the other, with a pause after each."""
        for piece in pieces:
            self.write(piece)
            await self._writer.drain()
            await asyncio.sleep(pause)

    async def silence(self) -> None:
        """Neither read nor write, until the client is gone; unnoticed if there is far more than was read."""
        await self._reader.ended.wait()

    async def linger(self, seconds: float) -> None:
        """End the own side and wait for the client to end its: bytes that nobody reads would make it a reset."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
            try:
                async with asyncio.timeout(seconds):
                    while True:
                        self._buffer.clear()
                        await self._more()
            except (TimeoutError, EOFError):
                pass

    def close(self) -> None:
        self._writer.close()

    async def closed(self, seconds: float) -> None:
        """Wait until the socket is closed after `close` or `reset`; no longer for a client that takes nothing."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                await self._writer.wait_closed()

    def reset(self) -> None:
        """End the connection with a RST."""
        sock = self._writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def answer(fault: Fault, method: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes that the fault has the server send."""
    if fault.raw is not None:
        return fault.raw.encode("latin-1")
    if fault.status in _NO_BODY:
        body = b""
    reason = HTTPStatus(fault.status).phrase if fault.status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [f"HTTP/1.1 {fault.status} {reason}", f"Content-Length: {len(body) + fault.length}"]
    lines += [f"{name}: {value}" for name, value in {**headers, **fault.headers}.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if method == "HEAD":
        body = b""
    match fault.sends:
        case "nothing":
            return b""
        case "half head":
            return head[: len(head) // 2]
        case "head":
            return head
        case "half body":
            return head + body[: len(body) // 2]
        case _:
            return head + body


def split(data: bytes, count: int) -> list[bytes]:
    """The data in so many pieces of the same size, or in fewer if it is too short."""
    size = max(1, -(-len(data) // count))
    return [data[start : start + size] for start in range(0, len(data), size)]
