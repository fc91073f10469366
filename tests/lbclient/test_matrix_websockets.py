"""A websocket is one request in flight until it is closed, by whomever."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType
from rig import Prefer, in_flight, stats_of, until
from yarl import URL

from discovery import Static
from lbclient import BalancedSession
from lbclient.sandbox import Backend


@pytest.fixture
async def session(nodes: list[Backend]) -> AsyncIterator[BalancedSession]:
    async with BalancedSession(Static([node.address for node in nodes]), name="users") as session:
        yield session


async def serving(nodes: list[Backend]) -> int:
    return sum(stat["in_flight"] for stat in (await stats_of(nodes)).values())


@pytest.mark.parametrize("url", ["/ws", "ws://users/ws", "http://users/ws"])
async def test_a_websocket_is_in_flight_until_we_close_it(
    session: BalancedSession, nodes: list[Backend], url: str
) -> None:
    async with session.ws_connect(url) as socket:
        for text in ("hello", "Grüße"):
            await socket.send_str(text)
            assert await socket.receive_str() == text
        await socket.send_bytes(b"\0\1")
        assert await socket.receive_bytes() == b"\0\1"
        assert in_flight(session) == await serving(nodes) == 1
    assert socket.close_code == 1000
    assert in_flight(session) == 0

    async def ended() -> bool:
        return await serving(nodes) == 0

    await until(ended)


async def test_a_websocket_that_the_server_closes_is_over(session: BalancedSession) -> None:
    socket = await session.ws_connect("/ws")
    await socket.send_str("close")
    assert (await socket.receive()).type is WSMsgType.CLOSE
    assert socket.closed
    assert in_flight(session) == 0


async def test_a_websocket_of_a_server_that_died_is_over(nodes: list[Backend], mortal: Backend) -> None:
    async with BalancedSession(Static([mortal.address])) as session:
        socket = await session.ws_connect("/ws")
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
        await mortal.kill()
        assert (await socket.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
        await socket.close()
        assert in_flight(session) == 0


async def test_a_websocket_is_opened_elsewhere_if_a_node_refuses(
    nodes: list[Backend], unused_address: str
) -> None:
    services = Static([unused_address, nodes[0].address])
    async with (
        BalancedSession(services, policy=Prefer(unused_address)) as session,
        session.ws_connect("/ws") as socket,
    ):
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"


async def test_many_websockets_spread(nodes: list[Backend]) -> None:
    """Each new one goes to a node with fewer, since the open ones count."""
    source = Static([node.address for node in nodes])
    # By latency a fast node would have more of them.
    async with BalancedSession(source, name="users", policy="power_of_two") as session:
        sockets = [await session.ws_connect("/ws") for _ in range(16)]
        assert in_flight(session) == 16
        opened = [stat["in_flight"] for stat in (await stats_of(nodes)).values()]
        assert max(opened) <= 7, opened
        for socket in sockets:
            await socket.close()
        assert in_flight(session) == 0


async def test_options_are_those_of_aiohttp(session: BalancedSession) -> None:
    timeout = aiohttp.ClientWSTimeout(ws_receive=0.05)
    async with session.ws_connect("/ws", timeout=timeout, heartbeat=30, headers={"X-A": "1"}) as socket:
        with pytest.raises(TimeoutError):
            await socket.receive()
    assert in_flight(session) == 0


async def test_a_refused_handshake_lands(session: BalancedSession) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await session.ws_connect("/ping")
    assert caught.value.status == 200
    assert caught.value.request_info.real_url == URL("http://users/ping")
    assert in_flight(session) == 0
