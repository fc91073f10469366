"""Limits of a service, a full queue and throttling, seen from the servers and from those who are refused."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from rig import Gate, crowd, drop, hang, in_flight, local, node_of, ok, paths, until, waiting

from discovery import Static
from lbclient import (
    BalancedSession,
    LBError,
    LimitReached,
    Limits,
    Retry,
    RoundRobin,
    Throttle,
    Throttled,
    attempts,
)


def state(session: BalancedSession) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(session.describe()["services"].values()))
    return found


async def test_a_service_has_its_limit_over_all_nodes() -> None:
    gate = Gate()
    async with (
        local(gate) as one,
        local(gate) as two,
        crowd(
            Static([one.address, two.address]), policy=RoundRobin, limits=Limits(per_node=2, per_service=3)
        ) as requests,
    ):
        await requests.start(*map(str, range(8)))
        await until(lambda: len(one.seen) + len(two.seen) == 3)
        assert (state(requests.session)["in_flight"], waiting(requests.session)) == (3, 5)
        for ended in range(1, 6):
            gate.let()
            await until(lambda ended=ended: len(one.seen) + len(two.seen) == 3 + ended)
            assert in_flight(requests.session) == 3
        gate.let(3)
        await asyncio.gather(*requests.tasks)
        assert state(requests.session)["in_flight"] == 0


async def test_a_slot_of_the_service_is_taken_until_the_end_of_the_body() -> None:
    end = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await end.wait()
        return response

    async with (
        local(slow) as server,
        crowd(Static([server.address]), limits=Limits(per_service=1)) as requests,
    ):
        response = await requests.session.get("/body")
        server.answer = ok
        await requests.start("/next")
        assert (state(requests.session)["in_flight"], waiting(requests.session)) == (1, 1)
        end.set()
        assert await response.read() == b"first"
        await requests.tasks[0]


async def test_failures_and_retries_leave_no_slot_taken() -> None:
    async with local(drop) as one, local(drop) as two:
        limits, retry = Limits(per_service=1), Retry(attempts=3, backoff=0.001, backoff_cap=0.001)
        async with crowd(Static([one.address, two.address]), limits=limits, retry=retry) as requests:
            results = await asyncio.gather(*(requests.get("/") for _ in range(20)), return_exceptions=True)
            assert {len(attempts(result)) for result in results if isinstance(result, Exception)} == {3}
            assert state(requests.session)["in_flight"] == waiting(requests.session) == 0
            one.answer = two.answer = ok
            await requests.get("/")


async def test_too_many_are_refused_at_once_and_told_what_to_change() -> None:
    async with (
        local(hang) as server,
        crowd(Static([server.address]), name="users", limits=Limits(per_node=2, waiting=3)) as requests,
    ):
        await requests.start(*map(str, range(5)))
        with pytest.raises(LimitReached) as caught:
            await requests.get("/refused")
        assert str(caught.value) == (
            "service 'users': 3 requests wait already, which is what Limits.waiting allows; 2 attempts are in "
            "flight, with per_node=2 at 1 usable nodes and per_service=0 (0: no limit)"
        )
        assert isinstance(caught.value, LBError)
        assert attempts(caught.value) == ()
        assert state(requests.session)["limits_reached"] == {"full": 1, "expired": 0}
        assert len(server.seen) == 2


async def test_who_waits_too_long_is_no_nodes_fault() -> None:
    async with (
        local(hang) as server,
        crowd(Static([server.address]), limits=Limits(per_node=1, wait=0.05)) as requests,
    ):
        await requests.start("/held")
        with pytest.raises(LimitReached, match=r"no slot came free within the 0\.05 s that Limits.wait allows"):
            await requests.get("/late")
        node = node_of(requests.session, server.address)
        assert (node["failures"], node["requests"], node["state"]) == (0, 1, "ready")
        assert state(requests.session)["limits_reached"] == {"full": 0, "expired": 1}
        assert paths(server) == ["/held"]


async def test_what_the_servers_refuse_is_refused_here_before_an_attempt() -> None:
    async def overloaded(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "100"})

    async with local(overloaded) as server:
        source, throttle = Static([server.address]), Throttle(window=1000)
        async with BalancedSession(source, name="users", throttle=throttle, retry=Retry(attempts=1)) as session:
            refused: list[Throttled] = []
            for _ in range(300):
                try:
                    async with session.get("/"):
                        pass
                except Throttled as error:
                    refused.append(error)
            assert len(server.seen) + len(refused) == 300
            assert len(server.seen) < 60
            assert attempts(refused[-1]) == ()
            assert re.fullmatch(
                r"service 'users': not sent, since of \d+ requests within 1000 s only 0 were accepted; "
                r"99\.\d% are refused here, see Throttle\(k=2\)",
                str(refused[-1]),
            )
            told = state(session)["throttle"]
            assert (told["refused"], told["requests"], told["accepts"]) == (len(refused), 300, 0)
            assert node_of(session, server.address)["requests"] == len(server.seen)


async def test_cancelled_requests_throttle_nothing() -> None:
    async with (
        local(hang) as server,
        crowd(Static([server.address]), throttle=Throttle()) as requests,
    ):
        for n in range(20):
            await requests.start(f"/{n}")
            requests.tasks[-1].cancel()
            await asyncio.wait(requests.tasks[-1:])
        assert state(requests.session)["throttle"]["requests"] == 0


async def test_a_body_that_breaks_off_counts_once_as_accepted() -> None:
    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"half")
        return await drop(request)

    async with (
        local(half) as server,
        BalancedSession(Static([server.address]), throttle=Throttle(window=1000)) as session,
    ):
        for _ in range(3):
            async with session.get("/") as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
        told = state(session)["throttle"]
        assert (told["requests"], told["accepts"]) == (3, 3)
