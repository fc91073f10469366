"""Answers after which a request was tried again: what they leave behind, and what is known of them."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from rig import Answer, Prefer, black_hole, drop, hang, in_flight, local, node_of, ok, until, wire
from yarl import URL

from discovery import Static
from lbclient import BalancedSession, BalancingMiddleware, Outcome, Retry, RoundRobin, attempts

AT_ONCE = Retry(backoff=0)


def status(code: int, **headers: str) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text="no", headers=sent)

    return answer


def outcomes(result: aiohttp.ClientResponse | BaseException) -> list[Outcome | None]:
    return [attempt.outcome for attempt in attempts(result)]


@pytest.mark.parametrize("whole", [True, False])
async def test_the_connection_is_kept_if_the_body_is_there_already(whole: bool) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if len(server.seen) % 2 == 0:
            return web.Response(text="ok")
        if whole:
            return web.Response(status=503, text="later")
        response = web.StreamResponse(status=503)
        await response.prepare(request)
        await response.write(b"x")
        return await hang(request)

    async with local(answer) as server, BalancedSession(Static([server.address]), retry=AT_ONCE) as session:
        for _ in range(4):
            async with session.get("/x") as response:
                assert outcomes(response) == [Outcome.GATEWAY, Outcome.SUCCESS]
            assert in_flight(session) == 0
        assert len(server.seen) == 8
        # Each half an answer costs its connection; whole ones leave it for all that follow.
        assert server.connections == (1 if whole else 5)


@pytest.mark.filterwarnings("error")
async def test_an_answer_that_was_tried_again_leaves_nothing_behind() -> None:
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    loop.set_debug(True)
    async with local(status(503)) as bad, local() as good:
        services = Static([bad.address, good.address])
        async with BalancedSession(services, policy=Prefer(bad.address), retry=AT_ONCE) as session:
            for _ in range(5):
                async with session.get("/x") as response:
                    await response.read()
            assert in_flight(session) == 0
            assert session.client_session.connector is not None
            assert not session.client_session.connector._acquired
        del response
        gc.collect()
        await asyncio.sleep(0)
    assert complaints == []


async def test_cookies_of_answers_that_were_tried_again_are_not_stored() -> None:
    """The client session stores those of the answer that it gets."""
    async with local(status(503, Set_Cookie="a=bad")) as bad, local(status(200, Set_Cookie="b=good")) as good:
        services = Static([bad.address, good.address])
        async with (
            BalancedSession(
                services,
                policy=Prefer(bad.address),
                retry=AT_ONCE,
                cookie_jar=aiohttp.CookieJar(unsafe=True),
                name="users.example",
            ) as session,
            session.get("/x"),
        ):
            stored = session.client_session.cookie_jar.filter_cookies(URL("http://users.example/"))
    assert {name: morsel.value for name, morsel in stored.items()} == {"b": "good"}


async def test_an_exception_after_an_answer_tells_of_it() -> None:
    async with local(status(503)) as one, local(drop) as two:
        services = Static([one.address, two.address])
        retry = Retry(attempts=2, backoff=0)
        async with BalancedSession(services, policy=Prefer(one.address), retry=retry) as session:
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.get("/x")
    assert outcomes(caught.value) == [Outcome.GATEWAY, Outcome.FAULT]
    (note,) = caught.value.__notes__
    assert note.startswith(f"attempt 1: {one.address}: gateway after ")
    assert note.endswith("(Prefer): status 503")


@pytest.mark.parametrize("whose", ["request", "session", "caller"])
async def test_the_exception_of_raise_for_status_knows_the_attempts(whose: str) -> None:
    async with local(status(503)) as server:
        options = {"raise_for_status": True} if whose == "session" else {}
        async with BalancedSession(Static([server.address]), retry=AT_ONCE, **options) as session:

            async def ask() -> None:
                asked = {"raise_for_status": True} if whose == "request" else {}
                async with session.get("/x", **asked) as response:
                    response.raise_for_status()

            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await ask()
            assert in_flight(session) == 0
    assert outcomes(caught.value) == [Outcome.GATEWAY] * 3


async def test_a_policy_that_raises_at_an_answer_leaks_nothing() -> None:
    class Bad(RoundRobin):
        def answered(self, *_: object) -> None:
            raise RuntimeError("oops")

    async with local(ok) as server, BalancedSession(Static([server.address]), policy=Bad) as session:
        with pytest.raises(RuntimeError, match="oops"):
            await session.get("/x")
        assert in_flight(session) == 0
        assert session.client_session.connector is not None
        assert not session.client_session.connector._acquired


async def test_attempts_say_nothing_of_the_query() -> None:
    """It may hold a secret, and what they say goes to logs."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    async with wire(talk) as garbage, black_hole() as hole:
        services = Static([hole, garbage])
        async with BalancedSession(services, policy=Prefer(hole), connect_timeout=2) as session:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.get("/path?token=hush%20hush")
    for attempt, kind in zip(
        attempts(caught.value), ("ConnectionTimeoutError", "ClientResponseError"), strict=True
    ):
        assert kind in attempt.error
        assert "/path" in attempt.error
        assert "hush" not in str(attempt)


async def test_too_many_redirects_counts_each_hop_once() -> None:
    async def around(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/x"})

    async with local(around) as server, BalancedSession(Static([server.address])) as session:
        with pytest.raises(aiohttp.TooManyRedirects) as caught:
            await session.get("/x", max_redirects=4)
    assert len(attempts(caught.value)) == len(server.seen) == 4


async def test_an_answer_in_the_middle_of_an_upload_is_tried_again_with_all_of_it() -> None:
    """The writer of the first attempt is stopped, and its connection is not used again."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(60)

    body = b"x" * 8_000_000
    async with wire(talk) as address, local() as good:
        services = Static([address, good.address])
        async with (
            BalancedSession(services, policy=Prefer(address), retry=AT_ONCE) as session,
            session.put("/x", data=io.BytesIO(body)) as response,
        ):
            assert outcomes(response) == [Outcome.GATEWAY, Outcome.SUCCESS]
            assert in_flight(session) == 0
        assert [seen.body == body for seen in good.seen] == [True]


async def test_cancelled_in_a_pause_leaves_nothing_under_way() -> None:
    async with local(status(503)) as server:
        retry = Retry(backoff=600, backoff_cap=600)
        async with BalancedSession(Static([server.address]), retry=retry, timeout=None) as session:
            task = asyncio.create_task(session.get("/x")._coro)
            await until(lambda: bool(server.seen) and in_flight(session) == 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert in_flight(session) == 0
            assert node_of(session, server.address)["failures"] == 1


@pytest.fixture
async def foreign() -> AsyncIterator[tuple[aiohttp.ClientSession, Any]]:
    async with (
        local(status(503)) as server,
        BalancingMiddleware({"users": Static([server.address])}, retry=AT_ONCE) as lb,
        aiohttp.ClientSession(middlewares=(lb,)) as session,
    ):
        yield session, server


async def test_a_session_of_somebody_else_retries_in_the_same_way(foreign: Any) -> None:
    session, server = foreign
    async with session.get("http://users/x") as response:
        assert outcomes(response) == [Outcome.GATEWAY] * 3
    assert len(server.seen) == 3
    assert server.connections == 1


async def test_nothing_is_tried_again_that_went_well() -> None:
    async with local(ok) as server, BalancedSession(Static([server.address]), retry=AT_ONCE) as session:
        for _ in range(10):
            async with session.get("/x"):
                pass
        assert session.describe()["services"]["service"]["budget"]["retries"] == 0
        assert len(server.seen) == 10
