"""Consul against a real server: what is registered and healthy reaches the snapshot, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import trustme
from registry_rig import Proxy, sees, stale, until

from discovery import Consul, SourceError, Watcher
from lbclient.sandbox import ConsulServer, start_consul

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest_asyncio.fixture
async def own() -> AsyncIterator[ConsulServer]:
    """One that may be killed."""
    async with await start_consul(own=True) as server:
        yield server


async def test_registrations_reach_the_snapshot(consul: ConsulServer, unique: str) -> None:
    meta = {"zone": "eu-1", "version": "2"}
    await consul.register(unique, "10.0.0.1", 80, id=f"{unique}-1", meta=meta, weights=(7, 2))
    async with Watcher(Consul(unique, address=consul.address)) as watcher:
        (first,) = (await until(watcher, sees("10.0.0.1"))).endpoints
        assert (first.address, first.zone, first.weight) == ("10.0.0.1:80", "eu-1", 7)
        assert dict(first.metadata) == meta
        assert first.id.endswith(f"/{unique}-1")
        await consul.register(unique, "10.0.0.2", 80, id=f"{unique}-2", wait=False)
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        await consul.deregister(f"{unique}-1", wait=False)
        await until(watcher, sees("10.0.0.2"))
        await consul.deregister(f"{unique}-2", wait=False)
        await until(watcher, sees())


async def test_critical_is_never_there_and_warning_on_request(consul: ConsulServer, unique: str) -> None:
    await consul.register(unique, "10.0.0.1", 80, id=unique, check_ttl=600, weights=(10, 3))
    address = consul.address
    async with (
        Watcher(Consul(unique, address=address)) as strict,
        Watcher(Consul(unique, address=address, passing=False)) as lax,
    ):
        for watcher in (strict, lax):
            assert (await until(watcher, sees("10.0.0.1"))).endpoints[0].weight == 10
        await consul.set_check(unique, "warning")
        await until(strict, sees())
        await until(lax, lambda snapshot: [endpoint.weight for endpoint in snapshot.endpoints] == [3])
        await consul.set_check(unique, "critical")
        await until(lax, sees())
        await consul.set_check(unique, "passing")
        for watcher in (strict, lax):
            assert (await until(watcher, sees("10.0.0.1"))).endpoints[0].weight == 10
        await consul._ask("PUT", f"/v1/agent/service/maintenance/{unique}?enable=true")
        for watcher in (strict, lax):
            await until(watcher, sees())


async def test_tags(consul: ConsulServer, unique: str) -> None:
    for number, tags in enumerate((["a"], ["a", "b"], ["b"], []), 1):
        await consul.register(unique, f"10.0.0.{number}", 80, tags=tags)
    async with contextlib.AsyncExitStack() as stack:
        for tag, expected in (
            ("a", ["10.0.0.1", "10.0.0.2"]),
            (["a", "b"], ["10.0.0.2"]),
            (None, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]),
        ):
            source = Consul(unique, address=consul.address, tag=tag)
            await until(await stack.enter_async_context(Watcher(source)), sees(*expected))


async def test_without_an_address_it_is_the_node(consul: ConsulServer, unique: str) -> None:
    await consul.register(unique, "", 80)
    async with Watcher(Consul(unique, address=consul.address)) as watcher:
        await until(watcher, sees("127.0.0.1"))


async def test_what_is_no_endpoint_is_skipped(
    consul: ConsulServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    await consul.register(unique, "10.0.0.1", 80)
    await consul.register(unique, "10.0.0.2", 0, id="no-port")
    await consul.register(unique, "not an address", 80, id="no-host")
    source = Consul(unique, address=consul.address)
    async with Watcher(source) as watcher:
        assert (await until(watcher, sees("10.0.0.1"))).skipped == 2
        reasons = {key.rpartition("/")[2]: reason for key, reason in source.skipped.items()}
        assert reasons.keys() == {"no-port", "no-host"}
        assert "port must be" in reasons["no-port"]
        await consul.register(unique, "10.0.0.3", 80)
        await until(watcher, sees("10.0.0.1", "10.0.0.3"))
        await consul.register(unique, "10.0.0.2", 80, id="no-port")
        assert (await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))).skipped == 1
    assert len([message for message in caplog.messages if "skipped" in message]) == 2
    for each in ("no-port", "no-host"):
        await consul.deregister(each)


@pytest.mark.parametrize("name", ["a b", "a?b=c", "a#b", "a%2Fb", "größe", "a;b&c=d", "x:y"])
async def test_every_name_that_consul_takes(consul: ConsulServer, unique: str, name: str) -> None:
    await consul.register(f"{unique}{name}", "10.0.0.1", 80, id=unique, wait=False)
    async with Watcher(Consul(f"{unique}{name}", address=consul.address)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await consul.deregister(unique, wait=False)
        await until(watcher, sees())


async def test_a_probe_is_a_sign_of_life_and_changes_nothing(consul: ConsulServer, unique: str) -> None:
    await consul.register(unique, "10.0.0.1", 80)
    async with Watcher(Consul(unique, address=consul.address, probe_interval=0.1)) as watcher:
        first = await until(watcher, sees("10.0.0.1"))
        later = await until(watcher, lambda snapshot: (snapshot.received_at or 0) > (first.received_at or 0) + 0.3)
        assert (later.version, later.state) == (1, "live")
        assert later.endpoints is first.endpoints


async def test_a_wait_that_ends_without_news_is_asked_again(consul: ConsulServer, unique: str) -> None:
    await consul.register(unique, "10.0.0.1", 80)
    async with (
        Proxy(consul.address) as way,
        Watcher(Consul(unique, address=way.address, wait=0.2, probe_interval=60)) as watcher,
    ):
        await way.saw(b"wait=200ms", 4)
        assert watcher.snapshot.version == 1
        await consul.register(unique, "10.0.0.2", 80, wait=False)
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))


async def test_a_service_that_nobody_registered_costs_few_polls(consul: ConsulServer, unique: str) -> None:
    """Consul wakes its watcher whenever another service has lost its last instance."""
    async with Proxy(consul.address) as way, Watcher(Consul(f"{unique}-none", address=way.address)) as watcher:
        await until(watcher, sees())
        before, began_at = way.sent.count(b"GET "), time.monotonic()
        for _ in range(60):
            await consul.register(f"{unique}-other", "10.0.0.1", 80, id=unique)
            await consul.deregister(unique)
        polls = way.sent.count(b"GET ") - before
        assert 5 <= polls <= 5 * (time.monotonic() - began_at) + 11
        await consul.register(f"{unique}-none", "10.0.0.2", 80, wait=False)
        await until(watcher, sees("10.0.0.2"), 1)


async def test_a_broken_way_is_noticed_and_the_set_replaced(consul: ConsulServer, unique: str) -> None:
    await consul.register(unique, "10.0.0.1", 80, id=f"{unique}-1")
    async with Proxy(consul.address) as way, Watcher(Consul(unique, address=way.address)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await way.cut()
        away = await until(watcher, stale, 1)
        assert (len(away.endpoints), away.version) == (1, 1)
        await consul.register(unique, "10.0.0.2", 80)
        await consul.deregister(f"{unique}-1")
        await way.accept()
        await until(watcher, sees("10.0.0.2"), 5)


async def test_a_poll_whose_connection_is_dead_and_silent_is_noticed(consul: ConsulServer, unique: str) -> None:
    """A firewall forgot the connection, say: no error, and everything else goes through."""
    await consul.register(unique, "10.0.0.1", 80, id=f"{unique}-1")
    async with Proxy(consul.address) as way:
        async with Watcher(Consul(unique, address=way.address, probe_interval=0.2)) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await way.saw(b"index=")
            way.hold(b"index=")
            await consul.register(unique, "10.0.0.2", 80, id=f"{unique}-2")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"), 3)
            assert watcher.counts["outages"] == 0
        way.release()


async def test_tls(consul: ConsulServer, unique: str) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    await consul.register(unique, "10.0.0.1", 80)
    async with Proxy(consul.address, server) as way:
        trusting = Consul(unique, address=way.address, tls=client)
        assert repr(trusting) == f"consuls://{way.address}/{unique}"
        async with Watcher(trusting) as watcher:
            await until(watcher, sees("10.0.0.1"))
        with pytest.raises(SourceError, match="TLS certificate is not accepted"):
            await anext(Consul(unique, address=way.address, tls=True).watch())


async def test_two_watchers_of_one_source(consul: ConsulServer, unique: str) -> None:
    source = Consul(unique, address=consul.address)
    async with Watcher(source) as one, Watcher(source) as two:
        await consul.register(unique, "10.0.0.1", 80, wait=False)
        await until(one, sees("10.0.0.1"))
        await until(two, sees("10.0.0.1"))


async def test_kill_wipe_and_restart(own: ConsulServer, unique: str) -> None:
    for number in range(1, 4):
        await own.register(unique, f"10.0.0.{number}", 80, id=f"{unique}-{number}")
    async with Watcher(Consul(unique, address=own.address)) as watcher:
        three = sees("10.0.0.1", "10.0.0.2", "10.0.0.3")
        version = (await until(watcher, three)).version
        await own.kill()
        away = await until(watcher, stale, 0.5)
        assert (len(away.endpoints), away.version) == (3, version)
        await until(watcher, lambda snapshot: "cannot connect" in snapshot.reason)
        await own.restart()
        await until(watcher, three, 5)
        await own.register(unique, "10.0.0.4", 80, wait=False)
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
        # The index begins anew, far behind the one that was last seen.
        await own.wipe()
        held = await until(watcher, lambda snapshot: snapshot.state == "held", 5)
        assert len(held.endpoints) == 4
        await own.register(unique, "10.0.0.5", 80, wait=False)
        await until(watcher, lambda snapshot: len(snapshot.endpoints) == 5, 2)
        watcher.accept()
        await until(watcher, sees("10.0.0.5"), 2)


async def test_the_first_server_that_is_back_in_a_wiped_consul_sends_nobody_away(
    own: ConsulServer, unique: str
) -> None:
    for number in range(1, 4):
        await own.register(unique, f"10.0.0.{number}", 80, id=f"{unique}-{number}")
    async with Proxy(own.address) as way, Watcher(Consul(unique, address=way.address)) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))
        await way.cut()
        await own.wipe()
        await own.register(unique, "10.0.0.2", 80, id=f"{unique}-2")
        await way.accept()
        held = await until(watcher, lambda snapshot: snapshot.state == "held", 4)
        assert set(held.held) == {"10.0.0.1:80", "10.0.0.3:80"}


async def test_a_silent_agent_is_noticed_within_seven_seconds(own: ConsulServer, unique: str) -> None:
    await own.register(unique, "10.0.0.1", 80)
    async with Watcher(Consul(unique, address=own.address)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await own.pause()
        away = await until(watcher, stale, 7)
        assert "no answer within 2 s" in away.reason
        async with Watcher(Consul(unique, address=own.address)) as late:
            await until(late, lambda snapshot: "no answer within 2 s" in snapshot.reason, 3)
        await own.resume()
        await until(watcher, sees("10.0.0.1"), 8)


async def test_construction_does_nothing_but_construct(monkeypatch: pytest.MonkeyPatch) -> None:
    Consul("a")  # the first one imports
    blocking: list[object] = []
    tasks, began_at = asyncio.all_tasks(), time.thread_time()
    with monkeypatch.context() as patch:
        for name in ("getaddrinfo", "create_connection", "socket"):
            patch.setattr(socket, name, lambda *args, **_: blocking.append(args))
        for _ in range(100):
            Consul("a", address="192.0.2.1:1")
    assert blocking == []
    # A collection of garbage included.
    assert time.thread_time() - began_at < 0.5
    assert asyncio.all_tasks() == tasks
