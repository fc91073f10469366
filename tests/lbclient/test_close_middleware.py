"""Closing a balancer in a session of somebody else: what is its own, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import patience
from rig import Gate, events, hang, local, ok, paths, until

from discovery import Static
from lbclient import BalancingMiddleware, SessionClosing

LONG = 30.0
SOON = 2.0


@asynccontextmanager
async def foreign(source: Any, **options: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, BalancingMiddleware]]:
    balancing = BalancingMiddleware({"users": source}, **options)
    async with aiohttp.ClientSession(middlewares=(balancing,)) as session, balancing:
        yield session, balancing


async def test_a_middleware_drains_its_services_and_leaves_the_session_open() -> None:
    gate = Gate()
    async with local(gate) as server, local() as other, foreign(Static([server.address])) as (session, balancing):
        request = asyncio.create_task(session.get("http://users/")._coro)
        await until(lambda: len(server.seen) == 1)
        closing = asyncio.create_task(balancing.close(drain=LONG))
        await asyncio.sleep(0)
        with pytest.raises(SessionClosing):
            await session.get("http://users/")
        async with session.get(f"http://{other.address}/") as response:
            assert response.status == 200
        gate.let()
        async with await request as response:
            assert await response.text() == "ok"
        async with patience(SOON):
            await closing
        assert not session.closed


async def test_a_middleware_cuts_what_is_its_own_and_nothing_else() -> None:
    async with (
        local(hang) as server,
        local(events) as other,
        foreign(Static([server.address])) as (session, balancing),
    ):
        request = asyncio.create_task(session.get("http://users/")._coro)
        async with session.get(f"http://{other.address}/") as stream:
            await until(lambda: len(server.seen) == 1)
            await balancing.close(drain=0.02)
            with pytest.raises(SessionClosing):
                await request
            assert await stream.content.readany() == b"data: 1\n\n"
            assert stream.content.exception() is None
        assert len(server.seen) == 1


async def test_a_middleware_that_is_just_closed_leaves_alone_what_is_under_way() -> None:
    gate = Gate()
    async with local(gate) as server, foreign(Static([server.address])) as (session, balancing):
        request = asyncio.create_task(session.get("http://users/")._coro)
        await until(lambda: len(server.seen) == 1)
        await balancing.close()
        gate.let()
        async with await request as response:
            assert await response.text() == "ok"
        with pytest.raises(SessionClosing):
            await session.get("http://users/")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next hop may come late."""
    monkeypatch.setattr("lbclient.hops._WITHIN", LONG)


def moved(gate: Gate | None = None) -> Any:
    """Answer /a with a redirect to /b, and everything else with ok."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/a":
            return await ok(request)
        if gate is not None:
            await gate(request)
        return web.Response(status=307, headers={"Location": "/b"})

    return answer


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("keyed", [False, True])
async def test_a_request_under_way_may_be_redirected_while_it_drains(keyed: bool) -> None:
    gate = Gate()
    async with local(moved(gate)) as server, foreign(Static([server.address])) as (session, balancing):
        chosen = {"middlewares": (balancing.keyed("key"),)} if keyed else {}
        request = asyncio.create_task(session.get("http://users/a", **chosen)._coro)
        await until(lambda: len(server.seen) == 1)
        closing = asyncio.create_task(balancing.close(drain=LONG))
        await asyncio.sleep(0)
        gate.let()
        async with await request as response:
            assert await response.text() == "ok"
        with pytest.raises(SessionClosing):
            await session.get("http://users/c", **chosen)
        async with patience(SOON):
            await closing
        assert paths(server) == ["/a", "/b"]


@pytest.mark.usefixtures("patient")
async def test_what_comes_between_two_hops_may_take_a_moment() -> None:
    redirected, go_on = asyncio.Event(), asyncio.Event()

    async def between(req: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if req.url.path == "/b":
            redirected.set()
            await go_on.wait()
        return await handler(req)

    balancing: BalancingMiddleware
    async with local(moved()) as server, foreign(Static([server.address])) as (session, balancing):
        middlewares = (between, balancing)
        request = asyncio.create_task(session.get("http://users/a", middlewares=middlewares)._coro)
        await redirected.wait()
        closing = asyncio.create_task(balancing.close(drain=LONG))
        await asyncio.sleep(0.05)
        assert not closing.done()
        go_on.set()
        async with await request as response:
            assert await response.text() == "ok"
        async with patience(SOON):
            await closing
        assert paths(server) == ["/a", "/b"]


@pytest.mark.usefixtures("patient")
async def test_a_task_that_was_redirected_begins_no_other_request_while_it_drains() -> None:
    gate, go_on = Gate(), asyncio.Event()

    async def work(session: aiohttp.ClientSession) -> None:
        async with session.get("http://users/a") as response:
            assert await response.text() == "ok"
        await go_on.wait()
        with pytest.raises(SessionClosing):
            await session.get("http://users/next")

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await (gate if request.path == "/long" else moved())(request)

    async with local(answer) as server, foreign(Static([server.address])) as (session, balancing):
        long = asyncio.create_task(session.get("http://users/long")._coro)
        worker = asyncio.create_task(work(session))
        await until(lambda: "/b" in paths(server))
        closing = asyncio.create_task(balancing.close(drain=LONG))
        await asyncio.sleep(0)
        go_on.set()
        await worker
        gate.let()
        (await long).release()
        async with patience(SOON):
            await closing
        assert sorted(paths(server)) == ["/a", "/b", "/long"]


@pytest.mark.parametrize("whose", ["ended", "closing", "another"])
async def test_a_redirect_that_nobody_follows_is_not_waited_for_long(
    whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whose != "another":
        # There is nothing to wait for, however long that would be.
        monkeypatch.setattr("lbclient.hops._WITHIN", LONG)
    async with local(moved()) as server, foreign(Static([server.address])) as (session, balancing):

        async def look() -> None:
            async with session.get("http://users/a", allow_redirects=False) as response:
                assert response.status == 307
            if whose == "another":
                await asyncio.Event().wait()

        if whose == "closing":
            await look()
        else:
            looking = asyncio.create_task(look())
            await until(lambda: bool(server.seen) and balancing.describe()["services"]["users"]["in_flight"] == 0)
            await asyncio.sleep(0)
        async with patience(5 if whose == "another" else 0.5):
            await balancing.close(drain=LONG)
        assert not balancing._hops.tasks
        if whose != "closing":
            looking.cancel()
