"""Registering in a real Consul: found by a watcher, found again whatever happens, and gone at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rig
from patience import patience
from registrar_rig import Vote, stands
from registry_rig import Proxy, sees, until

from discovery import Consul, Endpoint, Registrar, Snapshot, Watcher
from discovery.registrar.upkeep import Upkeep
from lbclient.sandbox import ConsulServer

pytestmark = pytest.mark.usefixtures("nothing_leaks")

FULL = Endpoint(
    host="10.0.0.1", port=80, weight=7, priority=2, zone="east", tls=True, metadata={"version": "7", "a": ""}
)
TOKEN = "s3cret-t0ken"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have them beat every 0.3 s; the registry waits for the whole TTL, which no busy machine makes them miss."""

    def made(*args: Any, **more: Any) -> Upkeep:
        return Upkeep(*args, **{**more, "ttl": 0.9})

    monkeypatch.setattr("discovery.registrar.registrar.Upkeep", made)


def brief(source: Consul, **options: Any) -> Registrar:
    return Registrar(source, "10.0.0.1:80", **{"ttl": 9, "linger": 0, **options})


def weight(value: float) -> Callable[[Snapshot], bool]:
    return lambda snapshot: [e.weight for e in snapshot.endpoints] == [value]


async def test_a_watcher_sees_exactly_what_was_registered(consul: ConsulServer, unique: str) -> None:
    url = f"consul://{consul.address}/{unique}?tag=a"
    async with Watcher(Consul(unique, address=consul.address, tag="a")) as watcher:
        async with Registrar(url, FULL, linger=0) as registrar:
            assert (registrar.state, registrar.reason) == ("registered", "")
            (found,) = (await until(watcher, sees("10.0.0.1"))).endpoints
            # The reader shows priority, zone and TLS among the metadata, too.
            extra = {"priority": "2", "zone": "east", "secure": "true"}
            name = f"lbclient/{unique}-10.0.0.1:80"
            assert found == replace(FULL, id=name, metadata={**FULL.metadata, **extra})
            # And what was read can be registered as it is.
            async with Registrar(url, found, id="copy", tags=["b", "c"], linger=0):
                services = await consul.services(unique)
                assert sorted(s["Service"]["Tags"] for s in services) == [["a"], ["b", "c"]]
        await until(watcher, sees())
    assert registrar.state == "left"


async def test_leaving_is_seen_within_50_ms(consul: ConsulServer, unique: str) -> None:
    source = Consul(unique, address=consul.address)
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


async def test_an_update_leaves_no_gap(consul: ConsulServer, unique: str) -> None:
    source = Consul(unique, address=consul.address)
    seen: list[Snapshot] = []
    async with Watcher(source) as watcher, brief(source) as registrar:
        await until(watcher, weight(1))
        watcher.subscribe(seen.append)
        async with patience(2):
            await registrar.update(replace(registrar.endpoint, weight=4, metadata={"a": "b"}))
        await until(watcher, lambda s: weight(4)(s) and s.endpoints[0].metadata == {"a": "b"})
        with pytest.raises(ValueError, match="whole numbers from 1 to 65535, not 0"):
            await registrar.update(replace(registrar.endpoint, weight=0))
        assert {len(snapshot.endpoints) for snapshot in seen} == {1}


async def test_what_somebody_breaks_is_mended(
    consul: ConsulServer, unique: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "discovery.registrar")
    source = Consul(unique, address=consul.address)
    async with Watcher(source) as watcher, brief(source) as registrar:
        await until(watcher, sees("10.0.0.1"))
        await consul.deregister(f"{unique}-10.0.0.1:80", wait=False)
        await until(watcher, sees())
        # At the next beat.
        await until(watcher, sees("10.0.0.1"), 2)
        # Somebody registers over it, without a check of his own: ours is still there.
        await consul.register(unique, "10.0.0.9", 80, id=f"{unique}-10.0.0.1:80", wait=False)
        await until(watcher, sees("10.0.0.9"))
        # At a third beat.
        await until(watcher, sees("10.0.0.1"), 2)
        await consul.set_check(f"{unique}-10.0.0.1:80", "critical")
        await until(watcher, sees())
        await until(watcher, sees("10.0.0.1"), 2)
        await stands(registrar, "registered")
    levels = [record.levelname for record in caplog.records if record.name == "discovery.registrar"]
    assert levels == ["INFO", "WARNING", "INFO", "WARNING", "INFO", "INFO"]
    assert caplog.text.count("no longer registered") == 2
    assert "the instance was changed" in caplog.text


async def test_a_verdict_is_seen_at_once_and_not_with_the_next_beat(consul: ConsulServer, unique: str) -> None:
    source, vote = Consul(unique, address=consul.address), Vote()
    async with Watcher(source) as watcher, brief(source, ttl=600, health=vote, health_interval=0.05):
        for answer in (True, False, True):
            vote.answer = lambda answer=answer: answer
            await until(watcher, sees("10.0.0.1") if answer else sees(), 3)


async def test_health(consul: ConsulServer, unique: str, quick: None) -> None:
    source, vote = Consul(unique, address=consul.address), Vote(lambda: False)
    options = {"health": vote, "health_interval": 0.05, "health_timeout": 0.2}
    async with Watcher(source) as watcher, brief(source, **options) as registrar:
        assert (registrar.state, registrar.reason) == ("unhealthy", "the health check said no")
        assert (await watcher.ready()).endpoints == ()
        vote.answer = lambda: True
        await until(watcher, sees("10.0.0.1"))
        vote.answer = lambda: 1 / 0
        await until(watcher, sees())
        await registrar.update(replace(registrar.endpoint, weight=3))
        await asyncio.sleep(1.2)
        # It stays as it is over several beats, and tells why.
        (instance,) = await consul.services(unique)
        (check,) = (check for check in instance["Checks"] if check["ServiceID"])
        assert (check["Status"], check["Output"]) == ("critical", "ZeroDivisionError: division by zero")
        assert watcher.snapshot.endpoints == ()
        vote.answer = lambda: True
        await until(watcher, weight(3))
        await stands(registrar, "registered")


async def test_the_last_process_with_an_id_wins(
    consul: ConsulServer, unique: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    source = Consul(unique, address=consul.address)
    first = Registrar(source, "10.0.0.1:80", id=unique, ttl=9, linger=0)
    second = Registrar(source, "10.0.0.2:80", id=unique, ttl=9, linger=0)
    async with Watcher(source) as watcher, first:
        await until(watcher, sees("10.0.0.1"))
        async with second:
            await until(watcher, sees("10.0.0.2"))
            await stands(first, "lost", reason="a second process with the same id?", timeout=3)
            versions = watcher.snapshot.version
            await asyncio.sleep(0.7)
            assert (watcher.snapshot.version, second.state) == (versions, "registered")
        await until(watcher, sees("10.0.0.1"), 3)
        await stands(first, "registered")
        # The other way round: the one that was overwritten leaves.
        async with Registrar(source, "10.0.0.3:80", id=unique, ttl=9, linger=0):
            await until(watcher, sees("10.0.0.3"))
            await first.leave()
            await asyncio.sleep(0.1)
            assert sees("10.0.0.3")(watcher.snapshot)
    assert caplog.text.count("second process") == 1


async def test_cancelled_while_registering_leaves_nothing_behind(consul: ConsulServer, unique: str) -> None:
    async with Proxy(consul.address) as way:
        way.hold(b"/v1/agent/service/register")
        entering = asyncio.create_task(brief(Consul(unique, address=way.address)).__aenter__())
        await way.saw(b"/v1/agent/service/register")
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering

    async def is_gone() -> bool:
        return await consul.services(unique) == []

    # The agent tells the catalogue a moment after it has answered.
    await rig.until(is_gone)


async def test_the_token_goes_along_and_is_never_shown(
    consul: ConsulServer, unique: str, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Proxy(consul.address) as way:
        async with brief(Consul(unique, address=way.address, token=TOKEN)) as registrar:
            await way.saw(b"PUT /v1/agent/check/update/", 2)
            shown = [repr(registrar)]
            await way.cut()
            await stands(registrar, "lost", timeout=3)
            shown += [repr(registrar), registrar.reason]
            await way.accept()
            await stands(registrar, "registered", timeout=3)
        sent = way.sent.decode()
        assert "PUT /v1/agent/service/deregister/" in sent
        assert sent.count(" HTTP/1.1\r\n") == sent.count(f"X-Consul-Token: {TOKEN}\r\n")
    assert TOKEN not in "".join([*shown, caplog.text, registrar.reason])
