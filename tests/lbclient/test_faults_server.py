"""The fault server itself: it does what it is told, and what it tells of it is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from fault_rig import Fault, FaultServer
from rig import until

from lbclient.sandbox.process import Process


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with await FaultServer.start() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        # What it would try again by itself is not what is counted here.
        session._retry_connection = False
        yield session


async def status_of(
    client: aiohttp.ClientSession, server: FaultServer, path: str = "/x", body: bytes = b""
) -> int:
    """The status of an answer; 0 if there is none."""
    try:
        async with client.post(
            f"http://{server.address}{path}", data=body, headers={"X-Request-Id": path}
        ) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


async def generate() -> AsyncIterator[bytes]:
    yield b"first"
    yield b"second"


async def test_it_reads_bodies_with_a_length_and_in_chunks_also_when_it_is_to_ask_for_them(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    for expect100 in (False, True):
        for data in (b"firstsecond", generate()):
            async with client.put(f"http://{server.address}/x", data=data, expect100=expect100) as response:
                assert (await response.json())["size"] == 11
    assert len(set(server.trace("").bodies)) == 1
    report = server.report
    assert (report.opened, report.open, report.heads, report.processed, report.answered) == (1, 1, 4, 4, 4)
    assert report.received > 44
    assert report.sent > 400


async def test_an_answer_to_head_has_no_body(server: FaultServer, client: aiohttp.ClientSession) -> None:
    for _ in range(2):
        async with client.head(f"http://{server.address}/x") as response:
            assert int(response.headers["Content-Length"]) > 0
            assert await response.read() == b""
    assert server.report.opened == 1


async def test_a_killed_server_has_told_all_and_comes_back_at_its_port(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    await server.play(Fault(sends="nothing", then="silence"))
    asking = asyncio.create_task(status_of(client, server, "/silent", b"body"))
    await until(lambda: server.trace("/silent").processed == 1)
    await server.kill()
    assert await asking == 0
    assert await status_of(client, server) == 0
    assert server.trace("/silent").answered == 0
    assert (server.report.opened, server.report.open) == (1, 0)
    await server.restart(Fault(status=503, path="/b"))
    assert [await status_of(client, server, path) for path in ("/silent", "/b")] == [200, 503]
    assert server.trace("/silent").processed == 2
    assert server.report.starts == 2


async def test_a_paused_server_is_silent_and_can_be_asked_what_it_saw(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    assert await status_of(client, server, "/1") == 200
    await server.pause()
    asking = asyncio.create_task(status_of(client, server, "/2"))
    await asyncio.sleep(0.05)
    assert [server.trace(path).processed for path in ("/1", "/2")] == [1, 0]
    assert not asking.done()
    await server.resume()
    assert await asking == 200


async def test_a_graceful_stop_finishes_what_runs(server: FaultServer, client: aiohttp.ClientSession) -> None:
    await server.play(Fault(delay=0.1, path="/slow"))
    assert await status_of(client, server, "/idle") == 200
    asking = asyncio.create_task(status_of(client, server, "/slow"))
    await until(lambda: server.trace("/slow").processed == 1)
    assert await server.terminate()
    assert await asking == 200
    assert await status_of(client, server) == 0
    assert server.report.open == 0


async def test_a_stop_does_not_wait_for_what_will_never_end(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    await server.play(Fault(sends="half body", then="silence"))
    asking = asyncio.create_task(status_of(client, server))
    await until(lambda: server.report.processed == 1)
    assert await server.terminate()
    assert await asking == 0


async def test_it_is_gone_when_its_standard_input_ends(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    process: Process = server._process
    assert process._popen is not None
    assert process._popen.stdin is not None
    process._popen.stdin.close()
    await until(lambda: not server.running)


async def test_a_silent_server_notices_that_its_client_has_gone(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    await server.play(Fault(reads="nothing", sends="nothing", then="silence"))
    asking = asyncio.create_task(status_of(client, server))
    await until(lambda: server.report.opened == 1)
    await asyncio.sleep(0.05)
    asking.cancel()
    await until(lambda: server.report.open == 0)
    assert (server.report.opened, server.report.heads) == (1, 0)


async def test_a_fault_may_be_for_some_requests_only(server: FaultServer, client: aiohttp.ClientSession) -> None:
    await server.play(Fault(status=503, first=2), Fault(status=500, path="/b"))
    assert [await status_of(client, server, path) for path in ("/a", "/b", "/a", "/b")] == [503, 503, 200, 500]
    drawn = []
    for seed in (1, 1, 2):
        await server.play(Fault(status=503, share=0.5), seed=seed)
        drawn.append([await status_of(client, server) for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert 200 in drawn[0]
    assert 503 in drawn[0]


async def test_refusing_and_not_accepting_end_when_it_listens_again(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    async def error() -> str:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=2)) as fresh:
            try:
                await fresh.get(f"http://{server.address}/x")
            except aiohttp.ClientError as error:
                return type(error).__name__
        return ""

    assert await status_of(client, server) == 200
    for _ in range(2):
        await server.refuse()
        assert await error() == "ClientConnectorError"
        assert await status_of(client, server) == 200, "a connection that was there stays"
        await server.fill()
        assert await error() == "ConnectionTimeoutError"
        assert await status_of(client, server) == 200
        await server.listen()
        assert await error() == ""
    assert server.report.opened == 3, "those that filled its queue do not count"


async def test_idle_connections_are_closed_and_others_are_not(
    server: FaultServer, client: aiohttp.ClientSession
) -> None:
    await server.play(Fault(delay=3, path="/slow"))
    asking = asyncio.create_task(status_of(client, server, "/slow"))
    await until(lambda: server.trace("/slow").processed == 1)
    assert await status_of(client, server, "/idle") == 200
    assert await server.close_idle() == 1
    assert await asking == 200
    await until(lambda: server.report.open == 1)


async def test_a_command_that_fails_is_an_error(server: FaultServer) -> None:
    with pytest.raises(RuntimeError, match="no such command: dance"):
        await server._tell("dance")


async def test_forgetting_begins_the_report_anew(server: FaultServer, client: aiohttp.ClientSession) -> None:
    await status_of(client, server, "/1")
    server.forget()
    await status_of(client, server, "/2")
    report = server.report
    assert (list(report.requests), report.heads, report.opened, report.open) == (["/2"], 1, 0, 1)
