"""What a thousand reconnections leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import Iterator

import pytest
from registry_rig import Proxy, until

from discovery import Backoff, Consul, Etcd, Snapshot, Source, Watcher
from lbclient.sandbox import ConsulServer, EtcdCluster

pytestmark = pytest.mark.usefixtures("nothing_leaks", "no_log")

ROUNDS = 1000
AT_ONCE = Backoff(base=0.0001, cap=0.0001)


@pytest.fixture
def no_log() -> Iterator[None]:
    """The records that pytest keeps would be most of the memory."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def grown_by_reconnects(source: Source, way: Proxy) -> int:
    """Bytes that are in use after all rounds and were not after a fifth of them."""
    lost = before = 0
    over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def count(snapshot: Snapshot) -> None:
        nonlocal lost, before
        lost += snapshot.state == "stale"
        if snapshot.state == "stale" and lost == ROUNDS // 5:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
        if lost >= ROUNDS and not over.done():
            gc.collect()
            over.set_result(tracemalloc.get_traced_memory()[0] - before)

    async with Watcher(source, backoff=AT_ONCE) as watcher:
        await until(watcher, lambda snapshot: snapshot.state == "live")
        watcher.subscribe(count)
        tracemalloc.start()
        try:
            while not over.done():
                await until(watcher, lambda snapshot: snapshot.state == "live")
                # What follows upon the list is under way then.
                await asyncio.sleep(0.002)
                way.sever()
                way.sent.clear()
            return await over
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("etcd", ["3.5"], indirect=True)
async def test_etcd(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Proxy(etcd.address) as way:
        grown = await grown_by_reconnects(Etcd(unique, hosts=[way.address]), way)
    # 800 rounds; what each left behind would be more than this together.
    assert grown < 800 * 100


async def test_consul(consul: ConsulServer, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.consul.source._POLLS_PER_SECOND", 10_000)
    # Else a connection that is cut at once is an agent with too many connections, which is asked every 2 s only.
    monkeypatch.setattr("discovery.consul.follower._REFUSED_WITHIN", -1)
    await consul.register(unique, "10.0.0.1", 80)
    async with Proxy(consul.address) as way:
        grown = await grown_by_reconnects(Consul(unique, address=way.address), way)
    assert grown < 800 * 100
