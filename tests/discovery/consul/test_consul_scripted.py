"""The Consul source against a model of an agent that lies: random stories, virtual time, no sockets.

Everything above the calls is the real thing: following, turns, slices, records, source, watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from consul_model import ACTS, FakeConsul
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtual_time import run

from discovery import Consul, Watcher
from discovery.consul.client import Answer, ConsulClient

# Each step is what happens, a number that says how, and seconds to wait afterwards.
PAUSES = st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.3, 1.0, 4.0, 9.0, 40.0])
STEPS = st.lists(
    st.tuples(st.sampled_from(["register", "register", "check", *ACTS]), st.integers(0, 30), PAUSES), max_size=40
)
# A refusal is tried again after 5 s, in 5 s comes a probe, in half a second the second look.
SOON = 14.0
# What changes without the index shows at the end of a wait only: a token's rights, or an index that went back and
# happens to be the one that we had.
HIDDEN = {"blind", "decrease", "restore", "wipe"}
LATE = 32.0 + SOON


@contextlib.asynccontextmanager
async def watched(consul: FakeConsul) -> AsyncIterator[Watcher]:
    async def get(_: ConsulClient, __: str, params: Iterable[tuple[str, str]], **options: Any) -> Answer:
        return await consul.get(params, options["timeout"] or 2.0)

    clock = SimpleNamespace(monotonic=asyncio.get_running_loop().time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConsulClient, "get", get)
        patch.setattr("discovery.consul.follower.time", clock)
        patch.setattr("discovery.consul.agent.time", clock)
        async with Watcher(Consul("web"), on_empty="accept", rng=random.Random(1)) as watcher:
            yield watcher


def registered(consul: FakeConsul) -> set[str]:
    return {f"10.0.0.{n}:{port}" for n, (port, status) in consul.instances.items() if status == "passing"}


async def quiet(watcher: Watcher, consul: FakeConsul, seconds: float) -> None:
    await asyncio.sleep(seconds)
    assert {endpoint.address for endpoint in watcher.snapshot.endpoints} == registered(consul), watcher
    assert watcher.snapshot.state == "live", watcher


@settings(max_examples=300)
@given(steps=STEPS, seed=st.integers(0, 9))
@example(steps=[("register", 1, 1.0), ("deaf", 0, 0.0), ("register", 2, 0.0)], seed=0)
@example(steps=[("register", 1, 1.0), ("deaf", 0, 0.0), ("register", 2, 1.0), ("restore", 2, 0.0)], seed=0)
@example(steps=[("register", 1, 1.0), ("blind", 1, 40.0)], seed=0)
@example(steps=[("register", 0, 0.0), ("crowd", 1, 0.0), ("blind", 1, 40.0)], seed=0)
@example(steps=[("register", 1, 1.0), ("crowd", 1, 40.0), ("register", 2, 9.0)], seed=0)
def test_after_any_story_the_watcher_has_what_consul_has(steps: list[tuple[str, int, float]], seed: int) -> None:
    async def main() -> None:
        consul = FakeConsul(random.Random(seed))
        async with watched(consul) as watcher:
            ACTS["register"](consul, 3)
            # Waits begin short.
            await asyncio.sleep(100)
            for name, number, seconds in steps:
                ACTS[name](consul, number)
                await asyncio.sleep(seconds)
            # From here on it answers.
            ACTS["up"](consul, 0)
            hidden = HIDDEN & {name for name, *_ in steps}
            await quiet(watcher, consul, LATE if hidden else SOON)
            # And it is followed, not only read once.
            ACTS["register"](consul, 5)
            await quiet(watcher, consul, SOON)
            outages = watcher.counts["outages"]
            ACTS["register"](consul, 4)
            # Those that may not wait ask every 2 s.
            await quiet(watcher, consul, 2.5)
            assert watcher.counts["outages"] == outages
        # The connector ends its connections in turns of its own.
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("harm", ["hung", "down"])
def test_what_happens_in_silence_is_known_within_seven_seconds(harm: str) -> None:
    async def main() -> None:
        consul = FakeConsul(random.Random(1))
        async with watched(consul) as watcher:
            ACTS["register"](consul, 1)
            await asyncio.sleep(100)
            assert watcher.counts["outages"] == 0
            ACTS[harm](consul, 0)
            await asyncio.sleep(7)
            assert watcher.counts["outages"] == 1

    run(main())


@pytest.mark.parametrize("habit", ["restless", "elsewhere"])
def test_an_agent_that_always_answers_is_asked_five_times_a_second(habit: str) -> None:
    async def main() -> None:
        consul, asked = FakeConsul(random.Random(1)), 0
        real = consul.get

        async def counting(params: Iterable[tuple[str, str]], timeout: float) -> Answer:  # noqa: ASYNC109 - as above
            nonlocal asked
            asked += 1
            return await real(params, timeout)

        consul.get = counting  # type: ignore[method-assign]
        async with watched(consul):
            for _ in range(6000):
                ACTS[habit](consul, 1)
                await asyncio.sleep(0.01)
        assert 250 <= asked <= 350

    run(main())


def test_a_watcher_that_is_behind_another_one_of_its_source_is_not_at_an_earlier_time() -> None:
    async def main() -> None:
        indexes = iter([5, 5, 9, 7, 3])

        async def get(*_: Any, **__: Any) -> Answer:
            return Answer(data=[b"[]"], index=next(indexes), has_leader=True)

        source = Consul("web")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ConsulClient, "get", get)
            async with contextlib.aclosing(source.watch()) as one, contextlib.aclosing(source.watch()) as two:
                seen = []
                for sets in (one, two, one, two, two):
                    await anext(sets)
                    seen.append(source.rewound)
                assert seen == [False, False, False, False, True]

    run(main())
