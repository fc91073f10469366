"""Many services through one Consul agent, which takes 200 connections of one client address."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from patience import Stopwatch, patience
from registry_rig import Fake, Proxy, http, sees, stale, until

from discovery import Consul, Watcher
from discovery.consul import agent as consul_agent
from discovery.consul import follower as consul_follow
from discovery.consul.agent import Agent
from lbclient.sandbox import ConsulServer, start_consul

pytestmark = pytest.mark.usefixtures("nothing_leaks")

MANY = 260


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crowded() -> AsyncIterator[ConsulServer]:
    async with await start_consul(own=True) as server:
        yield server


async def register(consul: ConsulServer, names: Iterable[str], host: str) -> None:
    """An instance at this host for each of the services, 63 in a transaction."""
    node = {"Node": {"Verb": "set", "Node": {"Node": "crowd", "Address": "10.9.9.9"}}}
    services = [
        {
            "Service": {
                "Verb": "set",
                "Node": "crowd",
                "Service": {"ID": n, "Service": n, "Address": host, "Port": 80},
            }
        }
        for n in names
    ]
    for start in range(0, len(services), 63):
        await consul._ask("PUT", "/v1/txn", [node, *services[start : start + 63]])


async def test_more_services_than_an_agent_takes_connections(
    crowded: ConsulServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_follow, "_ASK_EVERY", 1.0)
    names = [f"crowd-{number}" for number in range(MANY)]
    await register(crowded, names, "10.0.0.1")
    losses: list[str] = []
    async with Proxy(crowded.address) as way, contextlib.AsyncExitStack() as stack:
        watchers = []
        for name in names:
            # On a busy machine all of them together need longer for their beginning than one may for a request.
            source = Consul(name, address=way.address, timeout=20)
            watcher = await stack.enter_async_context(Watcher(source))
            watcher.subscribe(lambda snapshot: losses.append(snapshot.reason) if snapshot.reason else None)
            watchers.append(watcher)
        for watcher in watchers:
            await until(watcher, sees("10.0.0.1"))
        await holds(lambda: sum(watcher.source.polling for watcher in watchers) == MANY - 150)  # type: ignore[attr-defined]
        requests, counted_at = way.sent.count(b"GET "), time.monotonic()
        await asyncio.sleep(1.5)
        # Once in 2 s at first for each that waits, and once in 0.8 to 1.2 s for each that asks.
        asked = way.sent.count(b"GET ") - requests
        assert asked <= 150 + (MANY - 150) * (1 + int((time.monotonic() - counted_at) / 0.8))
        await register(crowded, names, "10.0.0.2")
        for watcher in watchers:
            await until(watcher, sees("10.0.0.2"), 6)
        assert losses == []
        assert way.accepted <= 185
        assert len([line for line in caplog.messages if "others ask every 2 s" in line]) == 1
        # What was abandoned goes on at the agent: who is back asks until it has ended.
        await way.cut()
        for watcher in watchers:
            await until(watcher, stale)
        losses.clear()
        await register(crowded, names, "10.0.0.3")
        await way.accept()
        for watcher in watchers:
            await until(watcher, sees("10.0.0.3"), 8)
        assert all("cannot connect" in reason for reason in losses)


async def test_who_leaves_makes_room_when_its_wait_would_have_ended(
    crowded: ConsulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_follow, "_ASK_EVERY", 0.05)
    monkeypatch.setattr(consul_agent, "_LONGEST_QUEUE", 1)
    async with Proxy(crowded.address) as way:
        first, second = (Consul(name, address=way.address) for name in ("none-1", "none-2"))
        early, late = Watcher(first), Watcher(second)
        began_at = time.monotonic()
        early.start()
        late.start()
        await way.saw(b"index=")
        await holds(lambda: first.polling != second.polling)
        with Stopwatch() as watch:
            await (late if first.polling else early).stop()
            stays = first if first.polling else second
            await holds(lambda: not stays.polling)
        assert time.monotonic() - began_at > 2
        assert watch.seconds < 3
        await early.stop()
        await late.stop()


async def holds(check: Callable[[], bool]) -> None:
    """Wait until something holds that no snapshot tells."""
    async with patience(5):
        while not check():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def test_an_agent_whose_connections_others_have(
    crowded: ConsulServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{unique}-{number}" for number in range(30)]
    await register(crowded, names, "10.0.0.1")
    host, _, port = crowded.address.rpartition(":")
    losses: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Watcher(Consul(names[0], address=crowded.address, timeout=20)))
        await until(first, sees("10.0.0.1"))
        others = []
        for _ in range(185):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.transport.abort)
            others.append(writer)
        sources = [Consul(name, address=crowded.address, timeout=20) for name in names[1:]]
        watchers = [first]
        for source in sources:
            # Each with its own beginning: a crowd at once needs more connections than there are.
            watcher = await stack.enter_async_context(Watcher(source))
            await until(watcher, sees("10.0.0.1"))
            watcher.subscribe(lambda snapshot: losses.append(snapshot.reason) if snapshot.reason else None)
            watchers.append(watcher)
        await holds(lambda: sum(source.polling for source in sources) > 10)
        for writer in others[:5]:
            writer.transport.abort()  # for the registration
        await register(crowded, names, "10.0.0.2")
        for watcher in watchers:
            await until(watcher, sees("10.0.0.2"), 6)
        assert losses == []
    assert len([line for line in caplog.messages if "refuses connections" in line]) == 1


def instance(index: int, number: int) -> bytes:
    body = f'[{{"Node": {{"Node": "n"}}, "Service": {{"ID": "i", "Address": "10.0.0.{number}", "Port": 80}}}}]'
    return http(body, headers=f"X-Consul-Index: {index}\r\n")


@pytest.mark.parametrize("no", [None, http("", status="429 x")])
async def test_who_may_not_wait_asks_and_tries_again(no: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul_follow, "_ASK_EVERY", 0.02)
    # A busy machine may take its time between a question and the refusal.
    monkeypatch.setattr(consul_follow, "_REFUSED_WITHIN", 20)
    ahead = 0.0
    monkeypatch.setattr(consul_follow, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))
    state = {"index": 5, "refused": 0, "all": 0}

    async def say(head: str) -> bytes | None:
        if "index=" in head:
            state["refused"] += 1
            return no
        if "filter=" in head:
            return http("[]", headers=f"X-Consul-Index: {state['index']}\r\n")
        state["all"] += 1
        return instance(state["index"], state["index"])

    async with Fake(say) as fake:
        source = Consul("web", address=fake.address, timeout=20)
        async with Watcher(source) as watcher:
            losses: list[str] = []
            watcher.subscribe(lambda snapshot: losses.append(snapshot.reason) if snapshot.reason else None)
            await until(watcher, sees("10.0.0.5"))
            await fake.asked(lambda: source.polling)
            await fake.asked(lambda: len(fake.requests) >= 12)
            refused = state["refused"]
            assert refused == (1 if no else 2)  # aiohttp tries a kept connection that broke once more
            assert state["all"] == 2  # else it only asks whether something changed
            state["index"] = 9
            await until(watcher, sees("10.0.0.9"), 1)
            assert (state["all"], state["refused"]) == (3, refused)
            ahead = 1.2 * consul_follow._WAIT_AGAIN_AFTER
            await fake.asked(lambda: state["refused"] > refused)
            assert losses == []
        assert not source.polling


async def test_a_wait_that_breaks_later_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul_follow, "_REFUSED_WITHIN", 0.05)

    async def say(head: str) -> bytes | None:
        if "index=" in head:
            await asyncio.sleep(0.1)
            return None
        return instance(5, 1)

    async with Fake(say) as fake:
        source = Consul("web", address=fake.address)
        async with Watcher(source) as watcher:
            away = await until(watcher, stale)
            assert "closed the connection without an answer" in away.reason
            assert not source.polling


async def test_rights_that_change_without_the_index_are_seen_by_those_that_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consul_follow, "_ASK_EVERY", 0.02)
    monkeypatch.setattr(consul_agent, "_LONGEST_QUEUE", 0)
    seen = 0

    async def say(head: str) -> bytes:
        nonlocal seen
        assert "index=" not in head
        if "filter=" in head:
            return http("[]", headers="X-Consul-Index: 5\r\n")
        seen += 1
        return instance(5, seen)

    async with Fake(say) as fake, Watcher(Consul("web", address=fake.address, wait=0.2)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await until(watcher, sees("10.0.0.2"), 1)
        assert len(fake.requests) > 4


def agents() -> list[Agent]:
    """Those in use."""
    return [agent for known in consul_agent._agents.values() for agent in known.values() if agent._users]


async def test_sources_share_a_session_and_the_last_one_closes_it(crowded: ConsulServer) -> None:
    async with Proxy(crowded.address) as way:
        watchers = [Watcher(Consul(f"none-{number}", address=way.address)) for number in range(4)]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            await until(watcher, sees())
        (agent,) = agents()
        session = agent._current.session if agent._current else None
        assert session is not None
        for watcher in (watchers[2], watchers[0], watchers[3]):
            await watcher.stop()
            assert not session.closed
            assert agents() == [agent]
        async with Watcher(Consul("none-5", address=way.address)) as late:
            await until(late, sees())
            assert agent._current is not None
            assert agent._current.session is session
            await watchers[1].stop()
            assert not session.closed
        assert session.closed
        assert agents() == []
        assert agent.waiting == 0


async def test_after_an_outage_nothing_is_left_and_after_silence_the_session_is_another() -> None:
    quiet = asyncio.Event()

    async def say(head: str) -> bytes:
        if quiet.is_set() or "index=" in head:
            await asyncio.Event().wait()
        return instance(5, 1)

    async with Fake(say) as fake:
        options: dict[str, Any] = {"address": fake.address, "probe_interval": 0.1, "timeout": 2}
        one, two = Watcher(Consul("a", **options)), Watcher(Consul("b", **options))
        async with one, two:
            await until(one, sees("10.0.0.1"))
            await until(two, sees("10.0.0.1"))
            (agent,) = agents()
            before = agent._current
            assert before is not None
            quiet.set()
            await until(one, stale)
            await until(two, stale)
            assert before.session.closed
            quiet.clear()
            await until(one, sees("10.0.0.1"))
            await until(two, sees("10.0.0.1"))
            assert sum(found.waiting for found in agents()) <= 2
    assert agents() == []


async def test_several_event_loops(crowded: ConsulServer) -> None:
    async def follow() -> None:
        async with (
            Watcher(Consul("none-1", address=crowded.address)) as one,
            Watcher(Consul("none-2", address=crowded.address)) as two,
        ):
            await until(one, sees())
            await until(two, sees())

    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(follow())
        except BaseException as error:  # noqa: BLE001 - it is told below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    await follow()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert errors == []
    assert agents() == []


async def test_a_loop_that_ended_badly_is_forgotten(crowded: ConsulServer) -> None:
    def run() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(entered())
        loop.close()

    async def entered() -> None:
        consul_agent.agent_at("http://nowhere:1", None)

    await asyncio.to_thread(run)
    consul_agent.agent_at("http://nowhere:2", None)
    consul_agent.agent_at("http://nowhere:3", None)
    urls = [url for known in consul_agent._agents.values() for url, _ in known]
    assert "http://nowhere:1" not in urls
    assert "http://nowhere:2" not in urls
    consul_agent._agents.clear()
