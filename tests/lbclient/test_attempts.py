"""What is tried again, where and how often: the table of `Outcome`, as the servers see it."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from rig import Prefer, black_hole, drop, in_flight, local, node_of, stats_of, times_processed, wire

from discovery import Static
from lbclient import AttemptsFailed, BalancedSession, BalancingMiddleware, Retry, attempts
from lbclient.outcome import Outcome
from lbclient.sandbox import Backend

IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
OTHERS = ("POST", "PATCH")


def outcomes(result: aiohttp.ClientResponse | BaseException) -> list[Outcome | None]:
    return [attempt.outcome for attempt in attempts(result)]


@asynccontextmanager
async def foreign(services: dict[str, Static]) -> AsyncIterator[aiohttp.ClientSession]:
    async with BalancingMiddleware(services) as lb, aiohttp.ClientSession(middlewares=(lb,)) as session:
        yield session


@pytest.mark.parametrize("method", IDEMPOTENT + OTHERS)
async def test_any_method_goes_elsewhere_when_a_connection_is_refused(
    nodes: list[Backend], unused_address: str, method: str
) -> None:
    services = Static([unused_address, nodes[0].address])
    async with (
        BalancedSession(services, policy=Prefer(unused_address)) as session,
        session.request(method, "/x", headers={"X-Request-Id": "1"}) as response,
    ):
        assert response.status == 200
        assert outcomes(response) == [Outcome.CONNECT, Outcome.SUCCESS]
        assert node_of(session, unused_address)["connect_failures"] == 1
    assert await times_processed(nodes, "1") == 1


@pytest.mark.parametrize("method", IDEMPOTENT)
async def test_an_idempotent_request_goes_elsewhere_when_the_server_drops_it(
    nodes: list[Backend], method: str
) -> None:
    async with local(drop) as dropper:
        services = Static([dropper.address, nodes[0].address])
        async with (
            BalancedSession(services, policy=Prefer(dropper.address)) as session,
            session.request(method, "/x", headers={"X-Request-Id": "1"}) as response,
        ):
            assert response.status == 200
            assert outcomes(response) == [Outcome.FAULT, Outcome.SUCCESS]
        assert len(dropper.seen) == 1
    assert await times_processed(nodes, "1") == 1


@pytest.mark.parametrize("method", OTHERS)
async def test_what_may_have_been_processed_is_not_repeated(nodes: list[Backend], method: str) -> None:
    async with local(drop) as dropper:
        services = Static([dropper.address, nodes[0].address])
        async with BalancedSession(services, policy=Prefer(dropper.address)) as session:
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.request(method, "/x", data=b"1")
            assert outcomes(caught.value) == [Outcome.FAULT]
        assert len(dropper.seen) == 1
    assert (await nodes[0].stat())["requests"] == 0


@pytest.mark.parametrize("method", OTHERS)
async def test_an_idempotency_key_makes_a_request_repeatable(nodes: list[Backend], method: str) -> None:
    headers = {"Idempotency-Key": "8e03978e", "X-Request-Id": "1"}
    async with local(drop) as dropper:
        services = Static([dropper.address, nodes[0].address])
        async with (
            BalancedSession(services, policy=Prefer(dropper.address)) as session,
            session.request(method, "/x", data=b"body", headers=headers) as response,
        ):
            said = await response.json()
            assert said["body"] == "body"
            assert ["Idempotency-Key", "8e03978e"] in said["headers"]
        assert [seen.headers["Idempotency-Key"] for seen in dropper.seen] == ["8e03978e"]
    assert await times_processed(nodes, "1") == 1


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 4])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_servers_see_no_more_than_max_attempts(nodes: list[Backend], method: str, max_attempts: int) -> None:
    """The hidden repetition of aiohttp does not double them."""
    services = {"users": Static([node.address for node in nodes])}
    async with BalancedSession(services, retry=Retry(attempts=max_attempts)) as session:
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.request(method, "http://users/drop", headers={"X-Request-Id": "1"})
        assert in_flight(session) == 0
    processed = max_attempts if method == "GET" else 1
    assert len(attempts(caught.value)) == processed
    counts = [stat["ids"].get("1", 0) for stat in (await stats_of(nodes)).values()]
    assert sum(counts) == processed
    assert max(counts) == 1, "a node that was tried already was tried once more"


async def test_a_foreign_session_sees_no_more_than_max_attempts_either(nodes: list[Backend]) -> None:
    """What would make it try again by itself is wrapped."""
    async with foreign({"users": Static([node.address for node in nodes])}) as session:
        with pytest.raises(AttemptsFailed, match="3 attempts failed, the last with ServerDisconnected") as caught:
            await session.get("http://users/drop", headers={"X-Request-Id": "1"})
    assert isinstance(caught.value, aiohttp.ClientConnectionError)
    assert isinstance(caught.value.__cause__, aiohttp.ServerDisconnectedError)
    assert outcomes(caught.value) == [Outcome.FAULT] * 3
    assert attempts(caught.value) == attempts(caught.value.__cause__)
    assert await times_processed(nodes, "1") == 3


async def test_a_foreign_session_raises_aiohttps_errors_where_it_would_not_try_again(
    nodes: list[Backend], unused_address: str
) -> None:
    async with foreign({"users": Static([node.address for node in nodes])}) as session:
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.post("http://users/drop", headers={"X-Request-Id": "1"})
        assert outcomes(caught.value) == [Outcome.FAULT]
    assert await times_processed(nodes, "1") == 1
    async with foreign({"users": Static([unused_address])}) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("http://users/x")


async def test_other_hosts_keep_the_single_hidden_repetition(nodes: list[Backend]) -> None:
    """It is switched off in our session; requests that are none of ours are not to notice."""
    services = {"users": Static([nodes[0].address])}
    for method, times in (("GET", 2), ("POST", 1)):
        async with local(drop) as dropper, BalancedSession(services) as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.request(method, f"http://{dropper.address}/x", data=b"body")
            assert [seen.body for seen in dropper.seen] == [b"body"] * times


async def test_nothing_that_aiohttp_would_not_repeat_is_repeated_at_other_hosts(nodes: list[Backend]) -> None:
    services = {"users": Static([nodes[0].address])}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=2)
    async with BalancedSession(services) as session:
        with pytest.raises(aiohttp.SocketTimeoutError):
            await session.get(f"http://{nodes[1].address}/hang", timeout=timeout)
    assert (await nodes[1].stat())["requests"] == 1


async def test_a_single_node_gets_what_it_dropped_once_more(nodes: list[Backend]) -> None:
    async with BalancedSession(Static([nodes[0].address])) as session:
        for method, times in (("GET", 3), ("PUT", 3), ("POST", 1)):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.request(method, "/drop", headers={"X-Request-Id": method})
            assert await times_processed(nodes, method) == times


async def test_a_single_node_that_refuses_is_asked_again_after_pauses(
    unused_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is being restarted is back in a moment."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("lbclient.exchange.sleep", sleep)
    async with BalancedSession(Static([unused_address]), retry=Retry(backoff=1, backoff_cap=10)) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.post("/x")
        budget = session.describe()["services"]["service"]["budget"]
    assert outcomes(caught.value) == [Outcome.CONNECT] * 3
    assert 0 < pauses[0] < 1
    assert 0 < pauses[1] < 2
    assert len(pauses) == 2
    assert budget == {"requests": 1, "retries": 2, "withdrawn": 2, "refused": 0}


async def test_two_nodes_that_drop_share_three_attempts(nodes: list[Backend]) -> None:
    async with BalancedSession(Static([node.address for node in nodes[:2]])) as session:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.get("/drop")
    assert sorted(stat["requests"] for stat in (await stats_of(nodes)).values()) == [0, 0, 1, 2]


@pytest.mark.parametrize("status", [404, 500, 501])
async def test_an_answer_is_an_answer(nodes: list[Backend], status: int) -> None:
    """Unless its status says that the same request may succeed elsewhere or later."""
    async with (
        BalancedSession(Static([node.address for node in nodes])) as session,
        session.get(f"/status/{status}") as response,
    ):
        assert response.status == status
        assert outcomes(response) == [Outcome.ERROR if status >= 500 else Outcome.SUCCESS]
    assert sum(stat["requests"] for stat in (await stats_of(nodes)).values()) == 1


async def test_an_answer_that_is_no_http_is_not_asked_for_again(nodes: list[Backend]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    async with wire(talk) as address:
        services = Static([address, nodes[0].address])
        async with BalancedSession(services, policy=Prefer(address)) as session:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.get("/x")
            assert outcomes(caught.value) == [Outcome.BROKEN]
            assert node_of(session, address)["failures"] == 1
    assert (await nodes[0].stat())["requests"] == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_closes_as_we_send_fails_no_get(method: str) -> None:
    """The server has closed an idle connection, and the request is on its way already."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        heads.append(await reader.readuntil(b"\r\n\r\n"))

    async with wire(talk) as address, BalancedSession(Static([address])) as session:
        await session.get("/1")
        if method == "POST":
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.post("/2")
        else:
            async with session.get("/2") as response:
                assert outcomes(response) == [Outcome.FAULT, Outcome.SUCCESS]
        assert node_of(session, address)["state"] == "ready"
    assert [head.split()[1] for head in heads] == ([b"/1", b"/2", b"/2"] if method == "GET" else [b"/1", b"/2"])


async def test_servers_may_close_idle_connections(nodes: list[Backend]) -> None:
    async with BalancedSession(Static([nodes[0].address])) as session:
        for _ in range(20):
            await asyncio.gather(*(session.get("/ping") for _ in range(3)), nodes[0].close_idle())


async def test_attempts_tell_what_was_tried(nodes: list[Backend], unused_address: str) -> None:
    good = nodes[0].address
    async with local(drop) as dropper:
        services = Static([unused_address, dropper.address, good])
        async with BalancedSession(services, policy=Prefer(unused_address, dropper.address)) as session:
            began = time.monotonic()
            async with session.get("/slow?ms=20") as response:
                took = time.monotonic() - began
                refused, dropped, answered = attempts(response)
    assert [a.endpoint.address for a in (refused, dropped, answered)] == [unused_address, dropper.address, good]
    assert refused.error.startswith("ClientConnectorError: ")
    assert dropped.error.startswith("ServerDisconnectedError: ")
    assert answered.error == ""
    assert answered.elapsed >= 0.02
    assert refused.elapsed > 0
    # Each has its own time only.
    assert refused.elapsed + dropped.elapsed + answered.elapsed <= took
    assert refused.picked == "Prefer"
    assert answered.picked == f"Prefer, not {unused_address} {dropper.address}"
    assert answered.as_dict()["outcome"] == "success"
    assert str(dropped).startswith(f"{dropper.address}: fault after ")


async def test_the_last_error_is_raised_with_notes_on_the_earlier_ones(unused_address: str) -> None:
    async with AsyncExitStack() as stack:
        one, two = [(await stack.enter_async_context(local(drop))).address for _ in range(2)]
        hole = await stack.enter_async_context(black_hole())
        session = await stack.enter_async_context(
            BalancedSession(Static([one, hole, two]), policy=Prefer(one, hole), connect_timeout=2)
        )
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.get("/x")
    notes = caught.value.__notes__
    assert len(notes) == 2
    assert notes[0].startswith(f"attempt 1: {one}: fault after ")
    assert notes[1].startswith(f"attempt 2: {hole}: connect after ")
    assert "ConnectionTimeoutError" in notes[1]


def pickled(error: Exception) -> Exception:
    copied: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 - it comes from here
    return copied


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
async def test_an_error_can_be_sent_to_another_process(copied: Callable[[Exception], Exception]) -> None:
    """As aiohttp's own can; without the attempts themselves, which belong to this one."""
    async with (
        local(drop) as one,
        local(drop) as two,
        BalancedSession(Static([one.address, two.address])) as session,
    ):
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.get("/x")
        assert len(attempts(caught.value)) == 3
        error = copied(caught.value)
        assert type(error) is aiohttp.ServerDisconnectedError
        assert error.__notes__ == caught.value.__notes__
        assert len(attempts(error)) == 0
