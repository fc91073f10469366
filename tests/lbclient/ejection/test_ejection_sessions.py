"""Ejection and panic with real servers: what the servers see, and what callers get."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from patience import Stopwatch
from rig import expire_ejection, local, node_of, until

from discovery import Memory
from lbclient import BalancedSession, Ejection, NoEndpoints, Retry, RoundRobin, Routing
from lbclient.sandbox import Backend


async def get(session: BalancedSession, path: str = "/ping") -> int:
    async with session.get(path) as response:
        await response.read()
        return response.status


async def failing(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=500)


async def half(request: web.BaseRequest) -> web.StreamResponse:
    """The head of a good answer, and half of its body."""
    response = web.StreamResponse(headers={"Content-Length": "10"})
    await response.prepare(request)
    await response.write(b"12345")
    assert request.transport is not None
    request.transport.close()
    return response


async def test_a_server_that_answers_500_gets_five_requests_and_then_a_probe_at_a_time() -> None:
    async with local(failing) as bad, local() as good:
        source = Memory([bad.address, good.address])
        async with BalancedSession(source, policy=RoundRobin) as session:
            for _ in range(40):
                await get(session)
            assert (len(bad.seen), len(good.seen)) == (5, 35)
            for probes in (1, 2):
                expire_ejection(session, bad.address)
                for _ in range(10):
                    await get(session)
                assert len(bad.seen) == 5 + probes
            (service,) = session.describe()["services"].values()
            assert service["counts"]["ejections"]["failures"] == 1
            assert service["counts"]["ejections"]["probe"] == 2
            assert node_of(session, bad.address)["ejected_because"] == "its probe failed: status 500"


async def test_a_server_whose_bodies_break_off_is_taken_out_with_many_requests_at_once() -> None:
    async with local(half) as bad, local() as good:
        source = Memory([bad.address, good.address])
        async with BalancedSession(source, policy=RoundRobin) as session:
            for _ in range(5):
                await asyncio.gather(*(get(session) for _ in range(6)), return_exceptions=True)
            assert node_of(session, bad.address)["state"] == "ejected"
            assert len(bad.seen) <= 8, "five, and those that were under way"
            seen = len(bad.seen)
            for _ in range(10):
                assert await get(session) == 200
            assert len(bad.seen) == seen


async def test_when_all_refuse_the_first_that_is_back_is_found_at_once(nodes: list[Backend]) -> None:
    for node in nodes:
        await node.refuse()
    async with BalancedSession(Memory([node.address for node in nodes]), retry=Retry(attempts=3)) as session:
        for _ in range(8):
            with pytest.raises(aiohttp.ClientConnectorError):
                await get(session)
        assert {node_of(session, node.address)["state"] for node in nodes} <= {"ejected", "probing"}
        await nodes[2].listen()

        async def found() -> bool:
            try:
                return await get(session) == 200
            except aiohttp.ClientConnectorError:
                return False

        with Stopwatch() as watch:
            await until(found)
        assert watch.seconds < 1
        assert node_of(session, nodes[2].address)["state"] == "ready"
        for _ in range(10):
            assert await get(session) == 200


async def test_a_panic_that_is_to_fail_says_so_at_once_and_ends_with_a_probe(nodes: list[Backend]) -> None:
    back = nodes[0]
    await back.refuse()
    routing, ejection = Routing(panic="fail"), Ejection(connect_failures=1, jitter=0)
    async with BalancedSession(
        Memory([back.address]), routing=routing, ejection=ejection, retry=Retry(attempts=1)
    ) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session)
        with pytest.raises(NoEndpoints, match="1 known, 1 matching, 0 healthy"):
            await get(session)
        await back.listen()
        expire_ejection(session, back.address)
        assert await get(session) == 200


async def test_a_panic_that_is_to_wait_ends_with_a_probe_that_nobody_has_to_ask_for(nodes: list[Backend]) -> None:
    back = nodes[0]
    await back.refuse()
    routing, ejection = Routing(panic="wait"), Ejection(connect_failures=1, jitter=0)
    async with BalancedSession(
        Memory([back.address]), routing=routing, ejection=ejection, retry=Retry(attempts=1)
    ) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session)
        waiting = [asyncio.create_task(get(session)) for _ in range(5)]
        await until(lambda: session.describe()["services"]["service"]["waiting"] == 5)
        await back.listen()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiting) == [200] * 5
        assert (await back.stat())["requests"] == 5


async def test_a_request_that_waits_in_a_panic_does_so_until_its_deadline(nodes: list[Backend]) -> None:
    await nodes[0].refuse()
    routing, ejection = Routing(panic="wait"), Ejection(connect_failures=1)
    async with BalancedSession(
        Memory([nodes[0].address]), routing=routing, ejection=ejection, retry=Retry(attempts=1)
    ) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session)
        with pytest.raises(TimeoutError):
            async with session.get("/ping", timeout=aiohttp.ClientTimeout(total=0.3)):
                pass
