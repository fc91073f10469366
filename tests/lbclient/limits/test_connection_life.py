"""Connections that are old or have served enough are closed between requests; the servers count them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from rig import Gate, in_flight, local, paths, until

from discovery import Static
from lbclient import BalancedSession, Limits
from lbclient.limits.lifetimes import Lifetimes


async def post(session: BalancedSession, path: str = "/") -> None:
    async with session.post(path, data=b"x") as response:
        assert await response.text() == "ok"


@pytest.mark.parametrize("most", [1, 3])
async def test_a_connection_serves_so_many_requests_and_no_more(most: int) -> None:
    async with local() as server:
        limits = Limits(connection_requests=most, jitter=0)
        async with BalancedSession(Static([server.address]), limits=limits) as session:
            for _ in range(4 * most):
                await post(session)
            assert (server.connections, len(server.seen)) == (4, 4 * most)


async def test_no_post_is_lost_while_connections_are_closed_all_the_time() -> None:
    async with local() as server:
        limits = Limits(per_node=8, connection_requests=2, connection_age=0.002)
        async with BalancedSession(Static([server.address]), limits=limits) as session:
            await asyncio.gather(*(post(session, f"/{n}") for n in range(400)))
        assert sorted(paths(server)) == sorted(f"/{n}" for n in range(400))
        assert server.connections >= 200


async def test_without_limits_connections_are_kept() -> None:
    async with local() as server, BalancedSession(Static([server.address])) as session:
        for _ in range(50):
            await post(session)
        assert server.connections == 1


async def test_a_connection_that_grew_old_during_a_request_serves_it_to_its_end_and_nothing_else() -> None:
    gate = Gate()
    async with local(gate) as server:
        limits = Limits(connection_age=0.05, jitter=0)
        async with BalancedSession(Static([server.address]), limits=limits) as session:
            request = asyncio.create_task(post(session))
            await until(lambda: len(server.seen) == 1)
            began = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > began + 0.06)
            gate.let(2)
            await request
            await post(session)
            assert server.connections == 2


async def test_an_answer_that_is_never_read_to_its_end_closes_its_connection_as_ever() -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.Event().wait()
        return response

    async with local(endless) as server:
        limits = Limits(connection_age=100, connection_requests=5)
        async with BalancedSession(Static([server.address]), limits=limits) as session:
            async with session.get("/") as response:
                assert await response.content.readany() == b"first"
            assert in_flight(session) == 0


class Protocol:
    """A connection that remembers that it is to be closed."""

    closing = False

    def force_close(self) -> None:
        self.closing = True


def test_an_idle_connection_that_is_too_old_serves_one_more_request() -> None:
    lifetimes, one = Lifetimes(Limits(connection_age=10, jitter=0), random.Random(1).random), Protocol()
    assert lifetimes.begin(one, 100.0).until > 109.9
    assert not one.closing
    lifetimes.begin(one, 110.0)
    assert one.closing


def life(lifetimes: Lifetimes) -> int:
    """After how many requests, one a second, a new connection is closed."""
    one, count = Protocol(), 0
    while not one.closing:
        lifetimes.begin(one, 100.0 + count)
        count += 1
    return count


@pytest.mark.parametrize("option", ["connection_requests", "connection_age"])
def test_connections_that_were_opened_together_are_not_closed_together(option: str) -> None:
    options: dict[str, Any] = {option: 1000}
    lifetimes = Lifetimes(Limits(**options, jitter=0.2), random.Random(1).random)
    lives = [life(lifetimes) for _ in range(200)]
    assert 800 <= min(lives) < 820
    assert 980 < max(lives) <= 1001
    assert len(set(lives)) > 100


def test_a_connection_that_is_gone_is_not_remembered() -> None:
    lifetimes = Lifetimes(Limits(connection_age=10), random.Random(1).random)
    for _ in range(10):
        lifetimes.begin(Protocol(), 0.0)
    assert len(lifetimes._lives) == 0


async def test_what_tells_of_a_connection_is_what_aiohttp_asks_before_it_keeps_it() -> None:
    async with local() as server:
        limits = Limits(connection_requests=1)
        async with BalancedSession(Static([server.address]), limits=limits) as session:
            await post(session)
            connector = session.client_session.connector
            assert isinstance(connector, aiohttp.TCPConnector)
            assert not connector._conns
