"""Callers that give up during a race, deadlines, and what is left over then: nothing."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiohttp import ClientTimeout, TraceConfig, web
from hedging_rig import Observed, balancer_of, hedging_of, no_losers, once, preferring, when
from rig import Gate, black_hole, drop, hang, in_flight, local, ok, until, wire

from discovery import Static
from lbclient import BalancedSession, Budget, Hedge, Outcome, Retry, attempts


async def test_a_caller_that_gives_up_ends_both() -> None:
    async with local(hang) as first, local(hang) as second, preferring(first.address, second.address) as session:
        observed = Observed(session)
        task = asyncio.ensure_future(session.get("/x")._coro)
        await until(lambda: len(second.seen) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert in_flight(session) == 0
        assert sorted(observed.outcomes) == sorted([(first.address, Outcome.OURS), (second.address, Outcome.OURS)])
        assert [a.outcome for a in attempts(caught.value)] in ([], [Outcome.OURS, Outcome.OURS])
        await no_losers(session)


async def test_a_caller_that_gives_up_before_the_hedge_ends_the_first() -> None:
    hedge = Hedge(after=10)
    async with local(hang) as first, local(hang) as second:
        async with preferring(first.address, second.address, hedge=hedge) as session:
            observed = Observed(session)
            task = asyncio.ensure_future(session.get("/x")._coro)
            await until(lambda: len(first.seen) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert in_flight(session) == 0
            assert observed.outcomes == [(first.address, Outcome.OURS)]
            await no_losers(session)
        assert len(second.seen) == 0


async def test_after_the_first_failed_the_one_that_is_left_is_given_up() -> None:
    async with (
        local(once(lambda: bool(second.seen), drop)) as first,
        local(hang) as second,
        preferring(first.address, second.address) as session,
    ):
        observed = Observed(session)
        task = asyncio.ensure_future(session.get("/x")._coro)
        await until(lambda: len(observed.outcomes) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert observed.outcomes == [(first.address, Outcome.FAULT), (second.address, Outcome.OURS)]
        assert in_flight(session) == 0


async def test_the_deadline_ends_both() -> None:
    async with local(hang) as first, local(hang) as second:
        nodes = first.address, second.address
        async with preferring(*nodes, timeout=5, hedge=Hedge(after=3)) as session:
            observed = Observed(session)
            with pytest.raises(TimeoutError) as caught:
                await session.get("/x")
            assert [a.endpoint.address for a in attempts(caught.value)] == list(nodes)
            # As without a hedge: a node that was silent for most of the time is why the deadline was missed.
            assert observed.of(first.address) == [Outcome.TIMEOUT]
            assert observed.of(second.address) == [Outcome.OURS]
            assert in_flight(session) == 0
            await no_losers(session)


async def test_a_deadline_while_both_connect_blames_nobody() -> None:
    async with black_hole() as first, black_hole() as second:
        timeout = ClientTimeout(total=2.5, sock_connect=30)
        async with preferring(first, second, timeout=timeout) as session:
            observed = Observed(session)
            with pytest.raises(TimeoutError):
                await session.get("/x")
            assert {outcome for _, outcome in observed.outcomes} == {Outcome.OURS}
            assert len(observed.outcomes) == 2
            assert in_flight(session) == 0


async def test_an_attempt_that_times_out_is_a_failure_of_its_own() -> None:
    gate = Gate()
    async with local(hang) as first, local(gate) as second:
        options: dict[str, Any] = {"attempt_timeout": 3, "hedge": Hedge(after=2)}
        async with preferring(first.address, second.address, **options) as session:
            observed = Observed(session)
            done = when(lambda: bool(observed.of(first.address)), gate.let)
            async with done, session.get("/x") as response:
                assert [a.outcome for a in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
            assert observed.of(first.address) == [Outcome.FAULT]


async def test_the_callers_deadline_holds_for_the_body_while_a_loser_lingers() -> None:
    """Aiohttp's timer keeps the tasks that wait in a stack: a loser in it would take the caller's place."""
    event = asyncio.Event()

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 10
        await response.prepare(request)
        await response.write(b"x")
        await event.wait()
        return response

    async with (
        local(hang) as slow,
        local(half) as fast,
        preferring(slow.address, fast.address, timeout=2.5) as session,
    ):
        with pytest.raises(TimeoutError):
            async with session.get("/x") as response:
                await response.read()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        event.set()
        assert hedging_of(session).as_dict()["lingering"] == 1


async def test_the_callers_deadline_cancels_nobody_who_does_not_wait_for_it() -> None:
    """The same stack: the caller would stay in it, and be cancelled in whatever it does."""

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 10
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    async with (
        local(hang) as slow,
        local(half) as fast,
        preferring(slow.address, fast.address, timeout=2.5) as session,
        session.get("/x") as response,
    ):
        await asyncio.sleep(2.7)
        with pytest.raises(TimeoutError):
            await response.read()


async def test_a_loser_outlives_the_deadline_of_its_request() -> None:
    gate = Gate()
    async with (
        local(gate) as slow,
        local() as fast,
        preferring(slow.address, fast.address, timeout=2.5, hedge=Hedge(after=0.01, linger=30)) as session,
    ):
        async with session.get("/x") as response:
            await response.read()
        await asyncio.sleep(2.55)
        gate.let()
        await no_losers(session)
        assert attempts(response)[0].outcome is Outcome.SUCCESS
        assert slow.connections == 1


async def test_shutting_the_loop_down_leaves_nothing() -> None:
    """`asyncio.run` cancels all tasks, also those that had no step yet."""
    async with local(hang) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        observed = Observed(session)
        before = asyncio.all_tasks()
        async with session.get("/x"):
            pass
        for task in asyncio.all_tasks() - before:
            if "linger" in repr(task) or "_send" in repr(task):
                task.cancel()
        await no_losers(session)
        assert in_flight(session) == 0
        assert observed.of(slow.address) == [Outcome.OURS]


async def test_tracing_ends_with_the_request() -> None:
    events: list[str] = []
    config = TraceConfig()
    for event in ("request_start", "request_end", "request_headers_sent", "request_chunk_sent"):

        def record(*_: Any, event: str = event) -> Any:
            events.append(event)
            return asyncio.sleep(0)

        getattr(config, f"on_{event}").append(record)
    event = asyncio.Event()
    bodies: list[bytes] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await event.wait()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        bodies.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with (
        wire(late) as slow,
        local() as fast,
        preferring(slow, fast.address, trace_configs=[config]) as session,
    ):
        async with session.put("/x", data=b"body", expect100=True) as response:
            pass
        assert events.count("request_headers_sent") == 2
        assert events.count("request_chunk_sent") == 1
        assert (events[0], events[-1]) == ("request_start", "request_end")
        seen = list(events)
        event.set()
        await no_losers(session)
        assert bodies == [b"body"]
        assert attempts(response)[0].outcome is Outcome.SUCCESS
        assert events == seen


async def test_what_the_caller_sees_of_a_race_is_the_answer_only() -> None:
    """Request and response are as without hedging, for middlewares outside as well."""
    seen: list[Any] = []

    async def outside(req: Any, handler: Any) -> Any:
        before = dict(vars(req)), list(req.headers.items())
        response = await handler(req)
        seen.append((before, (dict(vars(req)), list(req.headers.items()))))
        return response

    async with (
        local(hang) as slow,
        local() as fast,
        preferring(slow.address, fast.address, middlewares=(outside,), deadline_header="X-Left") as session,
    ):
        async with session.put("/x", data=b"body"):
            pass
        before, after = seen[0]
        assert before == after


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_when_nothing_is_left_over(seed: int) -> None:
    """Random delays and failures at the servers, and callers that give up at random moments."""
    rng = random.Random(seed)

    async def moody(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(rng.choice([0, 0, 0.01, 0.02, 0.05]))
        return await rng.choice([ok, ok, ok, drop])(request)

    async with local(moody) as a, local(moody) as b, local(moody) as c:
        nodes = [a.address, b.address, c.address]
        budget = Budget(share=1.0, per_second=1000.0)
        options: dict[str, Any] = {
            "hedge": Hedge(after=0.01, linger=0.03),
            "retry": Retry(budget=budget, backoff=0.001),
        }
        async with BalancedSession(Static(nodes), **options) as session:
            observed = Observed(session)
            made: list[Any] = []
            balancer = balancer_of(session)
            pick = balancer.pick
            balancer.pick = lambda call: made.append(1) or pick(call)  # type: ignore[method-assign, func-returns-value]

            async def one() -> None:
                try:
                    async with asyncio.timeout(rng.choice([0.005, 0.01, 0.015, 0.03, 1])):
                        async with session.get("/x") as response:
                            await response.read()
                except Exception:  # noqa: BLE001, S110 - what comes of it does not matter here
                    pass

            for _ in range(10):
                await asyncio.gather(*(one() for _ in range(20)))
            await no_losers(session)
            assert in_flight(session) == 0
            assert hedging_of(session).sent > 10
            # Each attempt is told of exactly once.
            assert len(observed.outcomes) == len(made)
        assert all(server.seen for server in (a, b, c))
