"""A further attempt that cannot begin, for a reason that is no server's, does not hide what the servers said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import Stopwatch
from rig import (
    Answer,
    Gate,
    Local,
    Prefer,
    crowd,
    drop,
    hang,
    in_flight,
    local,
    node_of,
    ok,
    paths,
    until,
    waiting,
)

from discovery import Memory, Static
from lbclient import BalancedSession, Limits, Outcome, Retry, RoundRobin, Routing, Throttle, Throttled, attempts

AT_ONCE = Retry(backoff=0)


async def busy(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=503, text="busy")


def slowly(rest: asyncio.Event) -> Answer:
    """Answer 503, with a body whose second half comes later."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        await response.prepare(_)
        await response.write(b"bu")
        await rest.wait()
        await response.write(b"sy")
        return response

    return answer


def once(first: Answer, then: Answer = ok) -> Answer:
    asked: list[None] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(None)
        return await (first if len(asked) == 1 else then)(request)

    return answer


def reason(result: aiohttp.ClientResponse | BaseException) -> str:
    """Why there was no further attempt, as the last one has it."""
    return attempts(result)[-1].error.partition("; not tried again: ")[2]


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(per_node=1, waiting=0), "LimitReached: service 'service': 0 requests wait already"),
        (Limits(per_node=1, wait=0.05), "LimitReached: service 'service': no slot came free within the 0.05 s"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_is_returned_if_no_slot_is_free_for_the_next_attempt(
    limits: Limits, why: str, whole: bool
) -> None:
    rest = asyncio.Event()
    async with local(hang) as full, local(busy if whole else slowly(rest)) as bad:
        source = Static([full.address, bad.address])
        async with crowd(source, policy=Prefer(full.address), limits=limits, retry=AT_ONCE) as requests:
            await requests.start("/held")
            async with requests.session.get("/x") as response:
                assert response.status == 503
                assert in_flight(requests.session) == (1 if whole else 2)
                # To wait while it has a slot itself would not do.
                assert reason(response).startswith(why if whole else "no slot is free")
                rest.set()
                assert await response.text() == "busy"
            assert [attempt.endpoint.address for attempt in attempts(response)] == [bad.address]
            assert in_flight(requests.session) == 1
            assert node_of(requests.session, bad.address)["failures"] == 1
            assert requests.session.describe()["services"]["service"]["budget"]["retries"] == 0
        assert (paths(full), paths(bad)) == (["/held"], ["/x"])


@pytest.mark.parametrize("limits", [Limits(per_node=1), Limits(per_service=1), Limits(per_node=1, waiting=0)])
async def test_the_next_attempt_may_have_the_slot_of_the_answer_that_it_replaces(limits: Limits) -> None:
    """The only one there is: to wait for it would be to wait for itself."""
    async with local(once(slowly(asyncio.Event()))) as server:
        async with BalancedSession(Static([server.address]), limits=limits, retry=AT_ONCE) as session:
            async with session.get("/x", timeout=30) as response:
                assert [a.outcome for a in attempts(response)] == [Outcome.GATEWAY, Outcome.SUCCESS]
                assert await response.text() == "ok"
            assert in_flight(session) == 0
            state = session.describe()["services"]["service"]
            assert (state["in_flight"], state["waiting"]) == (0, 0)
        assert len(server.seen) == 2


async def test_an_answer_whose_rest_takes_a_slot_is_not_passed_by_those_who_wait() -> None:
    rest, gate = asyncio.Event(), Gate()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/next":
            return await ok(request)
        await gate(request)
        return await slowly(rest)(request)

    async with (
        local(answer) as server,
        crowd(Static([server.address]), limits=Limits(per_node=1), retry=AT_ONCE) as requests,
    ):
        first = asyncio.ensure_future(requests.session.get("/x")._coro)
        await until(lambda: len(server.seen) == 1)
        await requests.start("/next")
        gate.let()
        response = await first
        assert (response.status, waiting(requests.session)) == (503, 1)
        rest.set()
        assert await response.text() == "busy"
        assert await requests.tasks[0] == [server.address]
        assert paths(server) == ["/x", "/next"]


async def test_an_error_is_raised_with_the_reason_as_a_note() -> None:
    async with local(hang) as full, local(drop) as other:
        source, limits = Static([full.address, other.address]), Limits(per_node=1, waiting=0)
        async with crowd(source, policy=Prefer(full.address), limits=limits, retry=AT_ONCE) as requests:
            await requests.start("/held")
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await requests.get("/x")
            (note,) = caught.value.__notes__
            assert note.startswith("not tried again: LimitReached: service 'service': 0 requests wait already")
            assert [attempt.endpoint.address for attempt in attempts(caught.value)] == [other.address]
        assert (paths(full), paths(other)) == (["/held"], ["/x"])


@pytest.mark.parametrize("answer", [busy, drop])
async def test_the_wait_for_a_slot_ends_at_the_deadline(answer: Answer) -> None:
    async with local(hang) as full, local(answer) as other:
        source, limits = Static([full.address, other.address]), Limits(per_node=1, wait=None)
        async with crowd(source, policy=Prefer(full.address), limits=limits, retry=AT_ONCE) as requests:
            await requests.start("/held")
            began = time.monotonic()
            with Stopwatch() as watch:
                if answer is busy:
                    async with requests.session.get("/x", timeout=2.5) as response:
                        assert await response.text() == "busy"
                        assert reason(response) == "no slot is free"
                else:
                    with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                        await requests.session.get("/x", timeout=2.5)
                    assert caught.value.__notes__ == ["not tried again: no slot is free"]
            assert time.monotonic() - began > 2.45
            assert watch.seconds < 4.3
            assert waiting(requests.session) == 0
        assert paths(other) == ["/x"]


async def test_whoever_gives_up_the_wait_is_cancelled_all_the_same() -> None:
    async with local(hang) as full, local(busy) as other:
        source, limits = Static([full.address, other.address]), Limits(per_node=1, wait=None)
        async with crowd(source, policy=Prefer(full.address), limits=limits, retry=AT_ONCE) as requests:
            await requests.start("/held")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await requests.session.get("/x")
            assert (waiting(requests.session), in_flight(requests.session)) == (0, 1)


def with_all_gone(source: Memory) -> Callable[[Answer], Answer]:
    def then(answer: Answer) -> Answer:
        async def last(request: web.BaseRequest) -> web.StreamResponse:
            source.set([])
            return await answer(request)

        return last

    return then


@pytest.mark.parametrize("answer", [busy, drop])
async def test_no_endpoint_is_left_for_the_next_attempt(answer: Answer) -> None:
    source = Memory()
    async with local(with_all_gone(source)(answer)) as server:
        source.set([server.address])
        retry = Retry(backoff=0.05)
        async with BalancedSession(source, retry=retry, on_empty="accept") as session:
            if answer is busy:
                async with session.get("/x") as response:
                    assert await response.text() == "busy"
                    assert reason(response).startswith("NoEndpoints: service 'service' has no endpoint: 0 known")
            else:
                with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                    await session.get("/x")
                assert caught.value.__notes__[0].startswith("not tried again: NoEndpoints: service 'service'")
            assert in_flight(session) == 0
        assert paths(server) == ["/x"]


async def test_a_service_that_fails_fast_returns_what_it_has() -> None:
    """The only node is found ill meanwhile, and in this panic there is none then."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        balancer = session._balancing._services["service"].balancer
        for node in balancer.nodes.values():
            node.mark(healthy=False)
        balancer._regroup(time.monotonic())
        return await busy(request)

    async with (
        local(answer) as server,
        BalancedSession(Static([server.address]), retry=AT_ONCE, routing=Routing(panic="fail")) as session,
    ):
        async with session.get("/x") as response:
            assert await response.text() == "busy"
            assert reason(response).startswith("NoEndpoints")
        assert paths(server) == ["/x"]


@pytest.mark.parametrize("answer", [busy, drop])
async def test_a_session_that_is_closed_meanwhile_returns_what_it_has(answer: Answer) -> None:
    async with local(hang) as full, local(answer) as other:
        source = Static([full.address, other.address])
        async with crowd(
            source, policy=Prefer(full.address), limits=Limits(per_node=1), retry=AT_ONCE
        ) as requests:
            await requests.start("/held")
            request = asyncio.ensure_future(requests.session.get("/x")._coro)
            await until(lambda: waiting(requests.session) == 1)
            await requests.session.close(drain=0.02)
            if answer is busy:
                response = await request
                assert await response.text() == "busy"
                assert reason(response) == "SessionClosing: service 'service' is closed"
            else:
                with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                    await request
                assert caught.value.__notes__ == ["not tried again: SessionClosing: service 'service' is closed"]
        assert paths(other) == ["/x"]


async def test_a_throttle_that_begins_to_refuse_refuses_no_further_attempt() -> None:
    """Whoever was let in has the attempts that the budget allows."""
    async with local(busy) as server:
        throttle = Throttle(window=1000)
        async with BalancedSession(Static([server.address]), retry=AT_ONCE, throttle=throttle) as session:
            meter: Any = session._balancing._services["service"]._meter
            for _ in range(100_000):
                meter.observe(Outcome.GATEWAY, time.monotonic())
            async with session.get("/x") as response:
                assert len(attempts(response)) == 3
            with pytest.raises(Throttled):
                await session.get("/next")
        assert paths(server) == ["/x"] * 3


async def test_cancelled_in_the_pause_the_rest_of_the_answer_is_given_up() -> None:
    retry = Retry(backoff=600, backoff_cap=600)
    async with (
        local(slowly(asyncio.Event())) as server,
        BalancedSession(Static([server.address]), retry=retry, timeout=None) as session,
    ):
        request = asyncio.ensure_future(session.get("/x")._coro)
        await until(lambda: bool(server.seen) and node_of(session, server.address)["failures"] == 1)
        assert in_flight(session) == 1
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert in_flight(session) == 0
        assert session.client_session.connector is not None
        assert not session.client_session.connector._acquired


async def test_a_policy_that_raises_at_the_next_attempt_leaves_nothing_behind() -> None:
    class Moody(RoundRobin):
        def pick(self, nodes: Any, call: Any) -> Any:
            if server.seen:
                raise RuntimeError("moody")
            return super().pick(nodes, call)

    server: Local
    async with (
        local(slowly(asyncio.Event())) as server,
        BalancedSession(Static([server.address]), policy=Moody, retry=AT_ONCE) as session,
    ):
        with pytest.raises(RuntimeError, match="moody"):
            await session.get("/x")
        assert in_flight(session) == 0
        assert session.client_session.connector is not None
        assert not session.client_session.connector._acquired
