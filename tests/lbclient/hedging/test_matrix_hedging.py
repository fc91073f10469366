"""A hedged request behaves as any other, on asyncio and on uvloop: the second attempt wins each of these."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from hedging_rig import SOON, hedging_of, no_losers, preferring
from rig import Gate, Local, Prefer, hang, in_flight, local, ok, until

from discovery import Endpoint, Static
from lbclient import BalancedSession, BalancingMiddleware, Hedge, Outcome, attempts
from lbclient.sandbox import Backend


@asynccontextmanager
async def hedged(answer: Any, **options: Any) -> AsyncIterator[tuple[BalancedSession, Local, Local]]:
    """A session, a server that is silent, and one that answers hedges."""
    async with (
        local(hang) as slow,
        local(answer) as fast,
        preferring(slow.address, fast.address, **options) as session,
    ):
        yield session, slow, fast


async def test_redirects_are_followed_and_each_hop_is_hedged() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/from":
            return web.Response(status=302, headers={"Location": "/to"})
        return web.Response(text="there")

    async with hedged(answer) as (session, slow, fast):
        async with session.get("/from") as response:
            assert await response.text() == "there"
            assert str(response.url) == "http://service/to"
            assert [str(r.url) for r in response.history] == ["http://service/from"]
            assert len(attempts(response)) == 4
        assert [s.target for s in fast.seen] == [s.target for s in slow.seen] == ["/from", "/to"]


async def test_only_the_winner_sets_cookies() -> None:
    gate = Gate()

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        await gate(request)
        return web.Response(headers={"Set-Cookie": "a=loser"})

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(headers={"Set-Cookie": "a=winner"})

    async with local(late) as slow, local(answer) as fast, preferring(slow.address, fast.address) as session:
        async with session.get("/x") as response:
            assert response.cookies["a"].value == "winner"
        gate.let()
        await no_losers(session)
        async with session.get("/x"):
            pass
        assert [s.headers.get("Cookie") for s in fast.seen] == [None, "a=winner"]
        assert [s.headers.get("Cookie") for s in slow.seen] == [None, "a=winner"]


async def test_both_servers_see_the_same_request() -> None:
    async with hedged(ok) as (session, slow, fast):
        async with session.put("/x?q=1", json={"a": 1}, headers={"X-A": "1"}) as response:
            info = response.request_info
            assert str(info.real_url) == "http://service/x?q=1"
            assert info.headers["X-A"] == "1"
        one, other = slow.seen[0], fast.seen[0]
        assert (one.method, one.target, one.body) == (other.method, other.target, other.body)
        assert list(one.headers.items()) == list(other.headers.items())
        assert one.headers["Host"] == "service"


async def test_a_large_answer_is_read_as_ever() -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * 3_000_000)

    async with hedged(answer) as (session, _, fast):
        for _ in range(3):
            async with session.get("/x") as response:
                assert len(await response.read()) == 3_000_000
        assert fast.connections == 1


async def test_an_expected_continue_is_waited_for_by_each() -> None:
    async with hedged(ok) as (session, slow, fast):
        async with session.put("/x", data=b"body", expect100=True) as response:
            assert response.status == 200
        assert [s.body for s in (*slow.seen, *fast.seen)] == [b"body", b"body"]


async def test_errors_for_bad_statuses_are_raised_as_ever() -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404)

    async with hedged(answer, raise_for_status=True) as (session, _, fast):
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await session.get("/x")
        assert caught.value.status == 404
        assert len(fast.seen) == 1


async def test_a_foreign_session_hedges_as_well() -> None:
    async with local(hang) as slow, local() as fast:
        services = {"service": Static([slow.address, fast.address])}
        lb = BalancingMiddleware(services, policy=Prefer(slow.address), hedge=SOON)
        async with (
            lb,
            aiohttp.ClientSession(middlewares=(lb,)) as session,
            session.get("http://service/x") as response,
        ):
            assert [a.outcome for a in attempts(response)] == [Outcome.OURS, Outcome.SUCCESS]
        assert (len(slow.seen), len(fast.seen)) == (1, 1)


async def test_certificates_are_checked_for_the_logical_name(
    authority: trustme.CA, pem: Callable[[str], tuple[Path, Path]]
) -> None:
    def serving() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pem("service"))
        return context

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with local(hang, tls=serving()) as slow, local(tls=serving()) as fast:
        nodes = [Endpoint.parse(server.address, tls=True) for server in (slow, fast)]
        options: dict[str, Any] = {"policy": Prefer(slow.address), "hedge": Hedge(after=0.2)}
        async with (
            BalancedSession(Static(nodes), **options) as session,
            session.get("/x", ssl=trusting) as response,
        ):
            assert str(response.url) == "http://service/x"
            assert len(attempts(response)) == 2
        assert slow.names == fast.names == ["service"]


async def test_a_websocket_is_opened_once() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data)
        return ws

    async with (
        local(answer) as first,
        local(answer) as second,
        preferring(first.address, second.address) as session,
    ):
        async with session.ws_connect("/ws") as ws:
            await ws.send_str("hello")
            assert (await ws.receive()).data == "hello"
        assert (len(first.seen), len(second.seen)) == (1, 0)


async def test_a_hundred_at_once() -> None:
    gate = asyncio.Event()

    async def late(_: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response(text="late")

    async with local(late) as slow, local() as fast, preferring(slow.address, fast.address) as session:

        async def one(number: int) -> str:
            async with session.get(f"/{number}") as response:
                return await response.text()

        assert await asyncio.gather(*(one(n) for n in range(50))) == ["ok"] * 50
        gate.set()
        await no_losers(session)
        assert in_flight(session) == 0
        assert len({s.target for s in slow.seen}) == len({s.target for s in fast.seen}) == 50


async def test_a_stopped_process_costs_one_delay(nodes: list[Backend]) -> None:
    """Alive and silent: the hedge answers, and the paused server gets its requests once it goes on."""
    first, second = nodes[:2]
    hedge = Hedge(after=2, linger=30)
    async with preferring(first.address, second.address, hedge=hedge) as session:
        async with session.get("/x") as response:
            assert len(attempts(response)) == 1
        await first.pause()
        async with session.get("/x", headers={"X-Request-Id": "hedged"}) as response:
            assert response.status == 200
            assert [a.endpoint.address for a in attempts(response)] == [first.address, second.address]
        await first.resume()
        await until(lambda: hedging_of(session).as_dict()["lingering"] == 0)
        assert attempts(response)[0].outcome is Outcome.SUCCESS
        stats = [await node.stat() for node in (first, second)]
        assert [stat["ids"].get("hedged", 0) for stat in stats] == [1, 1]
