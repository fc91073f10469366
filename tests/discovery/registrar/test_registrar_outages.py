"""Registrars whose registry is out of reach, silent, gone, or has forgotten everything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from patience import Stopwatch, patience
from registrar_rig import stands
from registry_rig import Proxy, sees, until

from discovery import Consul, Etcd, Registrar, Snapshot, Watcher
from lbclient.sandbox import ConsulServer, EtcdCluster, start_consul, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks")

PREFIX = "users"


def lease_of(registrar: Registrar) -> int:
    return int(registrar._registration._lease)  # type: ignore[attr-defined]


def quick(source: Etcd | Consul, **options: Any) -> Registrar:
    """One with beats of 0.3 s; etcd makes 2 s of any shorter TTL."""
    return Registrar(source, "10.0.0.1:80", **{"ttl": 0.9, "linger": 0, **options})


async def test_all_of_these_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them waits for seconds, for the end of a TTL or the start of a server."""
    monkeypatch.setattr("discovery.registrar.registrar._SHORTEST_TTL", 0.9)
    caplog.set_level(logging.INFO, "discovery.registrar")

    async def on_etcd(scenario: Callable[[EtcdCluster], Awaitable[None]], members: int = 1) -> None:
        async with await start_etcd("3.5", own=True, members=members) as own:
            await scenario(own)

    async def on_consul(scenario: Callable[[ConsulServer], Awaitable[None]]) -> None:
        async with await start_consul(own=True) as own:
            await scenario(own)

    async with asyncio.TaskGroup() as group:
        group.create_task(on_etcd(lambda own: etcd_out_of_reach_for_longer_than_the_ttl(own, caplog)))
        group.create_task(on_etcd(etcd_gone_for_longer_than_the_ttl_and_without_its_data))
        group.create_task(on_etcd(another_member_takes_over_within_the_ttl, members=3))
        group.create_task(on_consul(an_agent_cut_off_for_longer_than_the_ttl))
        group.create_task(on_consul(an_agent_gone_for_longer_than_the_ttl_and_without_its_data))


async def etcd_out_of_reach_for_longer_than_the_ttl(own: EtcdCluster, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, and later."""
    async with Watcher(Etcd(PREFIX, hosts=own.addresses)) as watcher, Proxy(own.address) as way:
        await way.cut()
        began_at = time.monotonic()
        # With a lease that does not run out because a busy machine pauses us.
        registrar = Registrar(Etcd(PREFIX, hosts=[way.address]), "10.0.0.1:80", ttl=4, linger=0, wait=0.3)
        with Stopwatch() as watch:
            await registrar.__aenter__()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(registrar)
            assert time.monotonic() - began_at > 0.25
            assert watch.seconds < 1
            assert registrar.state == "registering"
            with pytest.raises(TimeoutError, match=r"not registered within 0.1 s: etcd at .*: cannot connect"):
                await registrar.registered(0.1)
            await way.accept()
            await until(watcher, sees("10.0.0.1"), 3)
            await stands(registrar, "registered", timeout=1)
            await way.cut()
            # The next beat comes after a third of the TTL.
            await stands(registrar, "registered", reason="cannot connect", timeout=1.7)
            await until(watcher, sees(), 8)
            await stands(registrar, "lost", reason="cannot connect", timeout=3)
            await way.accept()
            await until(watcher, sees("10.0.0.1"), 4)
            await stands(registrar, "registered", timeout=1)
    said = [line for record in caplog.records if (line := record.getMessage()).startswith(registrar.name)]
    assert [line.removeprefix(registrar.name).split(": ")[1] for line in said] == [
        "not registered yet, trying again",
        "registered",
        "no sign of life arrives, trying again",
        "no longer registered, trying again",
        "registered",
        "left",
    ]


async def etcd_gone_for_longer_than_the_ttl_and_without_its_data(own: EtcdCluster) -> None:
    source = Etcd(PREFIX, hosts=own.addresses)
    async with Watcher(source) as watcher, quick(source) as registrar:
        await until(watcher, sees("10.0.0.1"), 4)
        await own.kill_all()
        await stands(registrar, "lost", timeout=3)
        lease = lease_of(registrar)
        await own.wipe()
        await stands(registrar, "registered", timeout=4)
        assert lease_of(registrar) != lease
        assert len(await own.get_prefix(PREFIX)) == 1
        received_at = watcher.snapshot.received_at or 0
        await until(watcher, lambda s: sees("10.0.0.1")(s) and (s.received_at or 0) > received_at, 5)
        # Leaving takes a bounded time when etcd does not answer, and next to none when there is none.
        other = quick(source, id="other", linger=30)
        await other.__aenter__()
        await own.pause()
        await asyncio.sleep(0.4)
        with Stopwatch() as watch:
            await other.leave()
        assert watch.seconds < 2
        assert other.state == "left"
        assert "no answer within 1 s" in other.reason
        await own.resume()
        await own.kill()
        with Stopwatch() as watch:
            await registrar.leave()
        assert watch.seconds < 0.6
        assert "cannot connect" in registrar.reason


async def another_member_takes_over_within_the_ttl(three: EtcdCluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        status = [await _status(address) for address in three.addresses]
        # Not the leader: there would be no quorum for as long as the election takes.
        used = next(n for n, (member, leader) in enumerate(status) if member != leader)
        other = three.addresses[used - 1]
        source = Etcd(PREFIX, hosts=[three.addresses[used], other])
        watcher = await stack.enter_async_context(Watcher(Etcd(PREFIX, hosts=[other])))
        registrar = await stack.enter_async_context(Registrar(source, "10.0.0.1:80", ttl=6, linger=0))
        await until(watcher, sees("10.0.0.1"))
        versions, lease, revision = watcher.snapshot.version, lease_of(registrar), await three.revision()
        await three.pause(used)
        await stands(registrar, "registered", reason="no answer within 2 s", timeout=6)
        async with patience(5):
            await registrar._standing.until(lambda: not registrar.reason)
        await asyncio.sleep(6.2)
        # Nothing was written anew, either: the signs of life of a thousand servers must not wake all watchers.
        after = await three.members[used - 1].revision()
        assert (watcher.snapshot.version, lease_of(registrar), after) == (versions, lease, revision)
        await registrar.leave()
        await until(watcher, sees())
        await three.resume(used)


async def _status(address: str) -> tuple[str, str]:
    async with Etcd("x", hosts=[address]).client() as client:
        answer = await client.call("/maintenance/status", {})
    return answer["header"]["member_id"], answer["leader"]


async def an_agent_cut_off_for_longer_than_the_ttl(own: ConsulServer) -> None:
    """Cut off for longer than the TTL it is critical, and passing as soon as the way is open."""
    seen: list[Snapshot] = []
    async with (
        Watcher(Consul(PREFIX, address=own.address)) as watcher,
        Proxy(own.address) as way,
        # Not one that a busy machine pauses for as long as this.
        quick(Consul(PREFIX, address=way.address), ttl=4) as registrar,
    ):
        await until(watcher, sees("10.0.0.1"))
        watcher.subscribe(seen.append)
        await asyncio.sleep(5)
        assert {(snapshot.version, snapshot.state) for snapshot in seen} <= {(watcher.snapshot.version, "live")}
        await way.cut()
        await stands(registrar, "registered", reason="cannot connect", timeout=2)
        await until(watcher, sees(), 6)
        await stands(registrar, "lost", reason="cannot connect", timeout=2)
        await way.accept()
        await until(watcher, sees("10.0.0.1"), 3)
        await stands(registrar, "registered")


async def an_agent_gone_for_longer_than_the_ttl_and_without_its_data(own: ConsulServer) -> None:
    source = Consul(PREFIX, address=own.address)
    async with Watcher(source) as watcher, quick(source) as registrar:
        await until(watcher, sees("10.0.0.1"), 5)
        await own.kill()
        await stands(registrar, "lost", timeout=4)
        await own.wipe()
        await stands(registrar, "registered", timeout=4)
        received_at = watcher.snapshot.received_at or 0
        await until(watcher, lambda s: sees("10.0.0.1")(s) and (s.received_at or 0) > received_at, 5)
        # Leaving takes a bounded time when the agent does not answer, and next to none when there is none.
        other = quick(source, id="other", linger=30)
        await other.__aenter__()
        await own.pause()
        await asyncio.sleep(0.4)
        with Stopwatch() as watch:
            await other.leave()
        assert watch.seconds < 2
        assert (other.state, other.reason) == ("left", "no answer within 1 s")
        await own.resume()
        await own.kill()
        with Stopwatch() as watch:
            await registrar.leave()
        assert watch.seconds < 0.6
