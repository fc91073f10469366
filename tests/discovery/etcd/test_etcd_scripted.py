"""The etcd source against a model of etcd that lies: random stories, virtual time, no sockets.

Everything above the connection is the real thing: client, frames, view, records, source, watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from etcd_model import ACTS, PREFIX, FakeEtcd, Response
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtual_time import run

from discovery import Etcd, Watcher
from discovery.etcd.client import EtcdClient

# Each step is what happens, a number that says how, and seconds to wait afterwards.
PAUSES = st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.01, 0.3, 1.0, 4.0, 9.0])
STEPS = st.lists(st.tuples(st.sampled_from(["put", "put", *ACTS]), st.integers(0, 30), PAUSES), max_size=40)


@contextlib.asynccontextmanager
async def watched(etcd: FakeEtcd) -> AsyncIterator[Watcher]:
    def request(_: EtcdClient, path: str, body: dict[str, Any], *__: Any) -> Response:
        return Response(etcd, path, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EtcdClient, "_request", request)
        async with Watcher(Etcd("users"), on_empty="accept", rng=random.Random(1)) as watcher:
            yield watcher


def registered(etcd: FakeEtcd) -> set[tuple[str, str]]:
    """Keys by their first address, as the watcher would show them."""
    found: dict[str, str] = {}
    for key, (value, _) in sorted(etcd.keys.items()):
        if key.startswith(PREFIX):
            found.setdefault(value.decode(), key.decode())
    return set(found.items())


def shown(watcher: Watcher) -> set[tuple[str, str]]:
    return {(endpoint.address, endpoint.id) for endpoint in watcher.snapshot.endpoints}


async def quiet(watcher: Watcher, etcd: FakeEtcd, seconds: float) -> None:
    await asyncio.sleep(seconds)
    assert shown(watcher) == registered(etcd), watcher
    assert watcher.snapshot.state == "live", watcher


# One probe, the doubt about it, a second look; then a back-off and a list.
SOON = 5 + 0.6 + 2.5
# All keys are compared every 60 probes only: nothing else tells a registry that was restored while the connections
# stayed open, and then written to until its revision was the one that we had.
LATE = 60 * 5


@settings(max_examples=300)
@given(steps=STEPS, seed=st.integers(0, 9))
# An update is lost and others come through: neither the number of keys nor the newest one tells.
@example(steps=[("put", 0, 0.0), ("put", 1, 1.0), ("lose", 0, 0.0), ("put", 7, 0.0), ("put", 15, 0.0)], seed=0)
# A deletion and a new key are lost together: the number of keys stays the same.
@example(steps=[("put", 0, 1.0), ("lose", 1, 0.0), ("delete", 0, 0.0), ("put", 1, 0.0), ("put", 2, 0.0)], seed=0)
@example(steps=[("put", 0, 9.0), ("lose", 0, 0.0), ("put", 7, 0.0), ("put", 15, 0.0)], seed=0)
# The restored registry goes on to the very revision at which it was.
@example(steps=[("backup", 0, 0.0), ("put", 1, 1.0), ("restore behind our back", 0, 0.0), ("put", 2, 0.0)], seed=0)
# Each frame comes in four pieces.
@example(steps=[("cut", 3, 0.0), ("put", 1, 1.0), ("many", 5, 1.0)], seed=0)
@example(steps=[("put", 1, 1.0), ("wipe behind our back", 0, 0.0), ("put", 2, 0.0), ("put", 3, 0.0)], seed=0)
def test_after_any_story_the_watcher_has_what_etcd_has(steps: list[tuple[str, int, float]], seed: int) -> None:
    async def main() -> None:
        etcd = FakeEtcd(random.Random(seed))
        async with watched(etcd) as watcher:
            await asyncio.sleep(0.1)
            for name, number, seconds in steps:
                ACTS[name](etcd, number)
                await asyncio.sleep(seconds)
            # From here on it answers, and loses nothing more.
            ACTS["up"](etcd, 0)
            for watch in etcd.watches:
                watch.lose = 0
            hidden = any(name == "restore behind our back" for name, *_ in steps)
            await quiet(watcher, etcd, 2.4 + SOON + 2 + (LATE if hidden else 0))
            # And it is followed, not only read once.
            etcd.change((PREFIX + b"end", b"10.9.9.9:80"))
            await quiet(watcher, etcd, SOON)
            # At once, too, now that a stream that had fallen silent has been noticed.
            outages = watcher.counts["outages"]
            etcd.change((PREFIX + b"end", b"10.9.9.10:80"))
            await quiet(watcher, etcd, 0.3)
            assert watcher.counts["outages"] == outages
        assert asyncio.all_tasks() == {asyncio.current_task()}

    logging.disable(logging.CRITICAL)
    try:
        run(main())
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("harm", ["hung", "down", "wipe behind our back", "restore behind our back"])
def test_what_happens_in_silence_is_known_within_seven_seconds(harm: str) -> None:
    async def main() -> None:
        etcd = FakeEtcd(random.Random(1))
        async with watched(etcd) as watcher:
            etcd.change((PREFIX + b"1", b"10.0.0.1:80"))
            await watcher.ready(5)
            await asyncio.sleep(100)
            outages = watcher.counts["outages"]
            ACTS[harm](etcd, 0)
            await asyncio.sleep(7)
            assert watcher.counts["outages"] == outages + 1

    run(main())
