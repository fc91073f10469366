"""Time-outs and cancellation: which of them blame a node, and which are tried elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientTimeout
from patience import Stopwatch
from rig import Prefer, black_hole, events, hang, in_flight, local, node_of, stats_of, times_processed, until

from discovery import Static
from lbclient import BalancedSession, Budget, Limits, Retry, attempts
from lbclient.outcome import Outcome
from lbclient.sandbox import Backend

FOREVER = ClientTimeout(total=None)
# What has to be in time has so long, also where a busy machine stops a process for a moment.
PATIENCE = 3.0


@pytest.fixture
async def frozen(nodes: list[Backend]) -> AsyncIterator[Backend]:
    """A server that the kernel still accepts connections for, and that answers nothing."""
    await nodes[0].pause()
    yield nodes[0]
    await nodes[0].resume()


@pytest.fixture
async def hole() -> AsyncIterator[str]:
    async with black_hole() as address:
        yield address


def blamed(session: BalancedSession, address: str) -> int:
    node = node_of(session, address)
    assert node["state"] == "ready"
    return int(node["failures"])


async def test_an_attempt_has_its_own_deadline(frozen: Backend, nodes: list[Backend]) -> None:
    services = Static([frozen.address, nodes[1].address])
    async with (
        BalancedSession(services, policy=Prefer(frozen.address), attempt_timeout=PATIENCE) as session,
        session.get("/x") as response,
    ):
        assert (await response.json())["port"] == nodes[1].port
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
        assert attempts(response)[0].elapsed >= PATIENCE
        assert blamed(session, frozen.address) == 1


async def test_an_attempt_that_was_sent_is_not_repeated_after_its_deadline(
    frozen: Backend, nodes: list[Backend]
) -> None:
    services = Static([frozen.address, nodes[1].address])
    async with BalancedSession(services, policy=Prefer(frozen.address), attempt_timeout=PATIENCE) as session:
        with pytest.raises(
            aiohttp.SocketTimeoutError, match=f"{frozen.address} gave no answer within 3 s"
        ) as caught:
            await session.post("/x", data=b"1", headers={"X-Request-Id": "1"})
        assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.FAULT]
        assert in_flight(session) == 0
    await frozen.resume()
    assert await times_processed(nodes[1:], "1") == 0


@pytest.mark.parametrize("body", ["bytes", "generator"])
async def test_an_attempt_that_was_not_sent_is_repeated_after_its_deadline(
    hole: str, nodes: list[Backend], body: str
) -> None:
    async def generate() -> AsyncIterator[bytes]:
        yield b"bo"
        yield b"dy"

    async with (
        BalancedSession(
            Static([hole, nodes[1].address]), policy=Prefer(hole), attempt_timeout=PATIENCE, connect_timeout=30
        ) as session,
        session.post("/x", data=b"body" if body == "bytes" else generate()) as response,
    ):
        assert (await response.json())["body"] == "body"
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
        assert "ConnectionTimeoutError" in attempts(response)[0].error


async def test_the_error_after_no_connection_in_time_is_a_connection_timeout(hole: str) -> None:
    async with BalancedSession(Static([hole]), attempt_timeout=0.05, connect_timeout=30) as session:
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.get("/x")


async def test_the_body_is_no_part_of_the_attempts_deadline(nodes: list[Backend]) -> None:
    async with (
        BalancedSession(Static([nodes[0].address]), attempt_timeout=PATIENCE) as session,
        session.get("/stream?chunks=5&ms=700&size=10") as response,
    ):
        assert len(await response.read()) == 50


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_connecting_has_a_deadline(hole: str, nodes: list[Backend], method: str) -> None:
    with Stopwatch() as watch:
        async with (
            BalancedSession(
                Static([hole, nodes[0].address]), policy=Prefer(hole), connect_timeout=PATIENCE
            ) as session,
            session.request(method, "/ping") as response,
        ):
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
            assert node_of(session, hole)["connect_failures"] == 1
    assert watch.seconds < PATIENCE + 0.9


async def test_connecting_leaves_time_for_the_other_attempts(hole: str, nodes: list[Backend]) -> None:
    """At most an equal share of the total deadline."""
    services = Static([hole, nodes[0].address])
    total = 3 * PATIENCE

    async def tried(session: BalancedSession, **options: Any) -> int:
        async with session.get("/ping", **options) as response:
            return len(attempts(response))

    async with BalancedSession(services, policy=Prefer(hole), connect_timeout=30, timeout=total) as session:
        each = [{}, {"timeout": total}, {"timeout": ClientTimeout(total=total)}]
        assert await asyncio.gather(*(tried(session, **options) for options in each)) == [2, 2, 2]


async def test_the_callers_own_time_to_connect_wins(hole: str, nodes: list[Backend]) -> None:
    services = Static([hole, nodes[0].address])
    with Stopwatch() as watch:
        async with (
            BalancedSession(services, policy=Prefer(hole), connect_timeout=30) as session,
            session.get("/ping", timeout=ClientTimeout(sock_connect=PATIENCE)) as response,
        ):
            assert attempts(response)[0].elapsed >= PATIENCE
    assert watch.seconds < PATIENCE + 0.95


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_time_to_read_is_a_fault(frozen: Backend, nodes: list[Backend], method: str) -> None:
    services = Static([frozen.address, nodes[1].address])
    timeout = ClientTimeout(total=None, sock_read=PATIENCE)
    async with BalancedSession(services, policy=Prefer(frozen.address), timeout=timeout) as session:
        if method == "GET":
            async with session.get("/ping") as response:
                assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
        else:
            with pytest.raises(aiohttp.SocketTimeoutError):
                await session.post("/ping")
    assert (await nodes[1].stat())["requests"] == (1 if method == "GET" else 0)


@pytest.mark.parametrize("where", ["aiohttp", "caller"])
@pytest.mark.parametrize("attempt_timeout", [None, 30])
async def test_the_total_deadline_is_final_and_the_silent_nodes_fault_and_the_callers_own_is_nobodys(
    nodes: list[Backend], where: str, attempt_timeout: float | None
) -> None:
    services = Static([node.address for node in nodes])
    async with BalancedSession(services, attempt_timeout=attempt_timeout) as session:

        async def ask() -> None:
            # The node is to blame for more than half of the time only.
            async with asyncio.timeout(PATIENCE if where == "caller" else None):
                await session.get("/hang", timeout=2 * PATIENCE if where == "aiohttp" else None)

        with pytest.raises(TimeoutError) as caught:
            await ask()
        assert not isinstance(caught.value, aiohttp.ClientError)
        assert in_flight(session) == 0
        assert sum(blamed(session, node.address) for node in nodes) == (where == "aiohttp")
        outcomes = [attempt.outcome for attempt in attempts(caught.value)]
        assert outcomes == ([Outcome.TIMEOUT] if where == "aiohttp" else [])
    assert sum(stat["requests"] for stat in (await stats_of(nodes)).values()) == 1


async def test_the_total_deadline_while_connecting_is_nobodys_fault(hole: str, nodes: list[Backend]) -> None:
    timeout = ClientTimeout(total=0.1, sock_connect=30)
    async with BalancedSession(Static([hole, nodes[0].address]), policy=Prefer(hole), timeout=timeout) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.get("/ping")
        assert not isinstance(caught.value, aiohttp.ClientError)
        assert blamed(session, hole) == node_of(session, hole)["connect_failures"] == in_flight(session) == 0
    assert (await nodes[0].stat())["requests"] == 0


async def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_connecting(hole: str) -> None:
    async with BalancedSession(Static([hole]), connect_timeout=30) as session:
        task = asyncio.create_task(session.get("/x")._coro)
        await until(lambda: session.snapshot().version == 1 and in_flight(session) == 1)
        await cancel(task)
        assert in_flight(session) == blamed(session, hole) == 0


async def test_cancelled_while_waiting_for_the_head() -> None:
    async with local(hang) as server, BalancedSession(Static([server.address])) as session:
        task = asyncio.create_task(session.put("/x", data=b"1")._coro)
        await until(lambda: bool(server.seen))
        await cancel(task)
        assert in_flight(session) == blamed(session, server.address) == 0
        assert len(server.seen) == 1


async def test_cancelled_while_reading_the_body(nodes: list[Backend]) -> None:
    async with BalancedSession(Static([nodes[0].address])) as session:
        reading = asyncio.Event()

        async def read() -> None:
            async with session.get("/stream?chunks=1000&ms=100") as response:
                await response.content.readany()
                reading.set()
                await response.read()

        task = asyncio.create_task(read())
        await reading.wait()
        assert in_flight(session) == 1
        await cancel(task)
        assert in_flight(session) == blamed(session, nodes[0].address) == 0


async def test_cancelled_while_waiting_for_a_slot() -> None:
    async with (
        local(hang) as server,
        BalancedSession(Static([server.address]), limits=Limits(per_node=1)) as session,
    ):
        first = asyncio.create_task(session.get("/1")._coro)
        await until(lambda: bool(server.seen))
        second = asyncio.create_task(session.get("/2")._coro)
        await until(lambda: session.describe()["services"]["service"]["waiting"] == 1)
        await cancel(second)
        assert session.describe()["services"]["service"]["waiting"] == 0
        assert in_flight(session) == 1
        await cancel(first)
        assert in_flight(session) == blamed(session, server.address) == 0


async def test_the_total_deadline_while_waiting_for_a_slot() -> None:
    async with (
        local(hang) as server,
        BalancedSession(Static([server.address]), limits=Limits(per_node=1)) as session,
    ):
        first = asyncio.create_task(session.get("/1")._coro)
        await until(lambda: bool(server.seen))
        with pytest.raises(TimeoutError) as caught:
            await session.get("/2", timeout=0.05)
        assert not isinstance(caught.value, aiohttp.ClientError)
        await cancel(first)
        assert [seen.target for seen in server.seen] == ["/1"]


@pytest.mark.parametrize(
    "options",
    [{"attempt_timeout": PATIENCE}, {"timeout": ClientTimeout(connect=PATIENCE)}],
    ids=["attempt", "connect"],
)
async def test_a_connector_that_is_full_is_no_fault_of_the_nodes(options: dict[str, Any]) -> None:
    """Whoever waits for a place in it has reached no server."""
    async with (
        local(events) as one,
        local() as two,
        BalancedSession(
            Static([one.address, two.address]),
            policy=Prefer(one.address),
            retry=Retry(budget=Budget(share=0, per_second=0)),
            connector=aiohttp.TCPConnector(limit=1),
            **options,
        ) as session,
    ):
        async with session.get("/stream"):
            with pytest.raises(aiohttp.ConnectionTimeoutError) as caught:
                await session.post("/x")
        assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.OURS] * 3
        assert node_of(session, one.address)["failures"] == node_of(session, two.address)["failures"] == 0
        assert len(two.seen) == 0
        async with session.post("/x") as response:
            assert response.status == 200


async def test_a_body_that_its_maker_is_slow_with_is_no_fault_of_the_node() -> None:
    async def generate() -> AsyncIterator[bytes]:
        yield b"bo"
        await asyncio.Event().wait()

    async with local() as server, BalancedSession(Static([server.address]), attempt_timeout=PATIENCE) as session:
        with pytest.raises(aiohttp.SocketTimeoutError) as caught:
            await session.put("/x", data=generate())
        assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.OURS]
        assert blamed(session, server.address) == 0
