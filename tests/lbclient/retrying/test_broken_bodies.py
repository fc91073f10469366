"""A body that breaks off is a fault of the node in the end, and one that is closed on purpose is none."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from rig import in_flight, local, node_of, ok, until, wire

from discovery import Memory, Static
from lbclient import BalancedSession, BalancingMiddleware, Outcome, attempts

HEAD = b"HTTP/1.1 200 OK\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(answer: bytes, end: str = "close") -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if end == "reset":
            await asyncio.sleep(0.01)
            writer.transport.abort()
        elif end == "silence":
            await reader.read()

    return talk


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (HEAD + b"Content-Length: 10\r\n\r\nhalf", "close"),
        (HEAD + b"Content-Length: 10\r\n\r\nhalf", "reset"),
        (HEAD + b"Content-Length: 10\r\n\r\n", "close"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "close"),
        (HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence"),
    ],
    ids=["half", "reset", "nothing of it", "no last chunk", "silence"],
)
async def test_a_body_that_breaks_off_is_a_fault(answer: bytes, end: str) -> None:
    timeout = aiohttp.ClientTimeout(sock_read=2 if end == "silence" else None)
    async with (
        wire(answering(answer, end)) as address,
        BalancedSession(Static([address]), timeout=timeout) as session,
    ):
        async with session.get("/x") as response:
            (attempt,) = attempts(response)
            assert attempt.outcome is Outcome.SUCCESS
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.SocketTimeoutError)) as caught:
                await response.read()
        assert attempt.outcome is Outcome.FAULT
        assert attempt.error.startswith(type(caught.value).__name__)
        assert node_of(session, address)["failures"] == 1
        assert in_flight(session) == 0


async def test_a_body_that_nobody_reads_breaks_off_all_the_same() -> None:
    async with (
        wire(answering(HEAD + b"Content-Length: 10\r\n\r\nhalf")) as address,
        BalancedSession(Static([address])) as session,
    ):
        async with session.get("/x") as response:
            await until(lambda: response.content.exception() is not None)
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT]


async def test_an_attempt_that_failed_anyway_is_not_counted_twice() -> None:
    answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\nhalf"
    async with wire(answering(answer)) as address, BalancedSession(Static([address])) as session:
        async with session.get("/x") as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.ERROR]
        assert node_of(session, address)["failures"] == 1


@pytest.mark.parametrize("how", ["close", "release", "cancel", "exit", "total"])
async def test_an_early_end_on_purpose_is_no_fault(how: str) -> None:
    async with (
        wire(answering(HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence")) as address,
        BalancedSession(Static([address])) as session,
    ):
        response = await session.get("/x", timeout=2.5 if how == "total" else None)
        if how == "close":
            response.close()
        elif how == "release":
            await response.release()
        elif how == "exit":
            async with response:
                pass
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response.read(), 0.02 if how == "cancel" else 5)
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]
        assert node_of(session, address)["failures"] == in_flight(session) == 0


async def test_a_session_that_is_closed_in_the_middle_of_a_body_blames_nobody() -> None:
    async with wire(answering(HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence")) as address:
        session = BalancedSession(Static([address]))
        response = await session.get("/x")
        await session.close()
        await asyncio.sleep(0)
        response.close()
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]


async def test_what_is_cut_since_its_node_left_blames_nobody() -> None:
    source = Memory()
    async with wire(answering(HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence")) as address:
        source.set([address])
        async with BalancedSession(source, drain_timeout=0.01, on_empty="accept") as session:
            async with session.get("/x") as response:
                source.set([])
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]


async def test_a_whole_body_changes_nothing() -> None:
    async with local(ok) as server, BalancedSession(Static([server.address])) as session:
        for _ in range(3):
            async with session.get("/x") as response:
                assert await response.text() == "ok"
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]
        assert server.connections == 1


async def test_a_lost_response_is_not_kept_by_its_attempt() -> None:
    """Neither by a strong reference nor by a cycle: its connection is given back at once when that is closed."""
    async with (
        wire(answering(HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence")) as address,
        BalancingMiddleware({"users": Static([address])}) as lb,
    ):
        session = aiohttp.ClientSession(middlewares=(lb,))
        response: aiohttp.ClientResponse | None = await session.get("http://users/x")
        assert lb.describe()["services"]["users"]["nodes"][0]["in_flight"] == 1
        response = None
        await session.close()
        del response
        gc.collect()
        assert lb.describe()["services"]["users"]["nodes"][0]["in_flight"] == 0
