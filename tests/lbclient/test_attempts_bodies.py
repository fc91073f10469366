"""A body that is sent again arrives whole, or the request is not sent again."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rig import Prefer, drop, local, node_of, until, wire

from discovery import Static
from lbclient import BalancedSession, attempts
from lbclient.outcome import Outcome

CONTENT = b"0123456789" * 20_000
# Far more than all buffers on the way take: a server that does not read it stops the sender.
HUGE = b"x" * 20_000_000


async def generate() -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), 50_000):
        yield CONTENT[start : start + 50_000]


def opened(path: Path) -> io.BufferedReader:
    path.write_bytes(b"skip " + CONTENT)
    file = path.open("rb")
    file.seek(5)
    return file


def seeked(_: Path) -> io.BytesIO:
    data = io.BytesIO(b"skip " + CONTENT)
    data.seek(5)
    return data


def form(path: Path) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("name", "value")
    data.add_field("file", opened(path), filename="f")
    return data


REPLAYABLE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nothing": lambda _: {},
    "bytes": lambda _: {"data": CONTENT},
    "json": lambda _: {"json": [CONTENT.decode()]},
    "mapping": lambda _: {"data": {"name": "value"}},
    "form": lambda path: {"data": form(path)},
    "BytesIO": lambda path: {"data": seeked(path)},
    "file": lambda path: {"data": opened(path)},
    "compressed": lambda _: {"data": CONTENT, "compress": True},
}
EXPECTED = {"nothing": b"", "json": json.dumps([CONTENT.decode()]).encode(), "mapping": b"name=value"}
ALL = REPLAYABLE | {"generator": lambda _: {"data": generate()}}


def check(kind: str, body: bytes) -> None:
    if kind == "form":
        assert body.count(CONTENT) == 1
        assert b"skip" not in body
        assert b'name="name"\r\n\r\nvalue\r\n' in body
    else:
        assert body == EXPECTED.get(kind, CONTENT)


@pytest.mark.parametrize("expect100", [False, True], ids=["", "expect100"])
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_any_body_is_intact_after_a_refused_connection(
    unused_address: str, tmp_path: Path, method: str, kind: str, expect100: bool
) -> None:
    """Nothing was sent, so even a generator is as it was."""
    async with local() as server:
        services = Static([unused_address, server.address])
        options = ALL[kind](tmp_path / "body")
        async with (
            BalancedSession(services, policy=Prefer(unused_address)) as session,
            session.request(method, "/x", expect100=expect100, **options) as response,
        ):
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
        assert [seen.method for seen in server.seen] == [method]
        check(kind, server.seen[0].body)


@pytest.mark.parametrize("expect100", [False, True], ids=["", "expect100"])
@pytest.mark.parametrize("kind", REPLAYABLE)
async def test_a_body_that_was_dropped_arrives_whole_at_the_next_node(
    tmp_path: Path, kind: str, expect100: bool
) -> None:
    async with local(drop) as dropper, local() as server:
        services = Static([dropper.address, server.address])
        options = REPLAYABLE[kind](tmp_path / "body")
        async with (
            BalancedSession(services, policy=Prefer(dropper.address)) as session,
            session.put("/x", expect100=expect100, **options) as response,
        ):
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
        for seen in (*dropper.seen, *server.seen):
            check(kind, seen.body)
        assert dropper.seen[0].headers == server.seen[0].headers
        assert len(dropper.seen) == len(server.seen) == 1


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_generator_is_not_sent_again_once_it_was_begun(method: str) -> None:
    """Nothing would be said, and an empty body sent."""
    async with local(drop) as dropper, local() as server:
        services = Static([dropper.address, server.address])
        async with BalancedSession(services, policy=Prefer(dropper.address)) as session:
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.request(method, "/x", data=generate(), headers={"Idempotency-Key": "1"})
            assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.FAULT]
        assert [seen.body for seen in dropper.seen] == [CONTENT]
        assert server.seen == []


@pytest.mark.parametrize("kind", ["BytesIO", "file"])
@pytest.mark.parametrize("how", ["reset", "closed", "half-closed"])
async def test_a_body_that_was_cut_off_arrives_whole_at_the_next_node(tmp_path: Path, kind: str, how: str) -> None:
    """The sender was in the middle of it; it has to stop before it may begin anew."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1000)
        if how == "reset":
            writer.transport.abort()
        elif how == "half-closed":
            writer.write_eof()
            await reader.read()

    path = tmp_path / "body"
    path.write_bytes(HUGE)
    with path.open("rb") as file:
        body = file if kind == "file" else io.BytesIO(HUGE)
        async with wire(talk) as address, local() as server:
            services = Static([address, server.address])
            async with (
                BalancedSession(services, policy=Prefer(address)) as session,
                session.put("/x", data=body) as response,
            ):
                assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
            assert [len(seen.body) for seen in server.seen] == [len(HUGE)]
            assert server.seen[0].body == HUGE


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "unasked"])
async def test_expect100_waits_to_be_asked_by_each_node(asked: bool) -> None:
    """Whether or not the first one had asked for the body before it dropped the request."""
    early = b""

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if asked:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(4)

    async def second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal early
        await reader.readuntil(b"\r\n\r\n")
        with suppress(TimeoutError):
            early = await asyncio.wait_for(reader.read(4), 0.05)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = early or await reader.readexactly(4)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)

    async with (
        wire(first) as one,
        wire(second) as two,
        BalancedSession(Static([one, two]), policy=Prefer(one)) as session,
        session.put("/x", data=b"body", expect100=True) as response,
    ):
        assert await response.read() == b"body"
        assert len(attempts(response)) == 2
    assert early == b"", "the body was sent before it was asked for"


async def test_a_pipe_is_not_sent_again() -> None:
    """It is a file, but what was read of it is gone."""
    reading, writing = os.pipe()
    os.write(writing, b"once")
    os.close(writing)
    async with local(drop) as dropper, local() as server:
        services = Static([dropper.address, server.address])
        async with BalancedSession(services, policy=Prefer(dropper.address)) as session:
            with os.fdopen(reading, "rb") as pipe, pytest.raises(aiohttp.ServerDisconnectedError):
                await session.put("/x", data=pipe)
        assert [seen.body for seen in dropper.seen] == [b"once"]
        assert server.seen == []


class BugError(Exception):
    pass


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        OSError("disk"),
        ConnectionResetError("of another server"),
        ValueError("bug"),
        TimeoutError("slow"),
        BugError(),
    ],
)
async def test_a_body_that_raises_blames_no_node_and_is_not_sent_again(method: str, error: Exception) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        raise error

    async with local() as one, local() as two, BalancedSession(Static([one.address, two.address])) as session:
        with pytest.raises((aiohttp.ClientConnectionError, TimeoutError)) as caught:
            await session.request(method, "/x", data=body())
        assert error in (caught.value, caught.value.__cause__)
        assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.OURS]
        for server in (one, two):
            node = node_of(session, server.address)
            assert (node["failures"], node["state"], node["in_flight"]) == (0, "ready", 0)
            assert server.seen == []


async def test_a_file_is_closed_in_the_end_as_by_aiohttp(tmp_path: Path, unused_address: str) -> None:
    path = tmp_path / "body"
    async with local() as server, aiohttp.ClientSession() as bare:
        theirs, ours = opened(path), opened(path)
        await bare.put(f"http://{server.address}/x", data=theirs)
        services = Static([unused_address, server.address])
        async with BalancedSession(services, policy=Prefer(unused_address)) as session:
            await session.put("/x", data=ours)
        # In a thread, some time after the answer.
        await until(lambda: theirs.closed and ours.closed)
