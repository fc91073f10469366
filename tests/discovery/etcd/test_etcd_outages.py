"""Etcd when things go wrong: killed, frozen, wiped, cut off, compacted, and events that do not arrive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from registry_rig import Proxy, hosts, sees, stale, until

from discovery import Etcd, Snapshot, SourceError, Watcher
from discovery.etcd.client import EtcdClient
from lbclient.sandbox import EtcdCluster, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest_asyncio.fixture
async def own() -> AsyncIterator[EtcdCluster]:
    """One that may be killed."""
    async with await start_etcd("3.5", own=True) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def three() -> AsyncIterator[EtcdCluster]:
    async with await start_etcd("3.5", own=True, members=3) as cluster:
        yield cluster


def history(watcher: Watcher) -> list[Snapshot]:
    """All snapshots from now on, as they come."""
    seen: list[Snapshot] = []
    watcher.subscribe(seen.append)
    return seen


async def test_what_changed_while_we_were_away_is_replaced_not_merged(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    await etcd.put(f"{unique}/b", "10.0.0.2:80")
    async with Proxy(etcd.address) as way, Watcher(Etcd(unique, hosts=[way.address])) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        await way.cut()
        away = await until(watcher, stale, 1)
        assert (hosts(away), away.version) == (["10.0.0.1", "10.0.0.2"], 1)
        await etcd.delete(f"{unique}/a")
        await etcd.put(f"{unique}/c", "10.0.0.3:80")
        await etcd.compact()
        await way.accept()
        await until(watcher, sees("10.0.0.2", "10.0.0.3"), 5)


async def test_a_watch_from_a_compacted_revision_lists_again(
    etcd: EtcdCluster, unique: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, listed = Etcd._list, []

    async def compact_behind(self: Etcd, client: EtcdClient, records: Any) -> Any:
        view = await real(self, client, records)
        listed.append(view)
        if len(listed) == 1:
            await etcd.put(f"{unique}/a", "10.0.0.1:80")
            await etcd.put(f"{unique}/b", "10.0.0.2:80")
            await etcd.delete(f"{unique}/a")
            await etcd.compact()
        return view

    monkeypatch.setattr(Etcd, "_list", compact_behind)
    async with Watcher(Etcd(unique, hosts=etcd.addresses)) as watcher:
        assert hosts(await watcher.ready(5)) == []
        await until(watcher, sees("10.0.0.2"), 3)
    assert len(listed) == 2
    assert "compacted away" in caplog.text


async def test_lost_events_are_noticed_by_the_probe(
    etcd: EtcdCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream is open and silent, everything else works."""
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Proxy(etcd.address) as way:
        async with Watcher(Etcd(unique, hosts=[way.address], probe_interval=0.2)) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await way.saw(b"/v3/kv/range", 3)
            way.hold(b"POST /v3/watch")
            for change in (("b", "10.0.0.2:80"), ("a", "10.0.0.3:80")):
                await etcd.put(f"{unique}/{change[0]}", change[1])
            await until(watcher, sees("10.0.0.2", "10.0.0.3"), 3)
            assert "were lost" in caplog.text
        way.release()


async def test_late_events_are_no_lost_events(
    etcd: EtcdCluster, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doubt needs a second look, and an event in between proves that the stream works."""
    # The second look is later than any busy machine is.
    monkeypatch.setattr("discovery.etcd.source._DOUBT", 20)
    async with Proxy(etcd.address) as way:
        for number in range(1, 4):
            before = way.sent.count(b"/v3/kv/range")
            async with Watcher(Etcd(unique, hosts=[way.address], probe_interval=0.05, timeout=20)) as watcher:
                # There are looks as soon as the stream is open.
                await way.saw(b"/v3/kv/range", before + 4)
                seen = history(watcher)
                way.hold(b"POST /v3/watch")
                looks = way.sent.count(b"/v3/kv/range")
                await etcd.put(f"{unique}/{number}", f"10.0.0.{number}:80")
                await etcd.delete(f"{unique}/{number - 1}")
                # The next look finds what no event has told; or the one under way did, and there is none for long.
                with contextlib.suppress(TimeoutError):
                    await way.saw(b"/v3/kv/range", looks + 1)
                await asyncio.sleep(0.1)
                way.release()
                await until(watcher, sees(f"10.0.0.{number}"))
                assert {snapshot.state for snapshot in seen} == {"live"}


async def test_no_false_alarm_under_load(etcd: EtcdCluster, unique: str) -> None:
    async with Watcher(Etcd(unique, hosts=etcd.addresses, probe_interval=0.02, timeout=20)) as watcher:
        await until(watcher, lambda snapshot: snapshot.state == "live")
        seen = history(watcher)

        async def churn(worker: int) -> None:
            for number in range(40):
                key = f"{unique}/{worker}-{number % 3}"
                await (etcd.delete(key) if number % 3 == 2 else etcd.put(key, f"10.0.{worker}.{number % 7}:80"))

        await asyncio.gather(*(churn(worker) for worker in range(8)))
        await etcd.put(f"{unique}/end", "10.9.9.9:80")
        await until(watcher, lambda snapshot: "10.9.9.9" in hosts(snapshot))
        assert {snapshot.state for snapshot in seen} == {"live"}
        registered = sorted((await etcd.get_prefix(f"{unique}/")).values())
        assert sorted({e.address for e in watcher.snapshot.endpoints}) == sorted(set(registered))


async def test_kill_and_restart(own: EtcdCluster, unique: str) -> None:
    await own.put(f"{unique}/a", "10.0.0.1:80")
    async with Watcher(Etcd(unique, hosts=own.addresses)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await own.kill()
        away = await until(watcher, stale, 0.5)
        assert (hosts(away), away.version) == (["10.0.0.1"], 1)
        await until(watcher, lambda snapshot: "cannot connect" in snapshot.reason)
        await own.restart()
        assert (await until(watcher, sees("10.0.0.1"), 4)).version == 1
        await own.put(f"{unique}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))


async def test_a_wiped_etcd_takes_nothing_away_for_a_while(own: EtcdCluster, unique: str) -> None:
    for number in range(1, 4):
        await own.put(f"{unique}/{number}", f"10.0.0.{number}:80")
    async with Watcher(Etcd(unique, hosts=own.addresses)) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        await own.wipe()
        held = await until(watcher, lambda snapshot: snapshot.state == "held", 4)
        assert (hosts(held), held.version) == (["10.0.0.1", "10.0.0.2", "10.0.0.3"], 1)
        # Servers register again, one after the other.
        await own.put(f"{unique}/b", "10.0.0.2:80")
        await until(watcher, lambda snapshot: set(snapshot.held) == {"10.0.0.1:80", "10.0.0.3:80"})
        watcher.accept()
        await until(watcher, sees("10.0.0.2"))


async def test_the_first_server_that_is_back_in_a_wiped_etcd_sends_nobody_away(
    own: EtcdCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 4):
        await own.put(f"{unique}/{number}", f"10.0.0.{number}:80")
    async with Proxy(own.address) as way, Watcher(Etcd(unique, hosts=[way.address])) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        await way.cut()
        await own.wipe()
        await own.put(f"{unique}/2", "10.0.0.2:80")
        await way.accept()
        held = await until(watcher, lambda snapshot: snapshot.state == "held", 4)
        assert set(held.held) == {"10.0.0.1:80", "10.0.0.3:80"}
        assert hosts(held) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        assert "the registry has lost data, 2 of 3 endpoints with it: 2 endpoints held" in caplog.text
        # An ordinary outage of the same etcd is none of that.
        watcher.accept()
        await own.put(f"{unique}/3", "10.0.0.3:80")
        await until(watcher, sees("10.0.0.2", "10.0.0.3"))
        await way.cut()
        await own.delete(f"{unique}/3")
        await way.accept()
        await until(watcher, sees("10.0.0.2"), 4)


async def test_a_silent_member_is_noticed_within_seven_seconds(own: EtcdCluster, unique: str) -> None:
    await own.put(f"{unique}/a", "10.0.0.1:80")
    async with Watcher(Etcd(unique, hosts=own.addresses)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await own.put(f"{unique}/b", "10.0.0.2:80")
        # An event came through: it is the stream that falls silent, not its opening.
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        await own.pause()
        away = await until(watcher, stale, 7)
        assert "no answer within 2 s" in away.reason
        # Silent at the time of listing, too.
        async with Watcher(Etcd(unique, hosts=own.addresses)) as late:
            await until(late, lambda snapshot: "no answer within 2 s" in snapshot.reason, 3)
            assert late.snapshot.state == "starting"
        await own.resume()
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 5)


async def test_another_member_takes_over(three: EtcdCluster, unique: str) -> None:
    await three.put(f"{unique}/a", "10.0.0.1:80")
    async with contextlib.AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(Proxy(address)) for address in three.addresses]
        source = Etcd(unique, hosts=[way.address for way in ways], probe_interval=1, timeout=1)
        watcher = await stack.enter_async_context(Watcher(source))
        await until(watcher, sees("10.0.0.1"))
        # Another member may have taken over before kill() returns.
        went = asyncio.create_task(until(watcher, stale, 5))
        await three.kill(0)
        await went
        # As long as an election may take, if it was the leader: no list is confirmed before.
        await until(watcher, sees("10.0.0.1"), 15)
        await three.put(f"{unique}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        await three.restart(0)
        asked = [len(way.sent) for way in ways]
        received_at = watcher.snapshot.received_at or 0
        await until(watcher, lambda snapshot: (snapshot.received_at or 0) > received_at)
        followed = next(n for n, way in enumerate(ways) if len(way.sent) > asked[n])
        assert followed != 0
        await three.pause(followed)
        await until(watcher, stale, 3)
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 15)
        await three.members[0].put(f"{unique}/c", "10.0.0.3:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        # A new watcher that begins with the silent one.
        late = Etcd(unique, hosts=[ways[followed].address, ways[0].address], timeout=1)
        other = await stack.enter_async_context(Watcher(late))
        await until(other, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"), 5)
        await three.resume(followed)


async def test_a_member_cut_off_from_the_others_does_not_stay_silent(three: EtcdCluster, unique: str) -> None:
    await three.put(f"{unique}/a", "10.0.0.1:80")
    # No probe: it is the watch itself that ends, thanks to the header.
    async with Watcher(Etcd(unique, hosts=three.addresses[:1], probe_interval=60)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await asyncio.gather(three.kill(1), three.kill(2))
        away = await until(watcher, stale, 8)
        assert "no leader" in away.reason


async def test_all_members_are_named_when_none_can_be_read(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = Etcd(unique, hosts=["127.0.0.1:1", "127.0.0.1:2"])
    with pytest.raises(SourceError) as caught:
        await anext(source.watch())
    assert str(caught.value) == (
        "etcd at http://127.0.0.1:1: cannot connect: Connect call failed ('127.0.0.1', 1); "
        "etcd at http://127.0.0.1:2: cannot connect: Connect call failed ('127.0.0.1', 2)"
    )
