"""An attempt is in flight from the pick until its connection is free again, however that comes about."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from rig import drop, events, in_flight, local, node_of, stats_of, until, wire

from discovery import Memory, Static
from lbclient import BalancedSession, Hedge, LimitReached, Limits, Retry, attempts
from lbclient.outcome import Outcome
from lbclient.sandbox import Backend

# More than the client's and the kernel's buffers take: it does not end unless it is read.
LARGE = "/bytes?n=50000000"


@pytest.fixture
async def session(nodes: list[Backend]) -> AsyncIterator[BalancedSession]:
    async with BalancedSession(Static([nodes[0].address])) as session:
        yield session


async def open_at(node: Backend) -> int:
    return (await node.stat())["connections_open"]


async def test_until_the_end_of_the_body(session: BalancedSession, nodes: list[Backend]) -> None:
    response = await session.get(LARGE)
    assert in_flight(session) == 1
    await response.content.readexactly(1_000_000)
    assert in_flight(session) == 1
    await response.read()
    assert in_flight(session) == 0
    assert await open_at(nodes[0]) == 1, "the connection is not kept"


@pytest.mark.parametrize("path", ["/ping", "/status/204", "/status/304", "/status/500"])
async def test_a_short_answer_is_over_without_being_read(session: BalancedSession, path: str) -> None:
    response = await session.get(path)
    await until(lambda: in_flight(session) == 0)
    await response.read()


async def test_head_is_over_at_once(session: BalancedSession) -> None:
    await session.head(LARGE)
    assert in_flight(session) == 0


@pytest.mark.parametrize("how", ["close", "release", "with"])
async def test_until_it_is_closed_or_released(session: BalancedSession, nodes: list[Backend], how: str) -> None:
    """With the rest of the body unread the connection cannot be kept."""
    response = await session.get(LARGE)
    assert in_flight(session) == 1
    if how == "with":
        async with response:
            pass
    else:
        getattr(response, how)()
    assert in_flight(session) == 0

    async def closed() -> bool:
        return await open_at(nodes[0]) == 0

    await until(closed)


async def test_a_forgotten_answer_is_over_when_it_has_arrived(session: BalancedSession) -> None:
    await session.get("/stream?chunks=4&ms=500&size=1000")
    assert in_flight(session) == 1
    gc.collect()
    await until(lambda: in_flight(session) == 0)


async def test_a_forgotten_answer_that_cannot_arrive_is_cut_when_its_node_has_left(nodes: list[Backend]) -> None:
    """Nothing else ends it: the connection waits for a reader, and it holds the response."""
    source = Memory([nodes[0].address])
    async with BalancedSession(source, drain_timeout=2) as session:
        await session.get(LARGE)
        gc.collect()
        assert in_flight(session) == 1
        source.set([nodes[1].address])
        await until(lambda: session.describe()["draining"] != [])

        def gone() -> bool:
            gc.collect()
            return in_flight(session) == 0

        await until(gone)


@pytest.mark.parametrize("how", ["read", "iterate", "with"])
async def test_until_the_server_dies_in_the_middle_of_the_body(
    session: BalancedSession, nodes: list[Backend], how: str
) -> None:
    """The head had arrived: the attempt was a success, and is not repeated."""
    response = await session.get("/drop-body")
    assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]

    async def iterate() -> None:
        async for _ in response.content.iter_any():
            pass

    async def inside() -> None:
        async with response:
            await response.content.read()

    with pytest.raises(aiohttp.ClientPayloadError):
        await {"read": response.read, "iterate": iterate, "with": inside}[how]()
    response.release()
    assert in_flight(session) == 0
    assert (await nodes[0].stat())["requests"] == 1


async def test_until_the_process_is_killed(mortal: Backend) -> None:
    async with BalancedSession(Static([mortal.address])) as session:
        response = await session.get("/stream?chunks=1000&ms=100")
        await response.content.readany()
        assert in_flight(session) == 1
        await mortal.kill()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
        assert in_flight(session) == 0


async def test_until_the_total_deadline_in_the_middle_of_the_body(session: BalancedSession) -> None:
    response = await session.get("/stream?chunks=1000&ms=50", timeout=2.5)
    with pytest.raises(TimeoutError):
        await response.read()
    assert in_flight(session) == 0


async def test_each_hop_of_a_redirect_is_over_when_it_is_followed(session: BalancedSession) -> None:
    async with session.get("/redirect?to=/stream?chunks=1000%26ms=50") as response:
        assert len(attempts(response)) == 2
        assert in_flight(session) == 1
    assert in_flight(session) == 0


async def test_an_answer_before_the_end_of_the_upload() -> None:
    """The connection is not free before the upload has stopped."""
    more = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        yield b"second"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"0\r\n\r\n")

    async with wire(talk) as address, BalancedSession(Static([address])) as session:
        response = await session.post("/", data=body())
        assert in_flight(session) == 1
        more.set()
        assert await response.read() == b"ok"
        assert in_flight(session) == 0


async def test_a_middleware_that_raises_after_the_answer(nodes: list[Backend]) -> None:
    async def picky(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        response = await handler(req)
        response.close()
        raise LookupError(response.status)

    async with BalancedSession(Static([nodes[0].address]), middlewares=(picky,)) as session:
        with pytest.raises(LookupError):
            await session.get(LARGE)
        assert in_flight(session) == 0


async def test_counts_are_those_of_the_servers(nodes: list[Backend]) -> None:
    """At a moment when everything is standing still."""
    async with BalancedSession(Static([node.address for node in nodes])) as session:
        responses = [await session.get("/stream?chunks=1&ms=60000") for _ in range(40)]
        counts = {address: stat["in_flight"] for address, stat in (await stats_of(nodes)).items()}
        assert counts == {address: node_of(session, address)["in_flight"] for address in counts}
        assert sum(counts.values()) == 40
        for response in responses:
            response.close()
        assert in_flight(session) == 0


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have this process fail to open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_of_descriptors_is_no_nodes_fault(nodes: list[Backend]) -> None:
    """Another node would do no better, and none is to be ejected for it."""
    addresses = [node.address for node in nodes]
    async with BalancedSession(Static(addresses)) as session:
        await session.ready(5)
        for _ in range(5):
            with (
                no_descriptors(),
                pytest.raises(aiohttp.ClientConnectorError, match="Too many open files") as caught,
            ):
                await session.get("/ping")
            assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.OURS]
        for address in addresses:
            node = node_of(session, address)
            assert (node["failures"], node["connect_failures"], node["state"]) == (0, 0, "ready")
        async with session.get("/ping") as response:
            assert response.status == 200
    assert sum(stat["requests"] for stat in (await stats_of(nodes)).values()) == 1


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(attempts=1)},
        {"retry": Retry(backoff=0)},
        {"attempt_timeout": 5},
        {"hedge": Hedge(after=0), "retry": Retry(attempts=2)},
    ],
    ids=["one", "retries", "timed", "hedge"],
)
async def test_a_failed_request_is_forgotten_at_once(options: dict[str, Any]) -> None:
    """Its error must not refer to itself by its traceback: bodies would pile up in an outage."""
    async with (
        local(drop) as one,
        local(drop) as two,
        BalancedSession(Static([one.address, two.address]), **options) as session,
    ):
        with no_garbage_collector():
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.put("/x", data=b"1")
            error = weakref.ref(caught.value)
            del caught
            await until(lambda: error() is None, 1)


async def test_a_request_that_waited_too_long_is_forgotten_at_once() -> None:
    limits = Limits(per_node=1, wait=0.01)
    async with (
        local(events) as server,
        BalancedSession(Static([server.address]), limits=limits) as session,
        session.get("/x"),
    ):
        with no_garbage_collector():
            with pytest.raises(LimitReached) as caught:
                await session.put("/x", data=b"1")
            error = weakref.ref(caught.value)
            del caught
            await until(lambda: error() is None, 1)
