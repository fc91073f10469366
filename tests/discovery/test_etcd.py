"""Etcd against real servers of two lines: what is registered reaches the snapshot, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import trustme
from registry_rig import Proxy, until

from discovery import Etcd, Snapshot, SourceError, Watcher
from discovery.etcd_client import EtcdClient
from lbclient.sandbox import EtcdCluster, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def hosts(snapshot: Snapshot) -> list[str]:
    return [endpoint.host for endpoint in snapshot.endpoints]


def sees(*expected: str) -> Callable[[Snapshot], bool]:
    return lambda snapshot: snapshot.state == "live" and hosts(snapshot) == list(expected)


def stale(snapshot: Snapshot) -> bool:
    return snapshot.state == "stale"


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


async def test_puts_and_deletes_reach_the_snapshot(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Watcher(Etcd(unique, hosts=etcd.addresses)) as watcher:
        first = await watcher.ready(5)
        assert (hosts(first), first.state, first.endpoints[0].id) == (["10.0.0.1"], "live", f"{unique}/a")
        await etcd.put(f"{unique}/b", '{"Op":0,"Addr":"10.0.0.2:80","Metadata":{"zone":"eu"}}')
        second = await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        assert second.endpoints[1].zone == "eu"
        await etcd.put(f"{unique}/a", "10.0.0.3:80")
        await until(watcher, sees("10.0.0.2", "10.0.0.3"))
        await etcd.delete_prefix(f"{unique}/")
        await until(watcher, sees())


async def test_an_expired_lease_takes_its_key_away(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80", ttl=1)
    async with Watcher(Etcd(unique, hosts=etcd.addresses)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await until(watcher, sees())


async def test_the_prefix_ends_at_a_slash(etcd: EtcdCluster, unique: str) -> None:
    for key in ("a", "a/", "a/1", "a/b/2", "a0", "a2/3"):
        await etcd.put(f"{unique}/{key}", f"10.0.0.{key[-1] if key[-1].isdigit() else 9}:80")
    source = Etcd(f"{unique}/a", hosts=etcd.addresses)
    async with Watcher(source) as watcher:
        assert hosts(await watcher.ready(5)) == ["10.0.0.1", "10.0.0.2", "10.0.0.9"]
        await etcd.put(f"{unique}/a2/4", "10.0.0.4:80")
        await etcd.put(f"{unique}/a/5", "10.0.0.5:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.5", "10.0.0.9"))


async def test_a_list_of_several_pages_is_of_one_revision(
    etcd: EtcdCluster, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.etcd._PAGE", 2)
    for number in range(1, 6):
        await etcd.put(f"{unique}/{number}", f"10.0.0.{number}:80")
    real, calls = EtcdClient.call, []

    async def call(self: EtcdClient, path: str, body: dict[str, Any], **options: Any) -> dict[str, Any]:
        answer = await real(self, path, body, **options)
        calls.append(path)
        if len(calls) == 1:
            # While the pages are turned: one in front, one behind, one away.
            await etcd.put(f"{unique}/0", "10.0.0.10:80")
            await etcd.put(f"{unique}/6", "10.0.0.6:80")
            await etcd.delete(f"{unique}/5")
        return answer

    monkeypatch.setattr(EtcdClient, "call", call)
    async with Watcher(Etcd(unique, hosts=etcd.addresses)) as watcher:
        assert hosts(await watcher.ready(5)) == [f"10.0.0.{number}" for number in range(1, 6)]
        assert len(calls) == 3
        await until(watcher, sees("10.0.0.1", "10.0.0.10", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6"))


async def test_keys_and_values_may_be_any_bytes(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}ü/é".encode() + b"\xff", "10.0.0.1:80")
    async with Watcher(Etcd(f"{unique}ü", hosts=etcd.addresses)) as watcher:
        snapshot = await watcher.ready(5)
        assert snapshot.endpoints[0].id == f"{unique}ü/é\\xff"
        await etcd.put(f"{unique}ü/b", b"\x00\xff")
        await until(watcher, lambda snapshot: snapshot.skipped == 1)
        assert watcher.snapshot.state == "live"


async def test_broken_records_are_counted_and_the_last_good_value_stays(
    etcd: EtcdCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.put(f"{unique}/", "")
    await etcd.put(f"{unique}/bad", "nonsense")
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    source = Etcd(unique, hosts=etcd.addresses)
    async with Watcher(source) as watcher:
        snapshot = await watcher.ready(5)
        assert (hosts(snapshot), snapshot.skipped) == (["10.0.0.1"], 1)
        assert dict(source.skipped) == {f"{unique}/bad": "expected host:port, got 'nonsense'"}
        await etcd.put(f"{unique}/a", "broken")
        await until(watcher, lambda snapshot: snapshot.skipped == 2)
        assert hosts(watcher.snapshot) == ["10.0.0.1"]
        await etcd.put(f"{unique}/a", "10.0.0.2:80")
        assert (await until(watcher, sees("10.0.0.2"))).skipped == 1
    said = [message for message in caplog.messages if "skipped" in message]
    assert len(said) == 2
    assert f"{source!r}: record '{unique}/bad' skipped" in said[0]


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


async def test_a_probe_is_a_sign_of_life_and_changes_nothing(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Watcher(Etcd(unique, hosts=etcd.addresses, probe_interval=0.1)) as watcher:
        first = await watcher.ready(5)
        later = await until(watcher, lambda snapshot: snapshot.received_at > first.received_at + 0.3)
        assert (later.version, later.state) == (1, "live")
        assert later.endpoints is first.endpoints


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


async def test_late_events_are_no_lost_events(etcd: EtcdCluster, unique: str) -> None:
    """A doubt needs a second look, and an event in between proves that the stream works."""
    async with Proxy(etcd.address) as way:
        async with Watcher(Etcd(unique, hosts=[way.address], probe_interval=0.05)) as watcher:
            await watcher.ready(5)
            await way.saw(b"/v3/kv/range", 4)
            seen = history(watcher)
            for number in range(1, 4):
                way.hold(b"POST /v3/watch")
                probes = way.sent.count(b"/v3/kv/range")
                await etcd.put(f"{unique}/{number}", f"10.0.0.{number}:80")
                await etcd.delete(f"{unique}/{number - 1}")
                await way.saw(b"/v3/kv/range", probes + 1)
                way.release()
                await until(watcher, sees(f"10.0.0.{number}"))
        assert not [snapshot for snapshot in seen[:-1] if snapshot.state != "live"]


async def test_no_false_alarm_under_load(etcd: EtcdCluster, unique: str) -> None:
    async with Watcher(Etcd(unique, hosts=etcd.addresses, probe_interval=0.02)) as watcher:
        await watcher.ready(5)
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


async def test_what_comes_together_is_one_change(etcd: EtcdCluster, unique: str) -> None:
    async with (
        Proxy(etcd.address) as way,
        Watcher(Etcd(unique, hosts=[way.address], probe_interval=0.5)) as watcher,
    ):
        await watcher.ready(5)
        await way.saw(b"/v3/watch")
        way.hold(b"POST /v3/watch")
        for number in range(1, 31):
            await etcd.put(f"{unique}/{number}", f"10.0.0.{number}:80")
        way.release()
        snapshot = await until(watcher, lambda snapshot: len(snapshot.endpoints) == 30)
        assert snapshot.version <= 4


async def test_two_watchers_of_one_source(etcd: EtcdCluster, unique: str) -> None:
    source = Etcd(unique, hosts=etcd.addresses)
    async with Watcher(source) as one, Watcher(source) as two:
        await etcd.put(f"{unique}/a", "10.0.0.1:80")
        await until(one, sees("10.0.0.1"))
        await until(two, sees("10.0.0.1"))
        await etcd.delete(f"{unique}/a")
        await until(one, sees())
        await until(two, sees())


@pytest.mark.parametrize(("asked", "there"), [("/{}", "{}/"), ("{}", "/{}/")])
async def test_a_slash_too_much_or_missing_is_hinted_at_once(
    asked: str, there: str, etcd: EtcdCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.put(there.format(unique) + "a", "10.0.0.1:80")
    source = Etcd(asked.format(unique), hosts=etcd.addresses)
    for _ in range(2):
        async with Watcher(source) as watcher:
            assert hosts(await watcher.ready(5)) == []
            await etcd.put(asked.format(unique) + "/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.2"))
        await etcd.delete_prefix(asked.format(unique) + "/")
    (said,) = [message for message in caplog.messages if "has no keys" in message]
    assert f"etcd://{etcd.address}/{there.format(unique)} has 1" in said


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


async def test_a_wiped_etcd_is_believed(own: EtcdCluster, unique: str) -> None:
    for number in range(1, 4):
        await own.put(f"{unique}/{number}", f"10.0.0.{number}:80")
    async with Watcher(Etcd(unique, hosts=own.addresses)) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        await own.wipe()
        await until(watcher, sees(), 4)
        await own.put(f"{unique}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.2"))


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
        await three.kill(0)
        await until(watcher, stale, 1)
        await until(watcher, sees("10.0.0.1"), 5)
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
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 8)
        await three.members[0].put(f"{unique}/c", "10.0.0.3:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        # A new watcher that begins with the silent one.
        late = Etcd(unique, hosts=[ways[followed].address, ways[0].address], timeout=1)
        other = await stack.enter_async_context(Watcher(late))
        await until(other, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"), 3)
        await three.resume(followed)


async def test_a_member_cut_off_from_the_others_does_not_stay_silent(three: EtcdCluster, unique: str) -> None:
    await three.put(f"{unique}/a", "10.0.0.1:80")
    # No probe: it is the watch itself that ends, thanks to the header.
    async with Watcher(Etcd(unique, hosts=three.addresses[:1], probe_interval=60)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await asyncio.gather(three.kill(1), three.kill(2))
        away = await until(watcher, stale, 8)
        assert "no leader" in away.reason


async def test_construction_does_nothing_but_construct(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a blocking request")

    monkeypatch.setattr("requests.sessions.Session.request", refuse)
    Etcd("a")  # the first one imports
    began_at = time.perf_counter()
    sources = [Etcd("a", hosts=["192.0.2.1:2379", "nowhere.invalid"]) for _ in range(100)]
    assert time.perf_counter() - began_at < 0.1
    async with EtcdClient(sources[0].hosts) as client:
        assert client.members == ("192.0.2.1:2379", "nowhere.invalid:2379")


async def test_tls(etcd: EtcdCluster, unique: str) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Proxy(etcd.address, server) as way:
        trusting = Etcd(unique, hosts=[way.address], tls=client)
        assert repr(trusting) == f"etcds://{way.address}/{unique}/"
        async with Watcher(trusting) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await etcd.put(f"{unique}/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        with pytest.raises(SourceError, match="TLS certificate is not accepted"):
            await anext(Etcd(unique, hosts=[way.address], tls=True).watch())
    with pytest.raises(SourceError, match="no TLS connection, does it speak plain HTTP"):
        await anext(Etcd(unique, hosts=etcd.addresses, tls=client).watch())


async def test_all_members_are_named_when_none_can_be_read(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = Etcd(unique, hosts=["127.0.0.1:1", "127.0.0.1:2"])
    with pytest.raises(SourceError) as caught:
        await anext(source.watch())
    assert str(caught.value) == (
        "etcd at http://127.0.0.1:1: cannot connect: Connect call failed ('127.0.0.1', 1); "
        "etcd at http://127.0.0.1:2: cannot connect: Connect call failed ('127.0.0.1', 2)"
    )
