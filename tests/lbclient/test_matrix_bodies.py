"""Bodies stream both ways as they do with a bare session."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rig import Seen, in_flight, local, until, wire

from discovery import Static
from lbclient import BalancedSession
from lbclient.sandbox import Backend

PLAIN = bytes(range(256)) * 1024


@pytest.fixture
async def session(nodes: list[Backend]) -> AsyncIterator[BalancedSession]:
    async with BalancedSession(Static([node.address for node in nodes]), name="users") as session:
        yield session


def form(_: Path) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("name", "Grüße & more")
    data.add_field("file", io.BytesIO(PLAIN), filename="f.bin", content_type="application/x-f")
    return data


def parts(seen: Seen) -> list[object]:
    """What arrived, with another name for the random boundary of a form."""
    content_type = seen.headers["Content-Type"]
    boundary = content_type.partition("boundary=")[2] or "no boundary"
    headers = [(key, value.replace(boundary, "boundary")) for key, value in seen.headers.items()]
    return [seen.method, seen.target, headers, seen.body.replace(boundary.encode(), b"boundary")]


async def chunks(size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(PLAIN), size):
        yield PLAIN[start : start + size]
        await asyncio.sleep(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "body"
    path.write_bytes(PLAIN)
    return path


BODIES: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda _: PLAIN,
    "memoryview": lambda _: memoryview(PLAIN),
    "BytesIO": lambda _: io.BytesIO(PLAIN),
    "file": lambda path: path.open("rb"),
    "generator": lambda _: chunks(),
    "text": lambda _: "Grüße",
    "StringIO": lambda _: io.StringIO("Grüße"),
    "mapping": lambda _: {"a": "1 2", "b": "ü"},
    "form": form,
}


@pytest.mark.parametrize("kind", BODIES)
async def test_each_kind_of_body_arrives_as_from_a_bare_session(path: Path, kind: str) -> None:
    async with (
        local() as server,
        aiohttp.ClientSession() as bare,
        BalancedSession(Static([server.address]), name="users") as users,
    ):
        url = f"http://{server.address}/upload"
        async with bare.post(url, data=BODIES[kind](path), headers={"Host": "users"}):
            pass
        async with users.post("/upload", data=BODIES[kind](path)):
            pass
        expected, seen = server.seen
    assert parts(seen) == parts(expected)
    if kind in ("bytes", "memoryview", "BytesIO", "file", "generator"):
        assert expected.body == PLAIN


async def test_json_arrives(session: BalancedSession) -> None:
    async with session.post("/x", json={"a": ["ü", 1]}) as response:
        said = await response.json()
        assert ["Content-Type", "application/json"] in said["headers"]
        assert said["body"] == '{"a": ["\\u00fc", 1]}'


async def test_an_upload_is_not_gathered_first() -> None:
    """The server has the first chunk before the second one is made."""
    arrived = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        arrived.set()
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await arrived.wait()
        yield b"second"

    async with (
        wire(talk) as address,
        BalancedSession(Static([address])) as session,
        session.post("/", data=body()) as response,
    ):
        assert response.status == 204


async def test_a_download_is_not_gathered_first() -> None:
    more = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst")
        await more.wait()
        writer.write(b"second")

    async with (
        wire(talk) as address,
        BalancedSession(Static([address])) as session,
        session.get("/") as response,
    ):
        assert await response.content.readexactly(5) == b"first"
        assert in_flight(session) == 1
        more.set()
        assert await response.content.read() == b"second"
        await until(lambda: in_flight(session) == 0)


async def test_a_large_download_is_whole(session: BalancedSession) -> None:
    async with session.get("/bytes?n=5000000") as response:
        sizes = [len(chunk) async for chunk in response.content.iter_any()]
        assert sum(sizes) == 5_000_000
        assert len(sizes) > 1
        assert in_flight(session) == 0


async def test_compressed_bodies(session: BalancedSession) -> None:
    async with session.post("/upload", data=PLAIN, compress="deflate") as response:
        assert (await response.json())["sha256"] == hashlib.sha256(PLAIN).hexdigest()


async def test_expect100_sends_the_body_only_when_it_is_asked_for() -> None:
    begun = False
    seen: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        nonlocal begun
        begun = True
        yield b"body"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue\r\n" in head
        assert not begun
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with (
        wire(talk) as address,
        BalancedSession(Static([address])) as session,
        session.post("/", data=body(), expect100=True) as response,
    ):
        assert response.status == 204
    assert seen == [b"4\r\nbody\r\n0\r\n\r\n"]


async def test_expect100_with_real_servers(session: BalancedSession) -> None:
    for _ in range(4):
        async with session.put("/upload", data=io.BytesIO(PLAIN), expect100=True) as response:
            assert (await response.json())["bytes"] == len(PLAIN)
