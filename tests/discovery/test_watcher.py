"""The only loop, on scripted sources and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest
from virtual_time import run

import discovery.watcher
from discovery import Backoff, Endpoint, Memory, Snapshot, SourceError, Static, Watcher
from discovery.cache import Cached

A, B, C = (Endpoint(host=f"10.0.0.{n}", port=80) for n in (1, 2, 3))

Step = Sequence[Endpoint] | Exception | float | type[asyncio.CancelledError]


class Scripted:
    """Each call of watch() plays the next script: sets are yielded, numbers slept, exceptions raised."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = list(scripts)
        self.called_at: list[float] = []
        self.closed = 0

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        self.called_at.append(asyncio.get_running_loop().time())
        try:
            for step in self.scripts.pop(0) if self.scripts else [1e9]:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception | type):
                    raise step
                else:
                    yield step
        finally:
            self.closed += 1


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_versions_count_changes_of_content_only() -> None:
    async def main() -> None:
        async with Watcher(Scripted([[A], [A], [A, B], [B, A], [A, B, B], [B], 1e9])) as watcher:
            seen = []
            watcher.subscribe(lambda snapshot: seen.append((snapshot.version, snapshot.endpoints)))
            await turns(20)
            assert seen == [(1, (A,)), (1, (A,)), (2, (A, B)), (2, (A, B)), (2, (A, B)), (3, (B,))]

    run(main())


def test_an_empty_first_set_is_news() -> None:
    async def main() -> None:
        async with Watcher(Scripted([[], 1e9])) as watcher:
            assert (await watcher.ready(1)).version == 1
            assert watcher.snapshot.state == "live"

    run(main())


def test_an_equal_set_keeps_the_very_tuple_and_refreshes_the_age() -> None:
    async def main() -> None:
        async with Watcher(Scripted([[A], 1.0, [Endpoint(host="10.0.0.1", port=80)], 1e9])) as watcher:
            first = await watcher.ready(1)
            await asyncio.sleep(2)
            assert watcher.snapshot.endpoints is first.endpoints
            assert watcher.snapshot is not first

    run(main())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ([], "the source ended"),
        ([SourceError("no route")], "no route"),
        ([KeyError("x")], "KeyError: 'x'"),
        ([asyncio.CancelledError], "the source was cancelled"),
        ([["no endpoint"]], "AttributeError"),
    ],
)
def test_no_end_of_a_source_ends_the_watcher_or_loses_the_last_good_set(end: list[Step], reason: str) -> None:
    async def main() -> None:
        source = Scripted([[A, B], *end], [5.0], [[A, C], 1e9])
        async with Watcher(source) as watcher:
            await watcher.ready(1)
            await asyncio.sleep(1)
            assert watcher.snapshot.state == "stale"
            assert watcher.snapshot.endpoints == (A, B)
            assert reason in watcher.snapshot.reason
            fresh = await watcher.newer_than(1)
            assert (fresh.endpoints, fresh.state, fresh.reason) == ((A, C), "live", "")
        assert source.closed == 3

    run(main())


def test_the_first_retry_comes_soon_and_the_delays_grow_to_the_cap() -> None:
    async def main() -> None:
        source = Scripted(*[[SourceError("down")]] * 12)
        async with Watcher(source, backoff=Backoff(jitter=0)):
            await asyncio.sleep(30)
        gaps = [b - a for a, b in zip(source.called_at, source.called_at[1:], strict=False)]
        assert 0 <= gaps[0] <= 0.1
        assert gaps[1:6] == pytest.approx([0.1, 0.16, 0.256, 0.4096, 0.65536])
        assert gaps[-1] == pytest.approx(2.0)

    run(main())


def test_a_source_that_answers_and_fails_at_once_is_not_asked_in_a_hot_loop() -> None:
    async def main() -> None:
        source = Scripted(*[[[A], SourceError("flapping")]] * 1000)
        async with Watcher(source):
            await asyncio.sleep(60)
        assert len(source.called_at) < 50

    run(main())


def test_a_source_that_was_good_for_long_is_asked_again_at_once() -> None:
    async def main() -> None:
        source = Scripted(*[[SourceError("down")]] * 10, [[A], 60.0, SourceError("gone")], [[A], 1e9])
        async with Watcher(source, backoff=Backoff(jitter=0)) as watcher:
            await watcher.ready(60)
            await asyncio.sleep(61)
        assert source.called_at[-1] - source.called_at[-2] == pytest.approx(60.05, abs=0.051)

    run(main())


def test_a_source_says_how_long_not_to_come_back() -> None:
    async def main() -> None:
        source = Scripted(*[[SourceError("refused", retry_after=5)]] * 5)
        async with Watcher(source):
            await asyncio.sleep(14)
        assert len(source.called_at) == 3

    run(main())


def test_jitter_spreads_the_watchers_of_one_registry() -> None:
    first = sorted(Backoff().delay(1, random.Random(seed)) for seed in range(200))
    assert 0 <= first[0] < first[-1] <= 0.1
    # Never more than a quarter of them within a tenth of the time.
    assert all(second - first[n] > 0.01 for n, second in enumerate(first[50:]))
    delays = {round(Backoff().delay(10, random.Random(seed)), 6) for seed in range(50)}
    assert len(delays) > 45
    assert all(1.6 <= delay <= 2.4 for delay in delays)


@pytest.mark.parametrize("wrong", [{"base": 0}, {"base": 3}, {"factor": 0.5}, {"jitter": 1}])
def test_a_wrong_backoff_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need base > 0"):
        Backoff(**wrong)


def test_each_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        down = [[SourceError("down")]] * 10
        async with Watcher(Scripted(*down, [[A], 10.0], *down, [[A], 1e9]), name="users"):
            await asyncio.sleep(100)

    caplog.set_level(logging.INFO)
    run(main())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "users: not reached yet: down",
        "users: live, 1 endpoint",
        "users: stale, 1 endpoint kept: the source ended",
        "users: live, 1 endpoint",
    ]


def test_ready_says_why_nothing_came() -> None:
    async def main() -> None:
        async with Watcher(Scripted(*[[SourceError("refused")]] * 99), name="users") as watcher:
            with pytest.raises(TimeoutError, match="users: nothing received within 3 s: refused"):
                await watcher.ready(3)
            assert watcher.snapshot.state == "starting"

    run(main())


def test_iteration_gives_the_newest_value_and_skips_what_a_slow_reader_missed() -> None:
    async def main() -> list[Snapshot]:
        memory = Memory([A])
        seen = []
        async with Watcher(memory) as watcher:
            async for snapshot in watcher:
                seen.append(snapshot)
                if snapshot.version == 1:
                    for endpoints in ([A, B], [A], [A, B, C]):
                        memory.set(endpoints)
                        await turns()
                elif snapshot.state == "stale":
                    break
                elif snapshot.version > 1:
                    memory.fail()
        return seen

    seen = run(main())
    assert [(s.version, s.state) for s in seen] == [(0, "starting"), (1, "live"), (4, "live"), (4, "stale")]


def test_iteration_shows_that_one_of_those_held_is_listed_again() -> None:
    async def main() -> list[int]:
        memory, seen = Memory([A, B, C]), []
        async with Watcher(memory) as watcher:
            await watcher.ready(1)
            async for snapshot in watcher:
                seen.append(len(snapshot.held))
                if snapshot.state == "live":
                    memory.set([])
                elif len(snapshot.held) == 3:
                    memory.set([A])
                else:
                    return seen
        return seen

    assert run(main()) == [0, 3, 2]


def test_iteration_ends_with_the_watcher() -> None:
    async def main() -> None:
        watcher = Watcher(Static([A]))
        watcher.start()
        await watcher.ready(1)
        reader = asyncio.create_task(_read_all(watcher))
        await turns()
        await watcher.stop()
        assert (await reader)[-1].endpoints == (A,)
        with pytest.raises(RuntimeError, match="stopped"):
            await watcher.newer_than(99)
        with pytest.raises(RuntimeError, match="stopped"):
            watcher.start()

    async def _read_all(watcher: Watcher) -> list[Snapshot]:
        return [snapshot async for snapshot in watcher]

    run(main())


def test_a_stop_interrupts_the_backoff_and_closes_the_source() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for script in ([SourceError("down")] * 1, [[A], 1e9]):
            source = Scripted(*[script] * 30)
            watcher = Watcher(source)
            watcher.start()
            await asyncio.sleep(10)
            began = loop.time()
            await watcher.stop()
            assert loop.time() - began == 0
            assert source.closed == len(source.called_at)
            assert not watcher.running
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_why_the_registry_is_out_of_reach_is_logged_after_a_start_from_the_cache_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        source = Scripted([3.0, SourceError("no route")], [SourceError("no route")], [[A], 1e9])
        async with Watcher(source, name="users") as watcher:
            await turns()
            watcher.restore(Cached((A,), 60.0))
            await asyncio.sleep(10)
            assert watcher.counts["outages"] == 1

    caplog.set_level(logging.INFO)
    run(main())
    assert caplog.messages == [
        "users: 1 endpoint from the cache, 60 s old",
        "users: stale, 1 endpoint kept: no route",
        "users: live, 1 endpoint",
    ]


def test_a_stop_that_is_cut_short_leaves_nothing_that_looks_live() -> None:
    class Slow:
        async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
            try:
                yield [A]
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(10)

    async def main() -> None:
        watcher = Watcher(Slow())
        watcher.start()
        await watcher.ready(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await watcher.stop()
        assert (watcher.snapshot.state, watcher.snapshot.endpoints) == ("stale", (A,))
        await asyncio.sleep(20)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


@pytest.mark.parametrize("afterwards", ["ends", "fails", "goes on"])
def test_a_source_that_swallows_its_cancellation_does_not_keep_a_stop_waiting(afterwards: str) -> None:
    class Stubborn:
        async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
            yield [A]
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1e6)
            if afterwards == "fails":
                raise SourceError("interrupted", retry_after=60)
            while afterwards == "goes on":
                yield [A]
                await asyncio.sleep(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        watcher = Watcher(Stubborn())
        watcher.start()
        await watcher.ready(1)
        began = loop.time()
        async with asyncio.timeout(600):
            await watcher.stop()
        assert loop.time() == began
        assert watcher.snapshot.reason == "the watcher was stopped"

    run(main())


@pytest.mark.parametrize("skipped", [3, property(lambda _: 1 / 0)], ids=["number", "error"])
def test_nonsense_in_a_source_s_skipped_does_not_end_the_watcher(skipped: object) -> None:
    async def main() -> None:
        source = type("Odd", (Memory,), {"skipped": skipped})([A])
        async with Watcher(source) as watcher:
            await watcher.ready(1)
            source.fail("down")
            await asyncio.sleep(1)
            assert (watcher.running, watcher.snapshot.state) == (True, "stale")
            source.recover()
            await asyncio.sleep(5)
            assert watcher.snapshot.state == "live"

    run(main())


def test_a_listener_is_called_in_the_swap_and_its_failure_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        memory = Memory([A])
        seen: list[Snapshot] = []

        def broken(_: Snapshot) -> None:
            raise RuntimeError("listener")

        async with Watcher(memory) as watcher:
            unsubscribe: Callable[[], None] = watcher.subscribe(broken)
            watcher.subscribe(lambda snapshot: seen.append(snapshot) or None)
            await watcher.ready(1)
            assert seen[-1] is watcher.snapshot
            unsubscribe()
            memory.set([B])
            await turns()
            assert seen[-1].endpoints == (B,)

    run(main())
    assert sum("a listener failed" in record.getMessage() for record in caplog.records) == 1


def test_memory_changes_are_seen_within_two_turns_and_together() -> None:
    async def main() -> None:
        memory = Memory()
        async with Watcher(memory) as watcher:
            await watcher.ready(1)
            memory.add(A)
            memory.add("10.0.0.2:80")
            memory.add(Endpoint(host="10.0.0.1", port=80, weight=5))
            memory.remove(B)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert watcher.snapshot.version == 2
            assert [e.weight for e in watcher.snapshot.endpoints] == [5]
            with pytest.raises(KeyError, match=r"10\.0\.0\.9:80"):
                memory.remove("10.0.0.9:80")

    run(main())


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(TypeError, match="has no watch"):
        Watcher(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one endpoint"):
        Static([])


def test_a_sign_of_life_is_not_sorted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_ = []

    async def main() -> None:
        known = (B, A)
        async with Watcher(Scripted([known, known, 1.0, known, [A, B], 1e9])) as watcher:
            await asyncio.sleep(2)
            assert watcher.snapshot.version == 1
            assert watcher.snapshot.endpoints == (A, B)

    real = discovery.watcher.endpoint_tuple
    monkeypatch.setattr("discovery.watcher.endpoint_tuple", lambda e: sorted_.append(e) or real(e))
    run(main())
    assert len(sorted_) == 2


def test_two_hundred_watchers_come_back_one_by_one_after_an_outage() -> None:
    """Each of them asks within the time in which it has to be fresh again, and no moment has many of them."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        asked: list[float] = []

        class Registry:
            async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
                asked.append(loop.time())
                if loop.time() < ends_at:
                    yield (A,)
                    await asyncio.sleep(ends_at - loop.time())
                if loop.time() < back_at:
                    raise SourceError("outage")
                yield (A,)
                await asyncio.Event().wait()

        ends_at, back_at = loop.time() + 60, loop.time() + 90
        async with contextlib.AsyncExitStack() as stack:
            for number in range(200):
                await stack.enter_async_context(Watcher(Registry(), rng=random.Random(number)))
            await asyncio.sleep(200)
        assert busiest([at for at in asked if ends_at <= at < ends_at + 0.1], 0.01) <= 40
        back = [at - back_at for at in asked if at >= back_at]
        assert len(back) == 200
        assert max(back) < 2.4
        assert busiest(back, 0.1) <= 30
        return asked

    def busiest(moments: list[float], window: float) -> int:
        ordered = sorted(moments)
        return max(sum(at <= other < at + window for other in ordered) for at in ordered)

    run(main())


def test_a_set_that_could_not_be_taken_over_is_no_sign_of_life_when_it_comes_again() -> None:
    async def main() -> None:
        broken = (A, "no endpoint")
        source = Scripted([[A], 1.0, broken], *[[broken, 1e9]] * 20)  # type: ignore[list-item]
        async with Watcher(source) as watcher:
            await asyncio.sleep(10)
            assert watcher.snapshot.state == "stale"
            assert "AttributeError" in watcher.snapshot.reason

    run(main())


@pytest.mark.parametrize("turns", range(4))
async def test_endpoints_that_come_in_the_turn_in_which_the_time_is_up_count(turns: int) -> None:
    """As where thousands of requests begin at once, on a busy machine."""
    watcher = Watcher(Static([A]))
    waiting = asyncio.create_task(watcher.ready(0.01))
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(0.02)  # noqa: ASYNC251 - a turn that takes longer than the time-out
    assert (await waiting).endpoints == (A,)
    await watcher.stop()
