"""One deadline for all attempts and hops: who is to blame if it is missed, and what the servers are told of it."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise

import aiohttp
import pytest
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, web
from rig import (
    Answer,
    Crowd,
    Local,
    Prefer,
    drop,
    hang,
    in_flight,
    local,
    node_of,
    ok,
    until,
    wire,
)

from discovery import Memory, Static
from lbclient import BalancedSession, BalancingMiddleware, Limits, Outcome, Retry, attempts

HEADER = "X-Deadline-Ms"


def outcomes(result: aiohttp.ClientResponse | BaseException) -> list[Outcome | None]:
    return [attempt.outcome for attempt in attempts(result)]


def told(server: Local) -> list[int]:
    """The milliseconds that each request had left."""
    return [int(seen.headers[HEADER]) for seen in server.seen]


def slow(seconds: float, then: Answer) -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request)

    return answer


def redirect(location: str) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": location})

    return answer


async def test_the_time_of_an_earlier_attempt_is_not_the_next_ones_fault() -> None:
    """It had less than half of the whole, however silent it was."""
    async with local(slow(2.2, drop)) as one, local(hang) as two:
        services = Static([one.address, two.address])
        retry = Retry(backoff=0)
        async with BalancedSession(services, policy=Prefer(one.address), retry=retry) as session:
            with pytest.raises(TimeoutError) as caught:
                await session.get("/x", timeout=4.2)
            assert outcomes(caught.value) == [Outcome.FAULT, Outcome.OURS]
            assert node_of(session, two.address)["failures"] == 0


async def test_the_time_of_a_hop_to_another_host_counts() -> None:
    async with local() as server, local(slow(0.2, redirect("http://users/y"))) as elsewhere:
        services = {"users": Static([server.address])}
        async with (
            BalancedSession(services, deadline_header=HEADER) as session,
            session.get(f"http://{elsewhere.address}/x", timeout=30) as response,
        ):
            assert response.status == 200
        assert 0 < told(server)[0] <= 29_800


async def test_the_time_of_middlewares_counts() -> None:
    """No pause is begun that would outlast the deadline: the last answer is returned."""

    async def outside(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        await asyncio.sleep(0.3)
        return await handler(req)

    async def busy(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "30"})

    async with (
        local(busy) as server,
        BalancedSession(Static([server.address]), middlewares=(outside,), deadline_header=HEADER) as session,
        session.get("/x", timeout=30.2) as response,
    ):
        assert response.status == 503
        assert 0 < told(server)[0] <= 29_900


@pytest.mark.parametrize(("first", "outcome"), [(2.2, Outcome.OURS), (0.0, Outcome.TIMEOUT)])
async def test_the_time_of_an_earlier_hop_is_not_the_next_ones_fault(first: float, outcome: Outcome) -> None:
    async with local(slow(first, redirect("http://two/y"))) as one, local(hang) as two:
        services = {"one": Static([one.address]), "two": Static([two.address])}
        async with BalancedSession(services) as session:
            with pytest.raises(TimeoutError) as caught:
                await session.get("http://one/x", timeout=4.2)
            assert outcomes(caught.value) == [outcome]
            assert node_of(session, two.address)["failures"] == (outcome is Outcome.TIMEOUT)


async def test_the_time_in_the_queue_is_not_the_nodes_fault() -> None:
    async with (
        local(hang) as server,
        BalancedSession(Static([server.address]), limits=Limits(per_node=1)) as session,
    ):
        crowd = Crowd(session)
        await crowd.start("/1")
        asking = asyncio.create_task(session.get("/2", timeout=4.2)._coro)
        await asyncio.sleep(2.2)
        await crowd.stop()
        with pytest.raises(TimeoutError) as caught:
            await asking
        assert outcomes(caught.value) == [Outcome.OURS]
        assert [seen.target for seen in server.seen] == ["/1", "/2"]
        assert node_of(session, server.address)["failures"] == 0


async def test_a_body_that_the_caller_makes_slowly_is_not_the_nodes_fault() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async with local() as server, BalancedSession(Static([server.address])) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.post("/x", data=body(), timeout=2.5)
        assert outcomes(caught.value) == [Outcome.OURS]


@pytest.mark.parametrize("size", [0, 1, 30_000_000])
async def test_a_server_that_takes_no_body_or_answers_none_is_to_blame(size: int) -> None:
    async def unread(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with wire(unread) as address, BalancedSession(Static([address])) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.put("/x", data=io.BytesIO(b"x" * size), timeout=4)
        assert outcomes(caught.value) == [Outcome.TIMEOUT]
        assert node_of(session, address)["failures"] == 1
        assert in_flight(session) == 0


@pytest.mark.parametrize("total", [0.01, 100])
async def test_a_session_of_somebody_else_blames_by_no_number(total: float) -> None:
    """The time-out of a single request cannot be seen there, and the session's may be a wrong one."""
    async with (
        local(hang) as server,
        BalancingMiddleware({"users": Static([server.address])}, deadline_header=HEADER) as lb,
        aiohttp.ClientSession(middlewares=(lb,), timeout=aiohttp.ClientTimeout(total=total)) as session,
    ):
        with pytest.raises(TimeoutError) as caught:
            await session.get("http://users/x", timeout=aiohttp.ClientTimeout(total=2.5))
        assert outcomes(caught.value) == [Outcome.OURS]
        assert HEADER not in server.seen[0].headers


async def test_redirects_do_not_extend_the_deadline() -> None:
    """Attempts, pauses and hops share one: the servers see it shrink, and the chain ends with it."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        if len(server.seen) % 2:
            return web.Response(status=503)
        return web.Response(status=302, headers={"Location": f"/{len(server.seen)}"})

    async with (
        local(answer) as server,
        BalancedSession(Static([server.address]), deadline_header=HEADER, retry=Retry(backoff=0.01)) as session,
    ):
        # If no time is left for a pause the chain ends with the answer before it.
        with suppress(TimeoutError):
            async with session.get("/0", timeout=4, max_redirects=100) as response:
                assert response.status == 503
    left = told(server)
    assert left[0] <= 4000
    assert all(later <= earlier - 298 for earlier, later in pairwise(left))
    assert 2 <= len(left) <= 14


async def test_servers_are_told_the_time_that_is_left_anew_in_each_attempt() -> None:
    began = time.monotonic()
    async with local(slow(0.05, drop)) as bad, local() as good:
        services = Static([bad.address, good.address])
        async with (
            BalancedSession(
                services, policy=Prefer(bad.address), deadline_header=HEADER, retry=Retry(backoff=0)
            ) as session,
            session.get("/x", timeout=70) as response,
        ):
            assert HEADER not in response.request_info.headers
    (first,), (second,) = told(bad), told(good)
    took = 1000 * (time.monotonic() - began)
    assert first <= 70_000
    assert 70_000 - took - 1 <= second <= first - 50


async def test_there_is_no_header_without_a_deadline_and_for_other_hosts() -> None:
    async with local() as server, local() as other:
        services = {"users": Static([server.address]), "quiet": Static([server.address])}
        async with BalancedSession(services, deadline_header={"users": HEADER}) as session:
            await session.get("http://users/x", timeout=None)
            await session.get("http://quiet/x")
            await session.get(f"http://{other.address}/x")
            await session.get("http://users/x")
        assert [HEADER in seen.headers for seen in (*server.seen, *other.seen)] == [False, False, True, False]


async def test_a_redirect_to_another_host_takes_no_header_along() -> None:
    async with local() as other, local(redirect(f"http://{other.address}/y")) as server:
        async with BalancedSession(Static([server.address]), deadline_header=HEADER) as session:
            await session.get("/x")
        assert HEADER in server.seen[0].headers
        assert HEADER not in other.seen[0].headers


async def test_the_callers_own_header_wins() -> None:
    """Whoever passes on what it was told itself knows better."""
    async with local(drop) as bad, local() as good:
        services = Static([bad.address, good.address])
        async with (
            BalancedSession(services, policy=Prefer(bad.address), deadline_header=HEADER) as session,
            session.get("/x", headers={HEADER.lower(): "17"}) as response,
        ):
            assert response.request_info.headers[HEADER] == "17"
        assert told(bad) == told(good) == [17]
        assert len(good.seen[0].headers.getall(HEADER)) == 1


async def test_the_request_is_given_back_without_the_header() -> None:
    """A middleware outside sees it as it was, whatever the end."""
    seen: list[bool] = []

    async def outer(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        for _ in range(2):
            try:
                response = await handler(req)
            finally:
                seen.append(HEADER in req.headers)
        return response

    async with (
        local() as server,
        BalancedSession(Static([server.address]), deadline_header=HEADER, middlewares=(outer,)) as session,
    ):
        began = time.monotonic()
        await session.get("/x", timeout=90)
        assert seen == [False, False]
        took = 1000 * (time.monotonic() - began)
        assert all(90_000 - took - 1 <= left <= 90_000 for left in told(server))
    async with BalancedSession(
        Static([server.address]), deadline_header=HEADER, middlewares=(outer,), retry=Retry(attempts=1)
    ) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/x")
    assert seen == [False] * 3


async def test_an_attempts_own_deadline_is_a_fault_and_the_others_still_have_time() -> None:
    async with local(hang) as one, local(hang) as two, local(ok) as three:
        services = Static([one.address, two.address, three.address])
        async with (
            BalancedSession(
                services,
                policy=Prefer(one.address, two.address),
                attempt_timeout=3,
                deadline_header=HEADER,
                retry=Retry(backoff=0),
            ) as session,
            session.get("/x", timeout=30) as response,
        ):
            assert outcomes(response) == [Outcome.FAULT, Outcome.FAULT, Outcome.SUCCESS]
            assert told(one)[0] - 3000 >= told(two)[0] >= told(three)[0] + 3000
            await until(lambda: in_flight(session) == 0)


async def test_a_deadline_that_passes_in_the_queue_tells_of_the_attempts_and_the_queue() -> None:
    """In a session of somebody else, where it is not known before: no body can be read any more then."""

    async def overloaded(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503)

    async with local(overloaded) as bad, local(hang) as full:
        source, policy = Static([full.address, bad.address]), Prefer(full.address)
        async with (
            BalancingMiddleware({"users": source}, policy=policy, limits=Limits(per_node=1)) as lb,
            aiohttp.ClientSession(middlewares=(lb,)) as session,
        ):
            held = asyncio.ensure_future(session.get("http://users/held")._coro)
            await until(lambda: len(full.seen) == 1)
            with pytest.raises(TimeoutError) as caught:
                await session.get("http://users/x", timeout=aiohttp.ClientTimeout(total=2.5))
            assert [attempt.endpoint.address for attempt in attempts(caught.value)] == [bad.address]
            slot, first = caught.value.__notes__
            assert slot == "service 'users': waited for a slot; 1 attempts are in flight"
            assert "status 503" in first
            assert lb.describe()["services"]["users"]["waiting"] == 0
            held.cancel()


async def test_a_deadline_that_passes_before_anything_is_known_tells_of_discovery() -> None:
    registry = Memory()
    registry.fail()
    async with BalancedSession(registry, name="users") as session:
        with pytest.raises(TimeoutError) as caught:
            await session.get("/x", timeout=2.5)
    assert "service 'users' has no endpoint after waiting " in caught.value.__notes__[0]
    assert "discovery (" in caught.value.__notes__[0]
