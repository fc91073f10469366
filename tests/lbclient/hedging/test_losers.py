"""What becomes of the attempt that was not the first: its connection, its latency, its blame."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hedging_rig import Observed, Script, Status, balancer_of, counts, hedging_of, no_losers, once, preferring
from rig import (
    Gate,
    Prefer,
    black_hole,
    drop,
    expire_ejection,
    hang,
    in_flight,
    local,
    node_of,
    ok,
    paths,
    until,
    wire,
)

from discovery import Memory
from lbclient import BalancedSession, HealthCheck, Hedge, Outcome, attempts
from lbclient.attempt import Attempt


def body_of(size: int, *, chunked: bool = False, then: asyncio.Event | None = None) -> Any:
    """Answer with so many bytes; half of them at once, and the rest when the event is set."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if not chunked:
            response.content_length = size
        await response.prepare(request)
        await response.write(b"x" * (size // 2))
        if then is not None:
            await then.wait()
        await response.write(b"x" * (size - size // 2))
        await response.write_eof()
        return response

    return answer


async def test_its_connection_is_used_again_after_it_answered() -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        for _ in range(5):
            async with session.get("/x") as response:
                assert len(attempts(response)) == 2
            gate.let()
            await no_losers(session)
            assert in_flight(session) == 0
        assert len(slow.seen) == len(fast.seen) == 5
        assert (slow.connections, fast.connections) == (1, 1)


@pytest.mark.parametrize("chunked", [False, True])
async def test_it_may_take_a_while_for_its_body(chunked: bool) -> None:
    lost, event = asyncio.Event(), asyncio.Event()
    late = Script(once(lost.is_set, body_of(50_000, chunked=chunked, then=event)), ok)
    async with local(late) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.get("/x"):
            pass
        lost.set()
        await until(lambda: node_of(session, slow.address)["latency"] is not None)
        assert in_flight(session) == 1
        event.set()
        await no_losers(session)
        assert in_flight(session) == 0
        async with session.get("/x"):
            pass
        assert slow.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_not_taken_in(chunked: bool) -> None:
    lost = asyncio.Event()
    late = Script(once(lost.is_set, body_of(50_000_000, chunked=chunked)), ok)
    # What says how large it is is not waited for at all.
    linger = Hedge(after=0.01, linger=1 if chunked else 30)
    async with (
        local(late) as slow,
        local() as fast,
        preferring(slow.address, fast.address, hedge=linger) as session,
    ):
        async with session.get("/x"):
            pass
        lost.set()
        await no_losers(session)
        assert in_flight(session) == 0
        assert node_of(session, slow.address)["latency"] is not None
        async with session.get("/x"):
            pass
        assert slow.connections == 2


async def test_it_is_cut_when_its_time_is_over() -> None:
    linger = Hedge(after=0.01, linger=2)
    async with (
        local(hang) as slow,
        local() as fast,
        preferring(slow.address, fast.address, hedge=linger) as session,
    ):
        observed = Observed(session)
        async with session.get("/x"):
            pass
        assert in_flight(session) == 1
        await no_losers(session)
        assert in_flight(session) == 0
        assert observed.outcomes == [(fast.address, Outcome.SUCCESS), (slow.address, Outcome.OURS)]
        async with session.get("/x"):
            pass
        assert (slow.connections, fast.connections) == (2, 1)


async def test_without_linger_it_is_cut_at_once() -> None:
    linger = Hedge(after=0.01, linger=0)
    async with (
        local(hang) as slow,
        local() as fast,
        preferring(slow.address, fast.address, hedge=linger) as session,
    ):
        async with session.get("/x") as response:
            assert [a.outcome for a in attempts(response)] == [Outcome.OURS, Outcome.SUCCESS]
        assert in_flight(session) == 0


async def test_what_was_not_sent_is_not_sent_after_the_answer() -> None:
    async with black_hole() as silent, local() as fast, preferring(silent, fast.address) as session:
        observed = Observed(session)
        async with session.get("/x") as response:
            assert [a.outcome for a in attempts(response)] == [Outcome.OURS, Outcome.SUCCESS]
            assert in_flight(session) <= 1
        await no_losers(session)
        assert observed.of(silent) == [Outcome.OURS]
        assert balancer_of(session).nodes[silent].connect_failures == 0


async def test_what_is_connected_in_the_moment_of_the_answer_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is there, and the task is about to write, when the other attempt wins."""
    async with local() as slow, local() as fast:
        async with preferring(slow.address, fast.address) as session:
            connector = session.client_session.connector
            assert connector is not None
            connect, answered, connected = connector.connect, asyncio.Event(), asyncio.Event()

            async def patched(req: Any, *args: Any, **kwargs: Any) -> Any:
                conn = await connect(req, *args, **kwargs)
                if str(req.url.port) in slow.address:
                    connected.set()
                    try:
                        await answered.wait()
                    except asyncio.CancelledError:
                        return conn  # as if the cancellation had come too late
                return conn

            monkeypatch.setattr(connector, "connect", patched)
            async with session.get("/x") as response:
                assert [a.outcome for a in attempts(response)] == [Outcome.OURS, Outcome.SUCCESS]
            assert connected.is_set()
            await no_losers(session)
        assert len(slow.seen) == 0


@pytest.mark.parametrize("failure", [drop, Status(500), Status(503)])
async def test_it_never_counts_against_its_server(failure: Any) -> None:
    lost = asyncio.Event()
    late = once(lost.is_set, failure)
    async with local(late) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        observed = Observed(session)
        async with session.get("/x"):
            pass
        lost.set()
        await no_losers(session)
        assert observed.of(slow.address) == [Outcome.OURS]
        assert node_of(session, slow.address)["failures"] == 0


async def test_how_long_it_took_is_learned() -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        observed = Observed(session)
        async with session.get("/x"):
            pass
        await asyncio.sleep(0.1)
        assert observed.of(slow.address) == []
        gate.let()
        await no_losers(session)
        assert observed.of(slow.address) == [Outcome.SUCCESS]
        assert node_of(session, slow.address)["latency"] > 0.1


@pytest.mark.parametrize("status", [200, 503])
async def test_its_head_may_say_that_its_server_is_about_to_stop(status: int) -> None:
    gate = asyncio.Event()
    leaving = Status(status, gate, headers=[("X-Draining", "1")])

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        # Checks are to tell nothing here.
        return await (hang if request.path == "/healthz" else leaving)(request)

    check = HealthCheck(path="/healthz", timeout=30, interval=60, draining_header="X-Draining")
    async with (
        local(answer) as slow,
        local(once(lambda: "/x" in paths(slow), ok)) as fast,
        preferring(slow.address, fast.address, health_check=check) as session,
    ):
        async with session.get("/x"):
            pass
        assert node_of(session, slow.address)["state"] == "ready"
        gate.set()
        await no_losers(session)
        # The balancer is told a moment later, of all nodes that changed meanwhile.
        await until(lambda: node_of(session, slow.address)["state"] == "leaving")
        for _ in range(3):
            async with session.get("/next"):
                pass
        assert (paths(slow).count("/next"), paths(fast).count("/next")) == (0, 3)


async def test_its_head_is_shown_to_the_policy_as_of_its_own_time() -> None:
    class Learning(Prefer):
        def __init__(self, *addresses: str) -> None:
            super().__init__(*addresses)
            self.reports: list[tuple[str, str, float]] = []

        def answered(self, node: Any, response: Any, call: Any) -> None:
            self.reports.append((node.address, response.headers["X-Load"], call.now))

    gate = asyncio.Event()
    async with (
        local(Status(200, gate, headers=[("X-Load", "9")])) as slow,
        local(once(lambda: bool(slow.seen), Status(200, headers=[("X-Load", "1")]))) as fast,
    ):
        policy = Learning(slow.address, fast.address)
        async with preferring(slow.address, fast.address, policy=policy) as session:
            async with session.get("/x"):
                pass
            won_at = time.monotonic()
            gate.set()
            await no_losers(session)
        (first, load, _), (second, late_load, at) = policy.reports
        assert [(first, load), (second, late_load)] == [(fast.address, "1"), (slow.address, "9")]
        assert won_at <= at <= time.monotonic()


async def test_how_long_it_took_is_part_of_the_percentile() -> None:
    """One in ten takes long and loses: without these the percentile would know fast answers only."""
    gate = Gate()
    async with local(Script(*[ok] * 100, gate)) as slow, local() as fast:
        hedge = Hedge(percentile=0.95, linger=5)
        async with preferring(slow.address, fast.address, hedge=hedge) as session:
            for _ in range(100):
                async with session.get("/x"):
                    pass
            before = hedging_of(session).delay
            assert before is not None
            hedged = 0
            for _ in range(30):
                async with session.get("/x") as response:
                    hedged += len(attempts(response)) == 2
            assert hedged == 30
            await asyncio.sleep(0.05)
            gate.let(1000)
            await no_losers(session)
            for _ in range(70):
                async with session.get("/x"):
                    pass
            # One may have been late, and have lost as well.
            await no_losers(session)
            delay = hedging_of(session).delay
            assert delay is not None
            assert delay > before
            # One for each request: none for the hedges, and none is left out.
            assert len(hedging_of(session)._latencies._kept) == 200  # type: ignore[union-attr]
            assert delay > 0.05


async def test_how_long_it_was_waited_for_is_part_of_the_percentile_if_it_is_cut() -> None:
    async with (
        local(Script(*[ok] * 100, hang)) as slow,
        local() as fast,
        preferring(slow.address, fast.address, hedge=Hedge(linger=0)) as session,
    ):
        for _ in range(103):
            async with session.get("/x"):
                pass
        await no_losers(session)
        assert len(hedging_of(session)._latencies._kept) == 103  # type: ignore[union-attr]


async def test_close_cuts_it() -> None:
    async with local(hang) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        observed = Observed(session)
        async with session.get("/x"):
            pass
        assert hedging_of(session).as_dict()["lingering"] == 1
        await hedging_of(session).close()
        assert hedging_of(session).as_dict()["lingering"] == 0
        assert in_flight(session) == 0
        assert observed.of(slow.address) == [Outcome.OURS]


async def test_after_close_none_lingers() -> None:
    gate = Gate()
    async with local(hang) as slow, local(gate) as fast, preferring(slow.address, fast.address) as session:
        task = asyncio.ensure_future(session.get("/x")._coro)
        await until(lambda: len(fast.seen) == 1)
        await hedging_of(session).close()
        gate.let()
        assert (await task).status == 200
        assert in_flight(session) <= 1
        await no_losers(session)
        (await task).release()
        assert in_flight(session) == 0


async def test_closing_the_session_closes_its_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with local(hang) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        for _ in range(5):
            async with session.get("/x"):
                pass
        assert hedging_of(session).as_dict()["lingering"] == 5
    gc.collect()
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


async def test_a_node_that_leaves_cuts_it_after_the_drain_timeout() -> None:
    async with local(hang) as slow, local() as fast:
        source = Memory([slow.address, fast.address])
        options: dict[str, Any] = {"hedge": Hedge(after=0.01, linger=30), "drain_timeout": 2}
        async with BalancedSession(source, policy=Prefer(slow.address), **options) as session:
            async with session.get("/x"):
                pass
            source.set([fast.address])
            await until(lambda: [d["address"] for d in session.describe()["draining"]] == [slow.address])
            await until(lambda: session.describe()["draining"] == [])
            await no_losers(session)


async def test_an_answer_of_a_node_that_left_is_still_taken() -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast:
        source = Memory([slow.address, fast.address])
        hedge = Hedge(after=0.01, linger=30)
        async with BalancedSession(source, policy=Prefer(slow.address), hedge=hedge) as session:
            async with session.get("/x") as response:
                pass
            source.set([fast.address])
            gate.let()
            await no_losers(session)
            assert attempts(response)[0].outcome is Outcome.SUCCESS
            assert session.describe()["draining"] == []


async def ejected(session: BalancedSession, address: str) -> None:
    """Have the node ejected, and due for a probe."""
    balancer = balancer_of(session)
    for _ in range(3):
        attempt = Attempt(balancer.nodes[address], "", lambda: None)
        attempt.land()
        balancer.observe(attempt, Outcome.CONNECT, time.monotonic())
    assert node_of(session, address)["state"] == "ejected"
    expire_ejection(session, address)


async def test_a_probe_that_loses_and_answers_brings_its_node_back() -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.get("/first") as response:
            pass
        gate.let()
        await no_losers(session)
        await ejected(session, slow.address)
        async with session.get("/x") as response:
            assert attempts(response)[0].endpoint.address == slow.address
        assert node_of(session, slow.address)["state"] == "probing"
        gate.let()
        await no_losers(session)
        assert node_of(session, slow.address)["state"] == "ready"


async def test_a_probe_that_loses_and_is_cut_lets_the_next_one_begin() -> None:
    hedge = Hedge(after=0.01, linger=0.05)
    async with (
        local(Script(hang, ok)) as slow,
        local() as fast,
        preferring(fast.address, slow.address, hedge=hedge) as session,
    ):
        await session.ready()
        await ejected(session, slow.address)
        async with session.get("/x") as response:
            assert attempts(response)[0].endpoint.address == slow.address
        await no_losers(session)
        assert counts(session) == (1, 1, 0)
        assert node_of(session, slow.address)["state"] == "ejected"
        # Not at once: one that was given up says that the node may be silent.
        expire_ejection(session, slow.address)
        async with session.get("/x") as response:
            assert attempts(response)[0].endpoint.address == slow.address
        await no_losers(session)
        assert node_of(session, slow.address)["state"] == "ready"


async def test_what_is_logged_of_its_failure_has_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    answer = asyncio.Event()

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer.wait()
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await writer.drain()

    caplog.set_level("DEBUG", "lbclient")
    async with wire(garbage) as slow, local() as fast, preferring(slow, fast.address) as session:
        async with session.get("/path?token=hush", headers={"Authorization": "Bearer hush"}) as response:
            assert response.status == 200
        answer.set()
        await no_losers(session)
    assert "ClientResponseError" in caplog.text
    assert "hush" not in caplog.text
