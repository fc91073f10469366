"""What a thousand reconnections leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from registry_rig import Proxy, until

from discovery import Backoff, Consul, Etcd, Snapshot, Source, Watcher
from lbclient.sandbox import ConsulServer, EtcdCluster

pytestmark = [pytest.mark.usefixtures("nothing_leaks", "no_log"), pytest.mark.timeout(240)]

ROUNDS = 1000
# Bytes of 800 rounds; what each left behind would be more than this together.
MOST = 800 * 100
AT_ONCE = Backoff(base=0.0001, cap=0.0001)


@pytest.fixture
def no_log() -> Iterator[None]:
    """The records that pytest keeps would be most of the memory."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def grown_by_reconnects(source: Source, way: Proxy) -> int:
    """Bytes that are in use after all rounds and were not after a fifth of them."""
    lost = 0

    def count(snapshot: Snapshot) -> None:
        nonlocal lost
        lost += snapshot.state == "stale"

    async with Watcher(source, backoff=AT_ONCE) as watcher:

        async def reconnect(rounds: int) -> None:
            while lost < rounds:
                await until(watcher, lambda snapshot: snapshot.state == "live")
                # What follows upon the list is under way then.
                await asyncio.sleep(0.002)
                way.sever()
                way.sent.clear()

        await until(watcher, lambda snapshot: snapshot.state == "live")
        watcher.subscribe(count)
        tracemalloc.start()
        try:
            await reconnect(ROUNDS // 5)
            before = await in_use(at_most=0)
            await reconnect(ROUNDS)
            return await in_use(at_most=before + MOST) - before
        finally:
            tracemalloc.stop()


async def in_use(at_most: int) -> int:
    """The least in a while: on a busy machine connections that were broken end later."""
    least = sys.maxsize
    for _ in range(20):
        gc.collect()
        least = min(least, tracemalloc.get_traced_memory()[0])
        if least < at_most:
            break
        await asyncio.sleep(0.05)
    return least


@pytest.mark.parametrize("etcd", ["3.5"], indirect=True)
async def test_etcd(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Proxy(etcd.address) as way:
        grown = await grown_by_reconnects(Etcd(unique, hosts=[way.address]), way)
    assert grown < MOST


async def test_consul(consul: ConsulServer, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.consul.source._POLLS_PER_SECOND", 10_000)
    # Else a connection that is cut at once is an agent with too many connections, which is asked every 2 s only.
    monkeypatch.setattr("discovery.consul.follower._REFUSED_WITHIN", -1)
    await consul.register(unique, "10.0.0.1", 80)
    async with Proxy(consul.address) as way:
        grown = await grown_by_reconnects(Consul(unique, address=way.address), way)
    assert grown < MOST
