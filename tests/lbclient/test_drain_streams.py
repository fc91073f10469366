"""Streams and websockets at a node that left: told before, and cut with a reason at the deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import patience
from rig import Gate, Prefer, Websockets, events, hang, in_flight, local, node_of, paths, until, wire

from discovery import Memory
from lbclient import BalancedSession, BalancingMiddleware, LBError, ResponseCut, RoundRobin, attempts

DRAIN = 0.1
# Where something has to be done before that.
LONGER = 2.0


def session_for(source: Memory, drain: float = DRAIN, **options: Any) -> BalancedSession:
    return BalancedSession(source, name="users", on_empty="accept", drain_timeout=drain, **options)


async def drop_all(source: Memory) -> None:
    source.set([])
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_reader_is_told_which_node_left_and_when() -> None:
    async with local(events) as server:
        source = Memory([server.address])
        async with session_for(source) as session, session.get("/events") as stream:
            assert await stream.content.readline() == b"data: 1\n"
            assert not attempts(stream)[-1].leaving
            await drop_all(source)
            assert attempts(stream)[-1].leaving
            assert await stream.content.readline() == b"\n"
            with pytest.raises(
                ResponseCut, match=rf"the response was cut: {server.address} left 0\.1 s"
            ) as caught:
                await stream.content.readline()
            assert isinstance(caught.value, (LBError, aiohttp.ClientPayloadError))
            assert in_flight(session) == 0
            assert session.describe()["draining"] == []


async def test_a_body_that_ends_with_the_connection_does_not_just_end() -> None:
    """Without a length or chunks nothing else tells a whole body from half of one."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: 1\n\n")
        await reader.read()

    async with wire(talk) as address:
        source = Memory([address])
        async with session_for(source) as session, session.get("/events") as stream:
            assert await stream.content.readany() == b"data: 1\n\n"
            await drop_all(source)
            with pytest.raises(ResponseCut, match=address):
                await stream.read()


async def test_a_reader_that_is_busy_elsewhere_at_the_deadline_is_told_later() -> None:
    async with local(events) as server:
        source = Memory([server.address])
        async with session_for(source) as session, session.get("/events") as stream:
            await drop_all(source)
            await until(lambda: in_flight(session) == 0)
            for _ in range(20):
                await asyncio.sleep(0)
            with pytest.raises(ResponseCut, match=server.address):
                await stream.read()


async def test_a_post_without_an_answer_fails_and_says_why_and_is_not_sent_again() -> None:
    async with local(hang) as server, local() as other:
        source = Memory([server.address, other.address])
        async with session_for(source, policy=Prefer(server.address)) as session:
            post = asyncio.create_task(session.post("/x")._coro)
            await until(lambda: len(server.seen) == 1)
            source.remove(server.address)
            with pytest.raises(aiohttp.ServerDisconnectedError, match=r"left 0\.1 s ago"):
                await post
        assert len(other.seen) == 0


async def test_a_get_without_an_answer_is_asked_elsewhere() -> None:
    async with local(hang) as server, local() as other:
        source = Memory([server.address, other.address])
        async with session_for(source, policy=Prefer(server.address)) as session:
            get = asyncio.create_task(session.get("/x")._coro)
            await until(lambda: len(server.seen) == 1)
            source.remove(server.address)
            async with await get as response:
                assert await response.text() == "ok"
        assert paths(other) == ["/x"]


class Own(aiohttp.ClientWebSocketResponse):
    """What a user may give."""

    greeting = "hello"


@pytest.mark.parametrize("kind", [None, Own])
async def test_a_websocket_is_closed_with_going_away(kind: type[Own] | None) -> None:
    websockets = Websockets()
    async with local(websockets) as server:
        source = Memory([server.address])
        options = {} if kind is None else {"ws_response_class": kind}
        async with session_for(source, LONGER, **options) as session, session.ws_connect("/ws") as websocket:
            assert isinstance(websocket, kind or aiohttp.ClientWebSocketResponse)
            await websocket.send_str("before")
            assert await websocket.receive_str() == "before"
            assert [attempt.leaving for attempt in attempts(websocket)] == [False]  # type: ignore[arg-type]
            await drop_all(source)
            assert [attempt.leaving for attempt in attempts(websocket)] == [True]  # type: ignore[arg-type]
            await websocket.send_str("after")
            assert await websocket.receive_str() == "after"
            assert [message async for message in websocket] == []
            assert isinstance(websocket.exception(), ResponseCut)
            assert f"the websocket was closed: {server.address} left" in str(websocket.exception())
            await until(lambda: in_flight(session) == 0)
        assert websockets.codes == [1001]


async def test_a_websocket_that_nobody_receives_from_is_closed_as_well() -> None:
    websockets = Websockets()
    async with local(websockets) as server:
        source = Memory([server.address])
        async with session_for(source) as session, session.ws_connect("/ws") as websocket:
            await drop_all(source)
            await until(lambda: websocket.closed and in_flight(session) == 0)
        assert websockets.codes == [1001]


async def test_a_websocket_whose_other_side_is_silent_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbclient.drain._FAREWELL", 0.05)
    ended: list[bytes] = []

    async def deaf(request: web.BaseRequest) -> web.StreamResponse:
        websocket = web.WebSocketResponse(autoclose=False)
        await websocket.prepare(request)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(b"cut")
        return websocket

    async with local(deaf) as server:
        source = Memory([server.address])
        async with session_for(source) as session, session.ws_connect("/ws") as websocket:
            await drop_all(source)
            async with patience(2):
                assert (await websocket.receive()).type is aiohttp.WSMsgType.CLOSING
            await until(lambda: in_flight(session) == 0)
            await until(lambda: ended == [b"cut"])


async def test_a_websocket_of_somebody_elses_session_is_just_cut() -> None:
    websockets = Websockets()
    async with local(websockets) as server:
        source = Memory([server.address])
        balancing = BalancingMiddleware({"users": source}, drain_timeout=DRAIN, on_empty="accept")
        async with (
            balancing,
            aiohttp.ClientSession(middlewares=(balancing,)) as session,
            session.ws_connect("http://users/ws") as websocket,
        ):
            await drop_all(source)
            async with patience(2):
                assert (await websocket.receive()).type is aiohttp.WSMsgType.CLOSED
        await until(lambda: websockets.codes == [None])


async def test_a_stream_goes_on_at_a_node_that_is_back_in_time() -> None:
    gate = Gate()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        await gate(request)
        await response.write(b"last")
        return response

    async with local(stream) as server:
        source = Memory([server.address])
        async with session_for(source, LONGER) as session, session.get("/") as response:
            await drop_all(source)
            source.add(server.address)
            loop = asyncio.get_running_loop()
            deadline = loop.time() + LONGER + DRAIN
            await until(lambda: loop.time() > deadline)
            gate.let(2)
            assert await response.read() == b"first last"
            connections = server.connections
            async with session.get("/") as second:
                await second.read()
            assert server.connections == connections + 1, "what was marked is closed"


async def test_a_node_that_is_about_to_stop_gets_no_new_requests_and_nothing_else_changes() -> None:
    gate = Gate()
    async with local(gate) as stopping, local() as other:
        source = Memory([stopping.address, other.address])
        async with session_for(source, policy=RoundRobin) as session:
            begun = [asyncio.create_task(session.get("/begun")._coro) for _ in range(2)]
            await until(lambda: len(stopping.seen) == 1)
            balancer = session._balancing._services["users"].balancer
            node = balancer.nodes[stopping.address]
            balancer.set_leaving(node, leaving=True, now=0.0)
            (attempt,) = node.attempts
            assert attempt.leaving
            assert node_of(session, stopping.address)["state"] == "leaving"
            for _ in range(10):
                async with session.get("/new") as response:
                    assert await response.text() == "ok"
            assert paths(stopping) == ["/begun"]
            assert session.describe()["draining"] == []
            gate.let()
            for response in await asyncio.gather(*begun):
                assert await response.text() == "ok"
            balancer.set_leaving(node, leaving=False, now=0.0)
            gate.let(2)
            for _ in range(4):
                async with session.get("/back") as response:
                    assert await response.text() == "ok"
            assert paths(stopping) == ["/begun", "/back", "/back"]
            assert stopping.connections == 1, "its connection was kept"
