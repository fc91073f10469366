"""Closing a session: who is refused, who may end, and what becomes of the rest; seen from the servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import patience
from rig import (
    Gate,
    Websockets,
    crowd,
    drop,
    events,
    hang,
    in_flight,
    local,
    node_of,
    ok,
    paths,
    stats_of,
    until,
    waiting,
)

from discovery import Endpoint, Memory, Static, Watcher
from lbclient import (
    BalancedSession,
    Hedge,
    Limits,
    NoEndpoints,
    Outcome,
    Prequal,
    ResponseCut,
    Retry,
    RoundRobin,
    SessionClosing,
    attempts,
)
from lbclient.sandbox import Backend

LONG = 30.0
SOON = 2.0


def begin(session: BalancedSession, drain: float) -> asyncio.Task[None]:
    return asyncio.create_task(session.close(drain=drain))


async def test_those_under_way_end_and_new_ones_are_refused_at_once() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address])) as requests:
        await requests.start("/0", "/1")
        await until(lambda: len(server.seen) == 2)
        closing = begin(requests.session, LONG)
        await asyncio.sleep(0)
        with pytest.raises(SessionClosing, match="being closed"):
            await requests.session.get("/late")
        with pytest.raises(SessionClosing, match="being closed"):
            await requests.session.client_session.get("/late")
        with pytest.raises(SessionClosing, match="being closed"):
            await requests.session.ws_connect("/late")
        assert not requests.session.closed
        gate.let()
        await asyncio.wait(requests.tasks, return_when=asyncio.FIRST_COMPLETED)
        assert not closing.done()
        gate.let()
        async with patience(SOON):
            await closing
        await asyncio.gather(*requests.tasks)
        assert requests.session.closed
        assert sorted(paths(server)) == ["/0", "/1"]
        with pytest.raises(RuntimeError, match="Session is closed"):
            await requests.session.get("/late")


async def test_it_ends_as_soon_as_nothing_is_under_way() -> None:
    async with local() as server, BalancedSession(Static([server.address])) as session:
        async with session.get("/"):
            pass
        async with patience(SOON):
            await session.close(drain=LONG)


async def test_a_body_is_read_to_its_end() -> None:
    end = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        await end.wait()
        await response.write(b"last")
        return response

    async with local(slow) as server, BalancedSession(Static([server.address])) as session:
        response = await session.get("/")
        closing = begin(session, LONG)
        await asyncio.sleep(0)
        end.set()
        assert await response.read() == b"first last"
        async with patience(SOON):
            await closing


async def test_a_redirect_is_followed_though_something_comes_between_its_hops() -> None:
    redirected, go_on = asyncio.Event(), asyncio.Event()

    async def between(req: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if req.url.path == "/b":
            redirected.set()
            await go_on.wait()
        return await handler(req)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        there = request.path == "/b"
        return web.Response(text="ok") if there else web.Response(status=307, headers={"Location": "/b"})

    async with (
        local(answer) as server,
        BalancedSession(Static([server.address]), middlewares=[between]) as session,
    ):
        request = asyncio.ensure_future(session.get("/a")._coro)
        await redirected.wait()
        closing = begin(session, LONG)
        await asyncio.sleep(0.05)
        go_on.set()
        response = await request
        assert await response.text() == "ok"
        async with patience(SOON):
            await closing


async def test_a_redirect_that_nobody_follows_is_not_waited_for() -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/b"})

    async with local(answer) as server, BalancedSession(Static([server.address])) as session:
        async with session.get("/a", allow_redirects=False) as response:
            await response.read()
        async with patience(1):
            await session.close(LONG)
        assert response.status == 307


async def test_those_who_wait_for_a_slot_get_theirs() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:
        await requests.start("/0", "/1", "/2")
        closing = begin(requests.session, LONG)
        gate.let(3)
        await asyncio.gather(*requests.tasks)
        async with patience(SOON):
            await closing
        assert paths(server) == ["/0", "/1", "/2"]


async def test_retries_and_redirects_of_those_under_way_go_on() -> None:
    gate = Gate()

    async def redirect(request: web.BaseRequest) -> web.StreamResponse:
        await gate(request)
        if request.raw_path == "/dropped" and len(server.seen) == 2:
            return await drop(request)
        if request.raw_path == "/moved":
            return web.Response(status=302, headers={"Location": "/there"})
        return web.Response(text="ok")

    async with local(redirect) as server:
        retry = Retry(attempts=2, backoff=0.05, backoff_cap=0.05)
        async with crowd(Static([server.address]), retry=retry) as requests:
            await requests.start("/moved", "/dropped")
            await until(lambda: len(server.seen) == 2)
            closing = begin(requests.session, LONG)
            await asyncio.sleep(0)
            gate.let(4)
            assert [len(tried) for tried in await asyncio.gather(*requests.tasks)] == [2, 2]
            async with patience(SOON):
                await closing
            assert sorted(paths(server)) == ["/dropped", "/dropped", "/moved", "/there"]


@pytest.mark.parametrize("drain", [0, 0.05])
async def test_what_is_left_is_cut_and_told_why(drain: float) -> None:
    async with local(hang) as silent, local(events) as streaming:
        services = {"silent": Static([silent.address]), "streaming": Static([streaming.address])}
        async with BalancedSession(services, limits=Limits(per_node=1)) as session:
            stream = await session.get("http://streaming/")
            assert await stream.content.readany() == b"data: 1\n\n"
            reading = asyncio.create_task(stream.content.readany())
            posting = asyncio.create_task(session.post("http://silent/")._coro)
            await until(lambda: len(silent.seen) == 1)
            queueing = asyncio.create_task(session.post("http://silent/")._coro)
            await until(lambda: waiting(session) == 1)
            await session.close(drain=drain)
            assert session.closed
            for task in (posting, queueing):
                with pytest.raises(SessionClosing, match="closed"):
                    await task
            with pytest.raises(ResponseCut, match=f"{streaming.address}: the session was closed"):
                await reading
            stream.release()
            assert in_flight(session) == 0
        assert len(silent.seen) == len(streaming.seen) == 1


@pytest.mark.parametrize("drain", [0.0, 0.01])
async def test_who_pauses_before_another_attempt_has_the_last_answer_at_once(drain: float) -> None:
    async def busy(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "20"})

    async with local(busy) as server, crowd(Static([server.address]), retry=Retry(retry_after=LONG)) as requests:
        pausing = asyncio.create_task(requests.session.request("GET", "/x"))
        await until(lambda: len(server.seen) == 1 and in_flight(requests.session) == 0)
        await requests.session.close(drain=drain)
        async with patience(1):
            response = await pausing
        assert response.status == 503
        (attempt,) = attempts(response)
        assert attempt.outcome is Outcome.OVERLOAD
        assert "not tried again: SessionClosing" in attempt.error
        assert len(server.seen) == 1


async def test_a_reader_that_comes_later_is_told_as_well() -> None:
    async with local(events) as server, BalancedSession(Static([server.address])) as session:
        stream = await session.get("/")
        await session.close()
        await asyncio.sleep(0.01)
        for _ in range(2):
            with pytest.raises(ResponseCut):
                await stream.content.readany()
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.read()


async def test_websockets_are_closed_with_going_away() -> None:
    websockets = Websockets()
    async with local(websockets) as server, BalancedSession(Static([server.address])) as session:
        async with session.ws_connect("/") as websocket:
            receiving = asyncio.create_task(websocket.receive())
            await asyncio.sleep(0)
            async with patience(SOON):
                await session.close(drain=0.05)
            assert (await receiving).type is aiohttp.WSMsgType.CLOSING
            assert isinstance(websocket.exception(), ResponseCut)
        assert websockets.codes == [1001]


async def test_cancelling_cuts_and_closes_everything() -> None:
    async with local(hang) as server, crowd(Static([server.address])) as requests:
        await requests.start("/0")
        closing = begin(requests.session, LONG)
        await asyncio.sleep(0.01)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert requests.session.closed
        with pytest.raises(SessionClosing):
            await requests.tasks[0]


async def test_closing_once_more_without_time_cuts_at_once() -> None:
    async with local(hang) as server, crowd(Static([server.address])) as requests:
        await requests.start("/0")
        closing = begin(requests.session, LONG)
        await asyncio.sleep(0.01)
        async with patience(SOON):
            await requests.session.close()
            await closing
        with pytest.raises(SessionClosing):
            await requests.tasks[0]


async def test_nodes_that_leave_meanwhile_are_cleaned_up(nodes: list[Backend]) -> None:
    source = Memory(node.address for node in nodes[:2])
    async with BalancedSession(source, policy=RoundRobin, keepalive_timeout=60, on_empty="accept") as session:
        await session.ready(5)
        for _ in range(2):
            async with session.get("/ping") as response:
                await response.read()
        async with session.get("/stream?chunks=1000&ms=50") as stream:
            busy = attempts(stream)[-1].endpoint.address
            closing = begin(session, LONG)
            await asyncio.sleep(0)
            source.set([busy])

            async def closed() -> bool:
                return [s["connections_open"] for a, s in (await stats_of(nodes[:2])).items() if a != busy] == [0]

            await until(closed, 2)
            assert not closing.done()
            source.set([])
            await until(lambda: [node["address"] for node in session.describe()["draining"]] == [busy])
            assert attempts(stream)[-1].leaving
        async with patience(SOON):
            await closing


async def test_probes_and_hedges_end_with_it() -> None:
    """The check after each test that no task is left is what asserts here."""
    async with local() as one, local() as two:
        source = Static([one.address, two.address])
        async with BalancedSession(source, policy=Prequal, hedge=Hedge(after=0.001)) as session:
            async with session.get("/") as response:
                await response.read()
            await session.close(drain=1)


async def test_who_waits_for_the_first_endpoints_of_a_shared_watcher_is_let_go() -> None:
    class Silent:
        async def watch(self) -> AsyncIterator[tuple[Endpoint, ...]]:
            await asyncio.Event().wait()
            yield ()

    async with Watcher(Silent()) as never:
        session = BalancedSession({"users": never}, wait_for_endpoints=LONG)
        request = asyncio.create_task(session.get("http://users/")._coro)
        waiters = session._balancing._services["users"]._deadlines
        await until(lambda: len(waiters) == 1)
        async with patience(SOON):
            await session.close(drain=0.05)
            with pytest.raises(NoEndpoints, match="no endpoint"):
                await request
        assert not waiters


@pytest.mark.parametrize("value", [-1, "3", None, True, float("nan")])
async def test_the_time_to_drain_is_a_number_from_0(value: Any) -> None:
    async with local(ok) as server, BalancedSession(Static([server.address])) as session:
        with pytest.raises(ValueError, match="drain must be 0 or more") as caught:
            await session.close(drain=value)
        assert repr(value) in str(caught.value)
        async with session.get("/") as response:
            assert response.status == 200


async def test_a_node_is_not_blamed_for_what_was_cut() -> None:
    async with local(events) as server:
        session = BalancedSession(Static([server.address]))
        async with session.get("/") as stream:
            assert await stream.content.readany() == b"data: 1\n\n"
            await session.close()
            with pytest.raises(ResponseCut):
                await stream.content.readany()
        assert node_of(session, server.address)["failures"] == 0
        assert [attempt.outcome for attempt in attempts(stream)] == [Outcome.SUCCESS]
