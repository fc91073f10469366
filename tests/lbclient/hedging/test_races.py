"""Which requests are hedged, where to, and whose answer is taken, as the servers see it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from hedging_rig import SOON, Observed, Script, Status, counts, no_losers, once, preferring, when
from rig import Gate, Local, Prefer, drop, hang, in_flight, local, ok, until

from discovery import Memory, Static
from lbclient import BalancedSession, Budget, Hedge, Limits, Outcome, Retry, attempts


def fails_later(first: Callable[[], Local], hedge: Callable[[], Local]) -> Any:
    """Close the connection to the first without an answer, but not before the hedge has arrived."""
    return once(lambda: len(hedge().seen) >= len(first().seen), drop)


async def test_the_second_node_answers_when_the_first_takes_long() -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.get("/x?a=1") as response:
            assert await response.text() == "ok"
            assert str(response.url) == "http://service/x?a=1"
            first, hedge = attempts(response)
            assert first.endpoint.address == slow.address
            assert first.outcome is Outcome.OURS
            assert "answered first" in first.error
            assert hedge.endpoint.address == fast.address
            assert hedge.outcome is Outcome.SUCCESS
            assert hedge.picked.startswith("hedge after 10 ms, Prefer")
        assert counts(session) == (1, 1, 0)
        gate.let()
        await no_losers(session)
        assert len(slow.seen) == len(fast.seen) == 1
        assert first.outcome is Outcome.SUCCESS
        assert first.error == ""


async def test_there_is_no_hedge_if_the_first_answers_in_time() -> None:
    async with local() as first, local() as second:
        hedge = Hedge(after=5)
        async with preferring(first.address, second.address, hedge=hedge) as session:
            for _ in range(3):
                async with session.get("/x") as response:
                    assert len(attempts(response)) == 1
            assert counts(session) == (0, 0, 0)
        assert (len(first.seen), len(second.seen)) == (3, 0)
        assert first.connections == 1


async def test_the_first_wins_if_it_answers_before_its_hedge() -> None:
    gates = Gate(), Gate()
    async with (
        local(gates[0]) as first,
        local(gates[1]) as second,
        preferring(first.address, second.address) as session,
    ):
        async with asyncio.TaskGroup() as group:
            request = group.create_task(session.get("/x")._coro)  # type: ignore[arg-type]
            await until(lambda: len(second.seen) == 1)
            gates[0].let()
        response = request.result()
        assert [a.outcome for a in attempts(response)] == [Outcome.SUCCESS, Outcome.OURS]
        assert await response.text() == "ok"
        gates[1].let()
        await no_losers(session)
        assert counts(session) == (1, 0, 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_idempotent_methods_are_hedged(method: str) -> None:
    async with local(hang) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.request(method, "/x") as response:
            assert response.status == 200
        assert (len(slow.seen), len(fast.seen)) == (1, 1)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_others_are_hedged_with_an_idempotency_key_only(method: str) -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.request(method, "/x", data=b"body", headers={"Idempotency-Key": "1"}) as response:
            assert response.status == 200
        assert [seen.body for seen in (*slow.seen, *fast.seen)] == [b"body", b"body"]
        gate.let(2)
        async with session.request(method, "/x", data=b"body") as response:
            assert [a.endpoint.address for a in attempts(response)] == [slow.address]
        assert (len(slow.seen), len(fast.seen)) == (2, 1)


async def test_a_header_of_the_users_choice_names_requests_for_hedges_as_well() -> None:
    retry = Retry(idempotency_key="X-Once")
    async with (
        local(hang) as slow,
        local() as fast,
        preferring(slow.address, fast.address, retry=retry) as session,
    ):
        async with session.post("/x", data=b"body") as response:
            assert [attempt.endpoint.address for attempt in attempts(response)] == [slow.address, fast.address]
        keys = [seen.headers["X-Once"] for server in (slow, fast) for seen in server.seen]
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_methods_are_those_of_the_retry_policy() -> None:
    retry = Retry(methods={"POST"})
    async with (
        local(hang) as slow,
        local() as fast,
        preferring(slow.address, fast.address, retry=retry) as session,
    ):
        async with session.post("/x") as response:
            assert response.status == 200
        assert len(fast.seen) == 1


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"data": b"x" * 100_000}, b"x" * 100_000),
        ({"json": {"a": 1}}, b'{"a": 1}'),
        ({"data": {"a": "1"}}, b"a=1"),
        ({"data": "text"}, b"text"),
        ({"data": b"x" * 100, "chunked": True}, b"x" * 100),
        ({"data": b"once", "expect100": True}, b"once"),
    ],
    ids=["bytes", "json", "form", "text", "chunked", "expect"],
)
async def test_both_servers_get_the_whole_body(options: dict[str, Any], body: bytes) -> None:
    gate = Gate()
    async with local(gate) as slow, local() as fast, preferring(slow.address, fast.address) as session:
        async with session.put("/x", **options) as response:
            assert response.status == 200
        gate.let()
        await no_losers(session)
        assert [seen.body for seen in (*slow.seen, *fast.seen)] == [body, body]
        assert (slow.connections, fast.connections) == (1, 1)


def parts() -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter()
    writer.append("part")
    return writer


async def chunks() -> Any:
    yield b"chunk"


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"data": io.BytesIO(b"file")},
        lambda: {"data": parts()},
        lambda: {"data": chunks()},
        lambda: {"data": b"bytes", "upload_tracker": aiohttp.UploadTracker()},
        lambda: {"headers": {"Upgrade": "h2c"}},
    ],
    ids=["file", "multipart", "generator", "tracked", "upgrade"],
)
async def test_what_cannot_be_sent_twice_at_the_same_time_is_not_hedged(make: Any) -> None:
    async with local() as first, local() as second:
        async with preferring(first.address, second.address, hedge=Hedge(after=0)) as session:
            async with session.put("/x", **make()) as response:
                assert response.status == 200
            assert counts(session) == (0, 0, 0)
        assert (len(first.seen), len(second.seen)) == (1, 0)


async def test_a_single_node_is_not_asked_twice() -> None:
    gate = Gate()
    async with local(gate) as only, preferring(only.address) as session:
        asyncio.get_running_loop().call_later(0.05, gate.let)
        async with session.get("/x") as response:
            assert len(attempts(response)) == 1
        assert counts(session) == (0, 0, 0)
        assert len(only.seen) == 1


async def test_a_node_that_comes_while_the_first_is_silent_gets_no_hedge_too_many() -> None:
    """The nodes are looked at when the delay is over."""
    gate = Gate()
    async with local(gate) as slow, local(gate) as other:
        source = Memory([slow.address, other.address])
        async with BalancedSession(source, policy=Prefer(slow.address), hedge=Hedge(after=2)) as session:
            task = asyncio.ensure_future(session.get("/x")._coro)
            await until(lambda: len(slow.seen) == 1)
            source.set([slow.address])
            await asyncio.sleep(2.1)
            gate.let()
            assert len(attempts(await task)) == 1
        assert len(other.seen) == 0


async def test_a_hedge_is_one_of_the_attempts() -> None:
    for retry, second in ((Retry(attempts=1), 0), (Retry(attempts=2), 1)):
        gate = Gate()
        async with local(gate) as slow, local() as fast:
            async with preferring(slow.address, fast.address, retry=retry) as session:
                if not second:
                    asyncio.get_running_loop().call_later(0.05, gate.let)
                async with session.get("/x") as response:
                    assert len(attempts(response)) == 1 + second
                gate.let()
                await no_losers(session)
            assert len(fast.seen) == second


async def test_a_retry_is_not_hedged_when_the_attempts_are_used_up() -> None:
    gate = Gate()
    retry = Retry(attempts=2, backoff=0.001)
    async with local(drop) as bad, local(gate) as slow, local() as third:
        nodes = bad.address, slow.address, third.address
        async with preferring(*nodes, retry=retry, hedge=Hedge(after=2)) as session:
            loop = asyncio.get_running_loop()
            asked = when(lambda: bool(slow.seen), lambda: loop.call_later(2.2, gate.let))
            async with asked, session.get("/x") as response:
                assert [a.endpoint.address for a in attempts(response)] == list(nodes[:2])
            assert counts(session) == (0, 0, 0)
        assert len(third.seen) == 0


async def test_a_hedge_does_not_wait_for_room() -> None:
    gates = Gate(), Gate()
    limits = Limits(per_node=1)
    async with local(gates[0]) as first, local(gates[1]) as second:
        async with preferring(first.address, second.address, limits=limits) as session:
            tasks = [asyncio.ensure_future(session.get(path)._coro) for path in ("/a", "/b")]
            await until(lambda: len(first.seen) == len(second.seen) == 1)
            await asyncio.sleep(0.03)
            gates[0].let()
            gates[1].let()
            for task in tasks:
                assert len(attempts(await task)) == 1
            assert counts(session) == (0, 0, 0)
        assert (len(first.seen), len(second.seen)) == (1, 1)


@pytest.mark.parametrize("limits", [Limits(per_node=1), Limits(per_service=2)], ids=["node", "service"])
async def test_a_hedge_for_which_there_is_no_room_costs_nothing(limits: Limits) -> None:
    """Else slow requests under a limit that is reached would use up what retries need."""
    gate = Gate()
    retry = Retry(budget=Budget(share=0.0, per_second=0.1, window=10.0), backoff=0.001)
    async with local(gate) as first, local(gate) as second:
        nodes = first.address, second.address
        async with preferring(*nodes, limits=limits, retry=retry, hedge=Hedge(after=0.02)) as session:
            tasks = [asyncio.ensure_future(session.get(path)._coro) for path in ("/a", "/b")]
            await until(lambda: len(first.seen) + len(second.seen) == 2)
            await asyncio.sleep(0.05)
            assert session.describe()["services"]["service"]["budget"]["withdrawn"] == 0
            gate.let(2)
            for task in tasks:
                assert len(attempts(await task)) == 1


async def test_a_hedge_needs_the_budget() -> None:
    gate = Gate()
    budget = Budget(share=0.0, per_second=0.0, window=10.0)
    async with local(gate) as slow, local() as fast:
        async with preferring(slow.address, fast.address, retry=Retry(budget=budget)) as session:
            refused = when(lambda: counts(session)[2] == 1, gate.let)
            async with refused, session.get("/x") as response:
                assert len(attempts(response)) == 1
            assert counts(session) == (0, 0, 1)
        assert len(fast.seen) == 0


async def test_a_policy_that_insists_gets_no_second_attempt_at_the_same_node() -> None:
    class Insisting(Prefer):
        def pick(self, nodes: Any, call: Any) -> Any:
            call.excluded = ()
            return super().pick(nodes, call)

    gate = Gate()
    async with local(gate) as slow, local() as fast:
        policy = Insisting(slow.address)
        async with preferring(slow.address, fast.address, policy=policy) as session:
            asyncio.get_running_loop().call_later(0.05, gate.let)
            async with session.get("/x") as response:
                assert len(attempts(response)) == 1
            assert in_flight(session) == 0
            assert session.describe()["services"]["service"]["budget"]["withdrawn"] == 0
        assert (len(slow.seen), len(fast.seen)) == (1, 0)


@pytest.mark.parametrize("failure", [drop, Status(503), Status(503, headers=[("Retry-After", "1")])])
async def test_a_hedge_that_fails_is_not_taken_while_the_first_may_succeed(failure: Any) -> None:
    gate = Gate()
    async with local(gate) as slow, local(failure) as bad, preferring(slow.address, bad.address) as session:
        observed = Observed(session)
        done = when(lambda: bool(observed.of(bad.address)), gate.let)
        async with done, session.get("/x") as response:
            assert response.status == 200
            assert len(attempts(response)) == 2
        assert (len(slow.seen), len(bad.seen)) == (1, 1)
        assert observed.of(slow.address) == [Outcome.SUCCESS]
        assert len(observed.of(bad.address)) == 1
        assert observed.of(bad.address)[0] in (Outcome.FAULT, Outcome.GATEWAY, Outcome.OVERLOAD)
        assert counts(session) == (1, 0, 0)


async def test_the_connection_of_a_hedge_that_failed_is_kept() -> None:
    gate = Gate()
    async with (
        local(gate) as slow,
        local(Status(503)) as bad,
        preferring(slow.address, bad.address) as session,
    ):
        observed = Observed(session)
        for count in (1, 2, 3):
            done = when(lambda count=count: len(observed.of(bad.address)) == count, gate.let)  # type: ignore[misc]
            async with done, session.get("/x") as response:
                assert response.status == 200
        assert (slow.connections, bad.connections) == (1, 1)


async def test_a_first_that_fails_after_its_hedge_was_sent_counts_against_its_server() -> None:
    gate = Gate()
    fails = fails_later(lambda: bad, lambda: good)
    async with local(fails) as bad, local(gate) as good, preferring(bad.address, good.address) as session:
        observed = Observed(session)
        done = when(lambda: bool(observed.of(bad.address)), gate.let)
        async with done, session.get("/x") as response:
            assert [a.outcome for a in attempts(response)] == [Outcome.FAULT, Outcome.SUCCESS]
        assert observed.outcomes == [(bad.address, Outcome.FAULT), (good.address, Outcome.SUCCESS)]
        assert counts(session) == (1, 1, 0)


async def test_an_answer_that_is_not_repeated_is_useful() -> None:
    async with local(hang) as slow, local(Status(500)) as bad, preferring(slow.address, bad.address) as session:
        async with session.get("/x") as response:
            assert response.status == 500
        assert counts(session) == (1, 1, 0)


async def test_both_fail_and_a_third_node_answers() -> None:
    fails = fails_later(lambda: first, lambda: second)
    async with local(fails) as first, local(Status(503)) as second, local() as third:
        async with preferring(first.address, second.address, third.address) as session:
            observed = Observed(session)
            async with session.get("/x") as response:
                assert response.status == 200
                said = [(a.endpoint.address, a.outcome) for a in attempts(response)]
            expected = [
                (first.address, Outcome.FAULT),
                (second.address, Outcome.GATEWAY),
                (third.address, Outcome.SUCCESS),
            ]
            assert said == expected
            assert sorted(observed.outcomes, key=str) == sorted(expected, key=str)
        assert [len(server.seen) for server in (first, second, third)] == [1, 1, 1]


async def test_both_fail_and_no_attempts_are_left() -> None:
    observed: list[Observed] = []
    # The hedge fails first: the client knows of it before the other server ends its connection.
    fails = once(lambda: any(each.of(second.address) for each in observed), drop)
    async with local(fails) as first, local(drop) as second, local() as third:
        nodes = first.address, second.address, third.address
        async with preferring(*nodes, retry=Retry(attempts=2)) as session:
            observed.append(Observed(session))
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.get("/x")
            assert [a.outcome for a in attempts(caught.value)] == [Outcome.FAULT, Outcome.FAULT]
            notes = caught.value.__notes__
            assert len(notes) == 1
            assert notes[0].startswith(f"attempt 2: {second.address}: fault")
        assert len(third.seen) == 0


async def test_a_hedged_request_that_is_retried_may_be_hedged_again() -> None:
    third = Gate()
    servers = local(fails_later(lambda: a, lambda: b)), local(drop), local(third), local()
    async with servers[0] as a, servers[1] as b, servers[2] as c, servers[3] as d:
        nodes = [server.address for server in (a, b, c, d)]
        async with preferring(*nodes, retry=Retry(attempts=4, backoff=0.001)) as session:
            async with session.get("/x") as response:
                said = [x.endpoint.address for x in attempts(response)]
            assert said == nodes
            assert counts(session) == (2, 1, 0)
            third.let()
            await no_losers(session)
        async with preferring(*nodes, retry=Retry(attempts=3, backoff=0.001)) as session:
            third.let()
            async with session.get("/x") as response:
                assert [x.endpoint.address for x in attempts(response)] == nodes[:3]
            assert counts(session) == (1, 0, 0)
        assert [len(server.seen) for server in (a, b, c, d)] == [2, 2, 2, 1]


async def test_the_percentile_is_used_once_a_hundred_answers_are_known() -> None:
    gate = Gate()
    async with (
        local(Script(*[ok] * 100, gate)) as first,
        local() as second,
        preferring(first.address, second.address, hedge=Hedge(percentile=1.0)) as session,
    ):
        for _ in range(100):
            async with session.get("/x") as response:
                assert len(attempts(response)) == 1
        assert len(first.seen) == 100
        async with session.get("/x") as response:
            assert [a.endpoint.address for a in attempts(response)] == [first.address, second.address]
        gate.let()
        await no_losers(session)


async def test_before_that_a_request_waits_as_long_as_it_takes() -> None:
    gate = Gate()
    async with local(gate) as first, local() as second:
        async with preferring(first.address, second.address, hedge=Hedge()) as session:
            asyncio.get_running_loop().call_later(0.1, gate.let)
            async with session.get("/x") as response:
                assert len(attempts(response)) == 1
        assert len(second.seen) == 0


async def test_a_classifier_says_what_is_useful() -> None:
    def classify(result: Any) -> Outcome | None:
        failed = isinstance(result, aiohttp.ClientResponse) and "X-Failed" in result.headers
        return Outcome.GATEWAY if failed else None

    gate = Gate()
    async with (
        local(gate) as slow,
        local(Status(200, headers=[("X-Failed", "1")])) as bad,
        preferring(slow.address, bad.address, classify=classify) as session,
    ):
        observed = Observed(session)
        done = when(lambda: bool(observed.of(bad.address)), gate.let)
        async with done, session.get("/x") as response:
            assert "X-Failed" not in response.headers
        assert counts(session) == (1, 0, 0)


@pytest.mark.parametrize("status", [200, 500])
async def test_a_classifier_is_asked_once_about_each_attempt(status: int) -> None:
    asked: list[Any] = []
    gate = Gate()
    async with (
        local(gate) as slow,
        local(Status(status)) as fast,
        preferring(slow.address, fast.address, classify=asked.append) as session,
    ):
        async with session.get("/x") as response:
            assert len(attempts(response)) == 2
        gate.let()
        await no_losers(session)
        assert [answer.status for answer in asked] == [status, 200]


async def test_a_service_has_hedges_of_its_own() -> None:
    async with local(hang) as slow, local() as fast, local() as other:
        services = {"a": Static([slow.address, fast.address]), "b": Static([other.address])}
        policy = {"a": Prefer(slow.address), "b": "round_robin"}
        async with BalancedSession(services, policy=policy, hedge={"a": SOON}) as session:  # type: ignore[arg-type]
            async with session.get("http://a/x") as response:
                assert len(attempts(response)) == 2
            async with session.get("http://b/x") as response:
                assert len(attempts(response)) == 1


async def test_a_judgement_that_fails_is_raised_and_leaks_nothing() -> None:
    """It is not asked about its own error, and the other attempt is not to blame."""

    def half(result: Any) -> Outcome | None:
        if isinstance(result, Exception):
            return Outcome.FAULT
        raise ZeroDivisionError("oops")

    options: dict[str, Any] = {"classify": half, "hedge": Hedge(after=0.01, linger=0), "timeout": 20}
    async with local(hang) as slow, local() as fast:
        async with preferring(slow.address, fast.address, **options) as session:
            observed = Observed(session)
            with pytest.raises(ZeroDivisionError, match="oops") as caught:
                await session.get("/x")
            await no_losers(session)
            assert [a.outcome for a in attempts(caught.value)] == [Outcome.OURS, Outcome.SUCCESS]
            assert sorted(observed.outcomes) == sorted(
                [(slow.address, Outcome.OURS), (fast.address, Outcome.SUCCESS)]
            )
            assert in_flight(session) == 0
        assert (len(slow.seen), len(fast.seen)) == (1, 1)
