"""Etcd against real servers of two lines: what is registered reaches the snapshot, whatever happens on the way."""

from __future__ import annotations

import gc
import socket
import ssl
import time
from typing import Any

import pytest
import trustme
from registry_rig import Proxy, hosts, sees, until

from discovery import Etcd, SourceError, Watcher
from discovery.etcd.client import EtcdClient
from lbclient.sandbox import EtcdCluster

pytestmark = pytest.mark.usefixtures("nothing_leaks")


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
        await etcd.delete(f"{unique}/b")
        await etcd.delete(f"{unique}/a")
        await until(watcher, sees())


async def test_what_is_deleted_all_at_once_is_held(etcd: EtcdCluster, unique: str) -> None:
    for number in (1, 2, 3):
        await etcd.put(f"{unique}/{number}", f"10.0.0.{number}:80")
    async with Watcher(Etcd(unique, hosts=etcd.addresses), hold_for=0.3) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        await etcd.delete_prefix(f"{unique}/")
        held = await until(watcher, lambda snapshot: snapshot.state == "held")
        assert hosts(held) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
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
    monkeypatch.setattr("discovery.etcd.source._PAGE", 2)
    monkeypatch.setattr("discovery.etcd.source._LARGEST_PAGE", 2)
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
        await until(watcher, sees("10.0.0.1", "10.0.0.10", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6"), 2)


async def test_keys_and_values_may_be_any_bytes(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}ü/é".encode() + b"\xff", "10.0.0.1:80")  # type: ignore[arg-type]
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


async def test_a_probe_is_a_sign_of_life_and_changes_nothing(etcd: EtcdCluster, unique: str) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Watcher(Etcd(unique, hosts=etcd.addresses, probe_interval=0.1)) as watcher:
        first = await watcher.ready(5)
        later = await until(watcher, lambda snapshot: (snapshot.received_at or 0) > (first.received_at or 0) + 0.3)
        assert (later.version, later.state) == (1, "live")
        assert later.endpoints is first.endpoints


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
    assert f"etcd://{','.join(etcd.addresses)}/{there.format(unique)} has 1" in said


async def test_nothing_blocks_the_loop(etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AioClient` as it comes asks the server for its version in its constructor, with `requests`."""
    blocking: list[object] = []
    monkeypatch.setattr("requests.sessions.Session.request", lambda *args, **_: blocking.append(args))
    Etcd("a")  # the first one imports
    gc.collect()  # or it might come in between
    began_at = time.thread_time()
    with monkeypatch.context() as patch:
        for name in ("getaddrinfo", "create_connection", "socket"):
            patch.setattr(socket, name, lambda *args, **_: blocking.append(args))
        for _ in range(100):
            Etcd("a", hosts=["192.0.2.1:2379", "nowhere.invalid"])
    assert time.thread_time() - began_at < 0.1
    async with EtcdClient(etcd.addresses) as client:
        await client.call("/kv/range", {"key": "YQ=="})
    assert blocking == []


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
