"""Closing a balancer in a session of somebody else: what is its own, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from rig import Gate, events, hang, local, until

from discovery import Static
from lbclient import BalancingMiddleware, SessionClosing

LONG = 30.0


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
        await asyncio.wait_for(closing, 2)
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
