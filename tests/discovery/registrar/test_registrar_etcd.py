"""Registering in a real etcd: found by a watcher, found again whatever happens, and gone at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from patience import Stopwatch, patience
from registrar_rig import Vote, stands
from registry_rig import Proxy, sees, until

from discovery import Endpoint, Etcd, Registrar, Snapshot, Watcher
from discovery.registrar.upkeep import Upkeep
from lbclient.sandbox import EtcdCluster

pytestmark = pytest.mark.usefixtures("nothing_leaks")

FULL = Endpoint(
    host="10.0.0.1", port=80, weight=2.5, priority=2, zone="east", tls=True, metadata={"version": "7", "a": ""}
)


newest = pytest.mark.parametrize("etcd", ["3.5"], indirect=True)
"""For tests in which the version plays no part, but time does."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have them beat every 0.3 s; the registry waits for the whole TTL, which no busy machine makes them miss."""

    def made(*args: Any, **more: Any) -> Upkeep:
        return Upkeep(*args, **{**more, "ttl": 0.9})

    monkeypatch.setattr("discovery.registrar.registrar.Upkeep", made)


def lease_of(registrar: Registrar) -> int:
    return int(registrar._registration._lease)  # type: ignore[attr-defined]


def brief(source: Etcd, **options: object) -> Registrar:
    options = {"ttl": 9, "linger": 0, **options}
    return Registrar(source, "10.0.0.1:80", **options)  # type: ignore[arg-type]


def weight(value: float) -> Callable[[Snapshot], bool]:
    return lambda snapshot: [e.weight for e in snapshot.endpoints] == [value]


async def test_a_watcher_sees_exactly_what_was_registered(etcd: EtcdCluster, unique: str) -> None:
    url = f"etcd://{etcd.address}/{unique}/"
    async with Watcher(Etcd(unique, hosts=etcd.addresses)) as watcher:
        async with Registrar(url, FULL, linger=0) as registrar:
            assert (registrar.state, registrar.reason) == ("registered", "")
            (found,) = (await until(watcher, sees("10.0.0.1"))).endpoints
            # The reader shows weight, priority, zone and tls among the metadata, too.
            extra = {"weight": "2.5", "priority": "2", "zone": "east", "tls": "true"}
            assert found == replace(FULL, id=f"{unique}/10.0.0.1:80", metadata={**FULL.metadata, **extra})
            # And what was read can be registered as it is.
            async with Registrar(url, found, id="copy", linger=0):
                assert len(await etcd.get_prefix(f"{unique}/")) == 2
        await until(watcher, sees())
    assert registrar.state == "left"


@pytest.mark.parametrize(
    ("endpoint", "records", "value"),
    [
        (Endpoint(host="::1", port=80), "etcd", '{"Op": 0, "Addr": "[::1]:80"}'),
        (Endpoint(host="a", port=80, weight=3), "etcd", '{"Op": 0, "Addr": "a:80", "Metadata": {"weight": 3}}'),
        (Endpoint(host="a", port=80), "address", "a:80"),
        (Endpoint(host="a", port=80, tls=True), "address", "https://a:80"),
    ],
)
async def test_what_is_written(
    etcd: EtcdCluster, unique: str, endpoint: Endpoint, records: str, value: str
) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    async with Registrar(source, endpoint, id="x", records=records, linger=0):
        assert await etcd.get_prefix(unique) == {f"{unique}/x": value}
        (found,) = await anext(aiter(source.watch()))
        assert (found.address, found.tls, found.weight) == (endpoint.address, endpoint.tls, endpoint.weight)
    assert await etcd.get_prefix(unique) == {}


async def test_leaving_is_seen_within_50_ms(etcd: EtcdCluster, unique: str) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    took = []
    async with Watcher(source) as watcher:
        # A busy machine is busy at times, and what waits for a beat or a probe does so each time.
        for _ in range(20):
            async with brief(source):
                await until(watcher, sees("10.0.0.1"))
                left_at = time.monotonic()
            await until(watcher, sees())
            took.append(time.monotonic() - left_at)
            if took[-1] < 0.05:
                break
    assert min(took) < 0.05, took


async def test_leaving_lingers_after_the_key_is_gone(etcd: EtcdCluster, unique: str) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    async with Watcher(source) as watcher:
        registrar = brief(source, linger=2)
        async with registrar:
            await until(watcher, sees("10.0.0.1"))
            gone = asyncio.create_task(until(watcher, sees()))
            left_at = time.monotonic()
        assert gone.done()
        assert time.monotonic() - left_at > 2
        with pytest.raises(RuntimeError, match="has left"):
            registrar.start()


async def test_an_update_leaves_no_gap(etcd: EtcdCluster, unique: str) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    seen: list[Snapshot] = []
    async with Watcher(source) as watcher, brief(source) as registrar:
        await until(watcher, weight(1))
        watcher.subscribe(seen.append)
        async with patience(2):
            await registrar.update(replace(registrar.endpoint, weight=4))
        assert registrar.endpoint.weight == 4
        await until(watcher, weight(4))
        with pytest.raises(ValueError, match=r"10\.0\.0\.2:80 is another server"):
            await registrar.update(Endpoint(host="10.0.0.2", port=80))
        assert {len(snapshot.endpoints) for snapshot in seen} == {1}


async def test_a_dead_lease_is_replaced(etcd: EtcdCluster, unique: str, quick: None) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    async with Watcher(source) as watcher, brief(source) as registrar:
        await until(watcher, sees("10.0.0.1"))
        lease = lease_of(registrar)
        await etcd.revoke(lease)
        await until(watcher, sees())
        # At the next beat.
        await until(watcher, sees("10.0.0.1"), 1)
        assert lease_of(registrar) != lease
        await stands(registrar, "registered")


@newest
async def test_what_somebody_breaks_is_mended(
    etcd: EtcdCluster, unique: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "discovery.registrar")
    source = Etcd(unique, hosts=etcd.addresses)
    async with Watcher(source) as watcher, brief(source) as registrar:
        await until(watcher, sees("10.0.0.1"))
        await etcd.delete(f"{unique}/10.0.0.1:80")
        await until(watcher, sees())
        # No sign of life tells that: at every third beat the key is read.
        await until(watcher, sees("10.0.0.1"), 2)
        await stands(registrar, "registered")
        await etcd.put(f"{unique}/10.0.0.1:80", "10.0.0.9:80")
        await until(watcher, sees("10.0.0.9"))
        await until(watcher, sees("10.0.0.1"), 2)
        await stands(registrar, "registered")
        assert registrar.reason == ""
    said = [record.getMessage() for record in caplog.records if record.name == "discovery.registrar"]
    name = f"{source!r}: 10.0.0.1:80"
    assert said == [
        f"{name}: registered",
        f"{name}: no longer registered, trying again: {name}: the key was deleted",
        f"{name}: registered",
        f"{name}: no longer registered, trying again: {name}: the key was changed",
        f"{name}: registered",
        f"{name}: left",
    ]


@newest
async def test_health(etcd: EtcdCluster, unique: str, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    source, vote = Etcd(unique, hosts=etcd.addresses), Vote(lambda: False)
    options = {"health": vote, "health_interval": 0.05, "health_timeout": 0.2}
    async with Watcher(source) as watcher, brief(source, **options) as registrar:
        # Entered without being found: what is not healthy at first is never shown.
        assert (registrar.state, registrar.reason) == ("unhealthy", "the health check said no")
        assert (await watcher.ready()).endpoints == ()
        vote.answer = lambda: None
        await until(watcher, sees("10.0.0.1"))
        await stands(registrar, "registered", timeout=1)
        lease = lease_of(registrar)
        vote.answer = lambda: 1 / 0
        await until(watcher, sees())
        await stands(registrar, "unhealthy", reason="ZeroDivisionError: division by zero")
        vote.answer = lambda: True
        await until(watcher, sees("10.0.0.1"))
        vote.answer = lambda: asyncio.sleep(60)
        await until(watcher, sees())
        await stands(registrar, "unhealthy", reason="did not answer within 0.2 s")
        # An update meanwhile does not bring it back, and it stays away over a third beat.
        await registrar.update(replace(registrar.endpoint, weight=3))
        await asyncio.sleep(1.1)
        assert (watcher.snapshot.endpoints, lease_of(registrar)) == ((), lease)
        vote.answer = lambda: True
        await until(watcher, weight(3))
    assert caplog.text.count("unhealthy, withdrawn") == 3


@newest
async def test_the_last_process_with_an_id_wins(
    etcd: EtcdCluster, unique: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    first = Registrar(source, "10.0.0.1:80", id="x", ttl=9, linger=0)
    second = Registrar(source, "10.0.0.2:80", id="x", ttl=9, linger=0)
    async with Watcher(source) as watcher, first:
        await until(watcher, sees("10.0.0.1"))
        async with second:
            await until(watcher, sees("10.0.0.2"))
            await stands(first, "lost", reason="a second process with the same id?", timeout=4)
            versions = watcher.snapshot.version
            await asyncio.sleep(0.7)
            assert (watcher.snapshot.version, second.state) == (versions, "registered")
        await until(watcher, sees("10.0.0.1"), 3)
        await stands(first, "registered")
        # The other way round: the one that was overwritten leaves.
        async with Registrar(source, "10.0.0.3:80", id="x", ttl=9, linger=0):
            await until(watcher, sees("10.0.0.3"))
            await first.leave()
            await asyncio.sleep(0.1)
            assert sees("10.0.0.3")(watcher.snapshot)
    assert caplog.text.count("second process") == 1


@newest
async def test_cancelled_while_registering_leaves_nothing_behind(etcd: EtcdCluster, unique: str) -> None:
    """Wherever it is cut: no key, and no lease."""

    async def leases() -> set[str]:
        async with Etcd(unique, hosts=etcd.addresses).client() as client:
            return {lease["ID"] for lease in (await client.call("/lease/leases", {})).get("leases", [])}

    before = await leases()
    for request in (b"/v3/lease/grant", b"/v3/kv/put"):
        async with Proxy(etcd.address) as way:
            way.hold(request)
            registrar = brief(Etcd(unique, hosts=[way.address], timeout=30))
            entering = asyncio.create_task(registrar.__aenter__())
            await way.saw(request)
            entering.cancel()
            with Stopwatch() as watch, pytest.raises(asyncio.CancelledError):
                await entering
            assert watch.seconds < 1.6
            assert registrar.state == "left"
        assert await etcd.get_prefix(unique) == {}
    assert await leases() <= before
