"""`NoEndpoints` says what is known, and comes at once where waiting cannot help."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import aiohttp
import pytest
from patience import Stopwatch, patience
from rig import Loopback, Prefer, hang, in_flight, local, until

from discovery import Endpoint, Memory, Static, Watcher
from lbclient import BalancedSession, BalancingMiddleware, LBError, NoEndpoints, Retry, attempts


class Silent:
    """A registry that never answers."""

    def __repr__(self) -> str:
        return "Silent()"

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        await asyncio.Event().wait()
        yield ()


async def test_a_silent_registry_is_waited_for_and_no_longer() -> None:
    async with BalancedSession({"users": Silent()}, wait_for_endpoints=0.1) as session:
        began = time.monotonic()
        with Stopwatch() as watch, pytest.raises(NoEndpoints) as caught:
            await session.get("http://users/x")
        assert time.monotonic() - began >= 0.1
        assert watch.seconds < 2
    assert str(caught.value) == (
        "service 'users' has no endpoint after waiting 0.1 s: 0 known, 0 matching, 0 healthy, 0 tried; "
        "discovery (Silent()): 0 endpoints, starting"
    )
    assert attempts(caught.value) == ()


async def test_the_reason_why_a_registry_is_not_reached_is_told() -> None:
    source = Memory(["127.0.0.1:1"])
    source.fail("connection to 10.0.0.1:2379 refused")
    async with BalancedSession({"users": source}, wait_for_endpoints=0.05) as session:
        with pytest.raises(NoEndpoints, match=r"0 endpoints, starting \(.*connection to 10.0.0.1:2379 refused\)"):
            await session.get("http://users/x")


async def test_an_empty_service_fails_at_once() -> None:
    """The registry has spoken: there is nobody to wait for."""
    async with BalancedSession({"users": Memory()}, wait_for_endpoints=30) as session, patience(2):
        for _ in range(2):
            with pytest.raises(NoEndpoints, match=r"'users' has no endpoint: 0 known, .* 0 endpoints, live$"):
                await session.get("http://users/x")


async def test_no_endpoints_is_an_error_of_a_connection() -> None:
    """Whoever handles aiohttp's errors handles ours, and aiohttp does not repeat the request."""
    assert issubclass(NoEndpoints, LBError)
    assert issubclass(LBError, aiohttp.ClientConnectionError)
    assert not issubclass(NoEndpoints, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))
    source = Memory()
    async with BalancingMiddleware({"users": source}) as lb, aiohttp.ClientSession(middlewares=(lb,)) as foreign:
        with pytest.raises(NoEndpoints):
            await foreign.get("http://users/x")


async def test_requests_that_wait_for_the_first_endpoints_get_them() -> None:
    source = Memory()
    source.fail()
    watcher = Watcher(source)
    async with (
        local() as server,
        watcher,
        BalancedSession(watcher, policy=Prefer, wait_for_endpoints=30) as session,
    ):
        requests = [asyncio.create_task(session.post("/x", data=b"1")._coro) for _ in range(5)]
        await until(lambda: watcher.snapshot.reason != "")
        assert not any(task.done() for task in requests)
        source.set([server.address])
        source.recover()
        assert [response.status for response in await asyncio.gather(*requests)] == [200] * 5
        assert len(server.seen) == 5


async def test_a_service_that_loses_and_gains_its_nodes_goes_on() -> None:
    async with local() as server:
        source = Memory([server.address])
        async with BalancedSession(source) as session:
            await session.get("/1")
            source.set([])
            await until(lambda: session.endpoints() == ())
            with pytest.raises(NoEndpoints):
                await session.get("/2")
            source.set([server.address])
            await until(lambda: len(session.endpoints()) == 1)
            await session.get("/3")
        assert [seen.target for seen in server.seen] == ["/1", "/3"]


@pytest.mark.parametrize("another", [True, False])
async def test_a_node_that_leaves_while_it_is_being_connected_costs_no_attempt(another: bool) -> None:
    looked_up, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Loopback):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[Any]:
            looked_up.set()
            await go_on.wait()
            return await super().resolve(host, port, family)

    connector = aiohttp.TCPConnector(limit=0, resolver=Slow("leaving.internal"))
    async with local() as leaving, local() as other:
        source = Memory([leaving.address.replace("127.0.0.1", "leaving.internal")])
        async with BalancedSession(source, name="users", retry=Retry(attempts=1), connector=connector) as session:
            request = asyncio.create_task(session.post("/x", data=b"1")._coro)
            await looked_up.wait()
            source.set([other.address] if another else [])
            await until(lambda: session.snapshot().version == 2)
            go_on.set()
            if another:
                assert len(attempts(await request)) == 2
            else:
                with pytest.raises(NoEndpoints, match="0 known, 0 matching, 0 healthy, 1 tried") as caught:
                    await request
                assert "left while a connection to it was being made" in caught.value.__notes__[0]
        assert leaving.seen == []
        assert len(other.seen) == another


async def test_an_outage_of_the_registry_keeps_the_last_good_nodes() -> None:
    async with local() as server:
        source = Memory([server.address])
        async with BalancedSession(source) as session:
            await session.get("/1")
            source.fail()
            await until(lambda: session.snapshot().state == "stale")
            await session.get("/2")
        assert len(server.seen) == 2


async def test_the_total_deadline_ends_the_wait_for_endpoints() -> None:
    async with BalancedSession(Silent(), wait_for_endpoints=30) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.get("/x", timeout=0.05)
        assert not isinstance(caught.value, aiohttp.ClientError)


async def test_closing_ends_the_wait_for_endpoints() -> None:
    session = BalancedSession(Silent(), wait_for_endpoints=30)
    request = asyncio.create_task(session.get("/x")._coro)
    await until(lambda: len(asyncio.all_tasks()) > 2)
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(NoEndpoints, match="the watcher was stopped"):
        await request


async def test_a_closed_session_says_so() -> None:
    session = BalancedSession(Static(["127.0.0.1:1"]))
    assert not session.closed
    await session.close()
    await session.close()
    assert session.closed
    with pytest.raises(RuntimeError, match="Session is closed"):
        await session.get("/x")


async def test_requests_under_way_end_when_the_session_is_closed() -> None:
    """Without another attempt: there is nothing left to make it with."""
    async with local(hang) as one, local(hang) as two:
        session = BalancedSession(Static([one.address, two.address]))
        request = asyncio.create_task(session.get("/x")._coro)
        await until(lambda: len(one.seen) + len(two.seen) == 1)
        await session.close()
        with pytest.raises(aiohttp.ClientConnectionError) as caught:
            await request
        assert len(attempts(caught.value)) == 1
        assert in_flight(session) == 0


async def test_ready_waits_for_all_services_and_names_the_reason() -> None:
    async with BalancedSession({"users": Static(["127.0.0.1:1"]), "orders": Silent()}) as session:
        with pytest.raises(TimeoutError, match=r"orders: nothing received within 0.05 s"):
            await session.ready(0.05)
        assert len(session.endpoints("users")) == 1
        with pytest.raises(KeyError, match="no service None; there are users, orders"):
            session.endpoints()
        with pytest.raises(KeyError, match="no service 'nobody'"):
            session.snapshot("nobody")
