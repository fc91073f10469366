"""Faults in the middle of bodies that are far larger than what is on the way between client and server."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fault_rig import Fault, FaultServer, fault_servers
from rig import Prefer, open_descriptors, until

from discovery import Static
from lbclient import BalancedSession
from lbclient.retrying import Retry

# All buffers between the two take about 4 MB.
HUGE = b"0123456789abcdef" * 1_000_000
DIGEST = (hashlib.sha256(HUGE).hexdigest(), len(HUGE))
NO_ANSWER = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)

FAULTS = {
    "reset": Fault(reads="head", sends="nothing", then="reset"),
    "closed": Fault(reads="head", sends="nothing", then="close"),
    "unread": Fault(reads="head", sends="nothing", then="silence"),
    "503": Fault(reads="head", status=503, headers={"Connection": "close"}),
}


def opened(path: Path) -> io.BufferedReader:
    path.write_bytes(b"skip " + HUGE)
    file = path.open("rb")
    file.seek(5)
    return file


def buffered(_: Path) -> io.BytesIO:
    data = io.BytesIO(b"skip " + HUGE)
    data.seek(5)
    return data


async def generate() -> AsyncIterator[bytes]:
    for start in range(0, len(HUGE), 1_000_000):
        yield HUGE[start : start + 1_000_000]


REPLAYABLE: dict[str, Callable[[Path], Any]] = {"buffer": buffered, "file": opened}
ALL: dict[str, Callable[[Path], Any]] = REPLAYABLE | {"generator": lambda _: generate()}


@pytest.fixture
async def servers() -> AsyncIterator[list[FaultServer]]:
    """The first is preferred. They end with the test: unsent bytes keep a closed connection open until then."""
    async with fault_servers("faulty", "healthy") as servers:
        yield servers


def session(servers: list[FaultServer], fault: str = "") -> BalancedSession:
    addresses = [server.address for server in servers]
    # Long enough for a whole body, also where a busy machine stops the servers for a moment.
    limit = 4.0 if fault == "unread" else None
    return BalancedSession(
        Static(addresses), policy=Prefer(*addresses), attempt_timeout=limit, retry=Retry(backoff=0.001)
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("body", REPLAYABLE)
async def test_a_body_that_was_cut_off_arrives_whole_elsewhere(
    servers: list[FaultServer], tmp_path: Path, fault: str, body: str
) -> None:
    faulty, healthy = servers
    await faulty.play(FAULTS[fault])
    async with (
        session(servers, fault) as client,
        client.put("/x", data=ALL[body](tmp_path / "body"), headers={"X-Request-Id": "1"}) as response,
    ):
        assert response.status == 200
        assert (await response.json())["server"] == "healthy"
    assert (faulty.trace("1").heads, faulty.trace("1").processed) == (1, 0)
    assert healthy.trace("1").bodies == [DIGEST]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("method", "body"), [("POST", "buffer"), ("POST", "file"), ("PUT", "generator")])
async def test_what_was_begun_and_may_not_be_repeated_is_not(
    servers: list[FaultServer], tmp_path: Path, fault: str, method: str, body: str
) -> None:
    faulty, healthy = servers
    await faulty.play(FAULTS[fault])
    async with session(servers, fault) as client:
        sending = client.request(method, "/x", data=ALL[body](tmp_path / "body"), headers={"X-Request-Id": "1"})
        if fault == "503":
            async with sending as response:
                assert response.status == 503
        else:
            with pytest.raises(aiohttp.SocketTimeoutError if fault == "unread" else NO_ANSWER):
                await sending
        # The next request is none the worse for it.
        await faulty.play()
        async with client.put("/x", data=b"next", headers={"X-Request-Id": "2"}) as response:
            assert response.status == 200
    assert (faulty.trace("1").heads, faulty.trace("1").processed) == (1, 0)
    assert healthy.trace("1").heads == 0
    assert faulty.trace("2").processed == 1


def kept(client: BalancedSession) -> list[object]:
    """The idle connections that have not ended, as far as the client can know."""
    connector = client.client_session.connector
    assert connector is not None
    return [protocol for held in connector._conns.values() for protocol, _ in held if protocol.is_connected()]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_was_closed_while_idle_is_not_used(
    servers: list[FaultServer], method: str
) -> None:
    """Where the client could know it, a POST is not lost."""
    faulty, healthy = servers
    async with session(servers) as client:
        for number in range(20):
            headers = {"X-Request-Id": str(number)}
            async with client.request(method, "/x", headers=headers) as response:
                assert (await response.json())["id"] == str(number)
            assert await faulty.close_idle() == 1
            await until(lambda: faulty.report.open == 0)
            # The end of the connection has arrived, and the client's loop has it.
            await until(lambda: not kept(client))
            assert faulty.trace(str(number)).processed == 1
    assert faulty.report.opened == 20
    assert healthy.report.heads == 0


async def test_connections_that_servers_do_not_keep_are_made_anew(servers: list[FaultServer]) -> None:
    faulty, _ = servers
    async with session(servers) as client:
        for headers, opened in (({"Connection": "close"}, 10), ({}, 1)):
            faulty.forget()
            await faulty.play(Fault(headers=headers))
            for number in range(10):
                async with client.post("/x", headers={"X-Request-Id": str(number)}) as response:
                    assert (await response.json())["id"] == str(number)
            assert faulty.report.opened == opened


async def test_an_expected_refusal_comes_before_the_body(servers: list[FaultServer]) -> None:
    """With `expect100` a server that refuses has not been sent anything but the head."""
    faulty, healthy = servers
    await faulty.play(FAULTS["503"])
    async with session(servers) as client:
        for method in ("PUT", "POST"):
            async with client.request(
                method, "/x", data=io.BytesIO(HUGE), expect100=True, headers={"X-Request-Id": method}
            ) as response:
                assert response.status == (200 if method == "PUT" else 503)
    assert faulty.report.received < 2000
    assert healthy.trace("PUT").bodies == [DIGEST]
    assert healthy.trace("POST").heads == 0


async def test_a_body_that_nobody_takes_is_not_kept(servers: list[FaultServer]) -> None:
    """To close a connection is to send the rest first, for as long as a silent server lives."""
    faulty = servers[0]
    await faulty.play(FAULTS["unread"])
    before = open_descriptors()
    async with BalancedSession(Static([faulty.address]), attempt_timeout=2, retry=Retry(attempts=1)) as users:
        with pytest.raises(aiohttp.SocketTimeoutError):
            await users.post("/x", data=io.BytesIO(HUGE))
        await until(lambda: open_descriptors() <= before, 1)
