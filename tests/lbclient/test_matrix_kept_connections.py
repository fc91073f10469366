"""Servers close connections that nobody uses, and a loop that is busy learns of it late: no POST is lost then."""

from __future__ import annotations

import asyncio
import select
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fault_rig import FaultServer, fault_servers
from rig import Prefer, node_of, wire

from discovery import Endpoint, Static
from lbclient import BalancedSession, BalancingMiddleware, attempts
from lbclient.outcome import Outcome


async def generate() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


BODIES: dict[str, Callable[[], Any]] = {"none": lambda: None, "bytes": lambda: b"ab", "generator": generate}


def while_the_loop_is_busy(work: Coroutine[Any, Any, Any]) -> None:
    """Have it done by another loop while this one does nothing at all."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


def kept(client: aiohttp.ClientSession) -> list[int]:
    """The descriptors of the connections that wait for a request."""
    assert client.connector is not None
    waiting = [protocol for queue in client.connector._conns.values() for protocol, _ in queue]
    return [protocol.transport.get_extra_info("socket").fileno() for protocol in waiting if protocol.transport]


def close_kept(client: aiohttp.ClientSession, server: FaultServer, *further: Coroutine[Any, Any, Any]) -> int:
    """Have the server close them, and do more besides; the client's machine knows it then, its loop does not."""
    descriptors = kept(client)

    async def close() -> None:
        await server.close_idle()
        for each in further:
            await each

    while_the_loop_is_busy(close())
    give_up_at = time.monotonic() + 10
    for descriptor in descriptors:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(1000 * (give_up_at - time.monotonic()))
    return len(descriptors)


@pytest.fixture
async def servers() -> AsyncIterator[list[FaultServer]]:
    async with fault_servers("first", "second") as servers:
        yield servers


def session(servers: list[FaultServer], **options: Any) -> BalancedSession:
    addresses = [server.address for server in servers]
    return BalancedSession(Static(addresses), policy=Prefer(*addresses), **options)


@pytest.mark.parametrize("body", BODIES)
async def test_a_request_is_not_written_to_a_connection_that_was_closed(
    servers: list[FaultServer], body: str
) -> None:
    first, second = servers
    async with session(servers) as client:
        for number in range(5):
            async with client.post("/x", data=BODIES[body](), headers={"X-Request-Id": str(number)}) as response:
                assert (await response.json())["server"] == "first"
                outcomes = [attempt.outcome for attempt in attempts(response)]
                # It goes to the same server once more, without any blame.
                assert outcomes == [*[Outcome.LEFT] * (number > 0), Outcome.SUCCESS]
            assert close_kept(client.client_session, first) == 1
        node = node_of(client, first.address)
        assert (node["failures"], node["connect_failures"]) == (0, 0)
    assert all(first.trace(str(number)).processed == 1 for number in range(5))
    assert second.report.heads == 0


async def test_all_of_the_kept_ones_may_be_closed(servers: list[FaultServer]) -> None:
    first, second = servers
    async with session(servers) as client:

        async def post(number: int) -> list[Outcome | None]:
            headers = {"X-Request-Id": str(number)}
            async with client.post("/x", data=b"x" * number, headers=headers) as response:
                assert response.status == 200
                await response.read()
                return [attempt.outcome for attempt in attempts(response)]

        await asyncio.gather(*map(post, range(20)))
        assert close_kept(client.client_session, first) == 20
        # The first request finds one of them closed, and the loop has learned of the others by then.
        assert await post(20) == [Outcome.LEFT, Outcome.SUCCESS]
        await asyncio.gather(*map(post, range(21, 40)))
    assert all(first.trace(str(number)).processed == 1 for number in range(40))
    assert second.report.heads == 0


async def test_if_the_server_is_gone_as_well_another_one_has_the_request(servers: list[FaultServer]) -> None:
    first, second = servers
    async with session(servers) as client:
        async with client.post("/x", headers={"X-Request-Id": "1"}):
            pass
        close_kept(client.client_session, first, first.refuse())
        async with client.post("/x", headers={"X-Request-Id": "2"}) as response:
            assert (await response.json())["server"] == "second"
            outcomes = [attempt.outcome for attempt in attempts(response)]
    assert outcomes == [Outcome.LEFT, Outcome.CONNECT, Outcome.SUCCESS]
    assert (first.trace("2").heads, second.trace("2").processed) == (0, 1)


async def test_a_connection_with_tls_is_closed_in_more_steps(
    pem: Callable[[str], tuple[Path, Path]], client_tls: ssl.SSLContext
) -> None:
    async with fault_servers("first", tls=pem("users")) as (server,):
        services = {"users": Static([Endpoint.parse(server.address, tls=True)])}
        async with BalancedSession(services) as client:
            for number in range(5):
                headers = {"X-Request-Id": str(number)}
                async with client.post("https://users/x", headers=headers, ssl=client_tls) as response:
                    assert response.status == 200
                    await response.read()
                    outcomes = [attempt.outcome for attempt in attempts(response)]
                    assert outcomes == [*[Outcome.LEFT] * (number > 0), Outcome.SUCCESS]
                assert close_kept(client.client_session, server) == 1
        assert all(server.trace(str(number)).processed == 1 for number in range(5))


async def test_a_session_of_somebody_else_loses_none_either(servers: list[FaultServer]) -> None:
    first, _ = servers
    balancing = BalancingMiddleware({"users": Static([first.address])})
    async with balancing, aiohttp.ClientSession(middlewares=(balancing,)) as client:
        for number in range(5):
            async with client.post("http://users/x", headers={"X-Request-Id": str(number)}) as response:
                assert response.status == 200
                await response.read()
            assert close_kept(client, first) == 1
    assert all(first.trace(str(number)).processed == 1 for number in range(5))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_was_closed_before_its_first_request_is_a_failure(method: str) -> None:
    """A server that accepts and closes at once is at fault, and the request is for another one."""
    accepted = 0

    async def hang_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1

    async def after_connecting(*_: Any) -> None:
        # The loop knows of the end before the request is written.
        await asyncio.sleep(0.05)

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(after_connecting)
    async with wire(hang_up) as address, fault_servers("well") as (well,):
        policy = Prefer(address, well.address)
        async with BalancedSession(
            Static([address, well.address]), policy=policy, trace_configs=[tracing]
        ) as client:
            async with client.request(method, "/x") as response:
                assert (await response.json())["server"] == "well"
                outcomes = [attempt.outcome for attempt in attempts(response)]
            node = node_of(client, address)
    assert outcomes == [Outcome.FAULT if method == "GET" else Outcome.CONNECT, Outcome.SUCCESS]
    assert (node["failures"], node["connect_failures"]) == (1, int(method == "POST"))
    assert accepted == 1


class Losing(aiohttp.ClientRequest):
    """Loses its first connection while it is being written, as aiohttp does from Python 3.12 on."""

    lost = 0

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        if not Losing.lost:
            Losing.lost += 1
            conn.close()
        return response


async def test_a_connection_that_is_lost_while_it_is_written_to_is_a_failure(
    servers: list[FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Losing, "lost", 0)
    async with session(servers, request_class=Losing) as client, client.put("/x", data=b"ab") as response:
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
    assert Losing.lost == 1


async def test_what_can_be_read_and_is_no_end_changes_nothing() -> None:
    talking: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.append(writer)
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with wire(talk) as address, BalancedSession(Static([address])) as client:
        for _ in range(3):
            async with client.post("/x") as response:
                assert [attempt.outcome for attempt in attempts(response)] == [Outcome.SUCCESS]
            # Some servers end a body with a line too much.
            talking[0].write(b"\r\n")
    assert len(talking) == 1
