"""What Prometheus reads of a session, through a real `/metrics`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rig import Gate, Prefer, local, until

from discovery import Memory, Static
from lbclient import BalancedSession, BalancingMiddleware, HealthCheck, Hedge, Prequal, Throttle
from lbclient.metrics import NODE_ROWS, SERVICE_ROWS, Collector

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"lbclient_{name}", frozenset(labels.items())))


@asynccontextmanager
async def served(collector: Collector) -> AsyncIterator[str]:
    """The text of `/metrics` is at this URL."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)

    async def metrics(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async with local(metrics) as server:
        yield f"http://{server.address}/metrics"


async def scrape(url: str) -> Samples:
    async with aiohttp.ClientSession() as plain, plain.get(url) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")
        return parsed(await response.text())


async def get(session: BalancedSession, times: int = 1) -> None:
    for _ in range(times):
        async with session.get("/x") as response:
            await response.read()


async def test_requests_and_nodes_are_there_with_service_and_address() -> None:
    async with (
        local() as server,
        BalancedSession(Static([server.address]), name="users") as session,
        served(Collector(session)) as url,
    ):
        await get(session, 3)
        samples = await scrape(url)
        node = {"service": "users", "address": server.address}
        assert of(samples, "node_requests_total", **node) == 3
        assert of(samples, "node_failures_total", **node) == 0
        assert of(samples, "node_in_flight", **node) == 0
        assert of(samples, "node_in_rotation", **node) == 1
        assert of(samples, "node_weight", **node) == 1
        assert 0 < (of(samples, "node_latency_seconds", **node) or 0) < 5
        assert of(samples, "usable_nodes", service="users") == 1
        assert of(samples, "nodes", service="users", state="ready") == 1
        assert of(samples, "waiting", service="users") == 0
        assert of(samples, "snapshot_version", service="users") == 1
        assert 0 <= (of(samples, "snapshot_age_seconds", service="users") or -1) < 5
        states = {state: of(samples, "snapshot_state", service="users", state=state) for state in ("live", "held")}
        assert states == {"live": 1, "held": 0}


async def test_attempts_that_never_end_can_be_seen() -> None:
    gate = Gate()
    async with local(gate) as server:
        memory = Memory([server.address])
        async with (
            BalancedSession(memory, name="users", on_empty="accept") as session,
            served(Collector(session)) as url,
        ):
            request = asyncio.ensure_future(get(session))
            await until(lambda: len(server.seen) == 1)
            samples = await scrape(url)
            assert of(samples, "in_flight", service="users") == 1
            assert (of(samples, "oldest_attempt_seconds", service="users") or 0) > 0
            assert of(samples, "draining_connections") == of(samples, "draining_oldest_attempt_seconds") == 0
            memory.set([])
            await until(lambda: session.endpoints() == ())
            samples = await scrape(url)
            assert of(samples, "in_flight", service="users") == 0
            assert of(samples, "draining_nodes") == of(samples, "draining_connections") == 1
            assert (of(samples, "draining_oldest_attempt_seconds") or 0) > 0
            gate.let()
            await request


async def test_nodes_that_left_vanish() -> None:
    async with local() as gone, local() as stays:
        memory = Memory([gone.address, stays.address])
        async with (
            BalancedSession(memory, name="users", on_empty="accept") as session,
            served(Collector(session)) as url,
        ):
            await get(session, 5)
            assert f'address="{gone.address}"' in str(await raw(url))
            memory.set([stays.address])
            await until(lambda: len(session.endpoints()) == 1)
            text = await raw(url)
            assert gone.address not in text
            assert stays.address in text


async def raw(url: str) -> str:
    async with aiohttp.ClientSession() as plain, plain.get(url) as response:
        return await response.text()


async def test_health_checks_and_their_victims_are_counted() -> None:
    async def ill(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=500)

    check = HealthCheck(interval=0.02, unhealthy_threshold=2)
    async with (
        local(ill) as bad,
        local() as good,
        BalancedSession(Static([bad.address, good.address]), name="users", health_check=check) as session,
        served(Collector(session)) as url,
    ):
        await session.ready()
        await until(lambda: session.describe()["services"]["users"]["usable"] == 1)
        samples = await scrape(url)
        assert (of(samples, "health_checks_total", service="users", result="failed") or 0) >= 2
        assert of(samples, "health_checks_total", service="users", result="sent") is None
        assert of(samples, "nodes", service="users", state="unhealthy") == 1
        assert of(samples, "node_in_rotation", service="users", address=bad.address) == 0
        assert of(samples, "usable_nodes", service="users") == 1


async def test_probes_are_counted_where_there_are_any() -> None:
    async with (
        local() as server,
        local() as other,
        BalancedSession(Static([server.address, other.address]), name="users", policy=Prequal) as session,
        served(Collector(session)) as url,
    ):
        await get(session)
        await until(lambda: session.describe()["services"]["users"]["probes"]["missed"] == 2)
        samples = await scrape(url)
        assert of(samples, "load_probes_total", service="users", result="missed") == 2
        assert of(samples, "load_probes_total", service="users", result="sent") is None
    async with BalancedSession(Memory([]), name="users") as session, served(Collector(session)) as url:
        assert "lbclient_load_probes_total{" not in await raw(url)


async def test_several_sessions_are_told_apart_by_the_label_client() -> None:
    async with (
        local() as server,
        BalancedSession(Static([server.address]), name="users") as first,
        BalancedSession(Static([server.address]), name="users") as second,
        served(Collector({"web": first, "jobs": second})) as url,
    ):
        await get(first, 2)
        await get(second)
        samples = await scrape(url)
        for client, requests in (("web", 2), ("jobs", 1)):
            labels = {"client": client, "service": "users", "address": server.address}
            assert of(samples, "node_requests_total", **labels) == requests
            assert of(samples, "draining_nodes", client=client) == 0


async def test_metrics_of_each_node_can_be_left_out() -> None:
    async with (
        local() as server,
        BalancedSession(Static([server.address])) as session,
        served(Collector(session, per_node=False)) as url,
    ):
        await get(session)
        text = await raw(url)
        assert server.address not in text
        assert "lbclient_node_" not in text


async def test_another_thread_may_scrape() -> None:
    """As prometheus_client's own server does it."""
    asked_in: list[int] = []

    class Noting:
        def describe(self) -> dict[str, Any]:
            asked_in.append(threading.get_ident())
            return {"services": {}, "draining": []}

    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(Noting()))
    assert asked_in == [], "a registration needs the names only"
    text = await asyncio.to_thread(generate_latest, registry)
    assert b"lbclient_draining_nodes 0.0" in text
    assert asked_in == [threading.get_ident()]


async def test_an_error_reaches_the_thread_that_scrapes() -> None:
    class Broken:
        def describe(self) -> dict[str, Any]:
            raise LookupError("a bug")

    collector = Collector(Broken())
    with pytest.raises(LookupError, match="a bug"):
        await asyncio.to_thread(collector.collect)


async def test_a_blocked_loop_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbclient.metrics._PATIENCE", 0.02)
    asked: list[int] = []

    class Noting:
        def describe(self) -> dict[str, Any]:
            asked.append(1)
            return {"services": {}, "draining": []}

    collector = Collector(Noting())
    errors: list[BaseException] = []

    def scrape() -> None:
        try:
            collector.collect()
        except TimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    thread.join()  # on purpose: it blocks the loop
    assert len(errors) == 1
    await asyncio.sleep(0)
    assert asked == [], "nobody waits for it any more"


async def test_a_middleware_without_a_session_can_be_read_after_it_was_closed_too() -> None:
    async with local() as server:
        async with BalancingMiddleware({"users": Static([server.address])}) as balancing:
            collector = Collector(balancing)
        registry = CollectorRegistry()
        registry.register(collector)
        assert of(parsed(generate_latest(registry).decode()), "usable_nodes", service="users") == 0


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A dictionary in which this value is to be found."""
    for key in reversed(path):
        value = {key: value}
    found: dict[str, Any] = value
    return found


@pytest.mark.parametrize("row", SERVICE_ROWS, ids=lambda row: row.name)
def test_each_row_reads_its_place_and_nothing_if_there_is_none(row: Any) -> None:
    value = {"a": 7} if row.label else 7
    assert [number for _, number in row.samples(at(row.path, value))] == [7]
    for length in range(len(row.path) + 1):
        assert list(row.samples(at(row.path[:length], {}) if row.label else at(row.path, None))) == []
        assert list(row.samples(at(row.path[:length], None) or {})) == []


async def test_a_session_with_everything_has_all_that_the_table_names() -> None:
    async with (
        local() as server,
        local() as other,
        BalancedSession(
            Static([server.address, other.address]),
            policy=Prequal,
            hedge=Hedge(),
            throttle=Throttle(),
            health_check=HealthCheck(),
        ) as session,
        served(Collector(session)) as url,
    ):
        await get(session)
        names = {name.removesuffix("_total") for name, _ in await scrape(url)}
    assert {f"lbclient_{row.name}" for row in (*SERVICE_ROWS, *NODE_ROWS)} - names == set()


async def test_the_names_keep_to_prometheus_conventions() -> None:
    class Nothing:
        def describe(self) -> dict[str, Any]:
            return {"services": {}, "draining": []}

    families = list(Collector(Nothing()).describe())
    names = [family.name for family in families]
    assert len(set(names)) == len(names) == len(SERVICE_ROWS) + len(NODE_ROWS) + 3
    for family in families:
        assert family.name.startswith("lbclient_")
        assert not family.name.endswith("_total"), "it is added to counters"
        assert family.documentation
        assert family.type in ("counter", "gauge")


async def test_no_credentials_are_shown() -> None:
    source = "consul://token:secret@127.0.0.1:1/users?token=hidden"
    async with BalancedSession({"users": Memory([])}) as session:
        text = session.describe()
        text["services"]["users"]["source"] = text["services"]["users"]["reason"] = source

        class Told:
            def describe(self) -> Mapping[str, Any]:
                return text

        registry = CollectorRegistry()
        registry.register(Collector(Told()))  # type: ignore[arg-type]
        shown = generate_latest(registry).decode()
    assert "secret" not in shown
    assert "hidden" not in shown


async def test_failures_are_counted_at_the_node(unused_address: str) -> None:
    async with (
        local() as server,
        BalancedSession(
            Static([server.address, unused_address]), name="users", policy=Prefer(unused_address)
        ) as session,
        served(Collector(session)) as url,
    ):
        await get(session)
        samples = await scrape(url)
        assert of(samples, "node_failures_total", service="users", address=unused_address) == 1
        assert of(samples, "node_latency_seconds", service="users", address=unused_address) is None


async def test_ejections_are_counted_by_their_reason(unused_address: str) -> None:
    async with (
        local() as server,
        BalancedSession(
            Static([server.address, unused_address]), name="users", policy=Prefer(unused_address)
        ) as session,
        served(Collector(session)) as url,
    ):
        await get(session, 3)
        samples = await scrape(url)
        assert of(samples, "ejections_total", service="users", reason="connect_failures") == 1
        assert of(samples, "ejections_not_enforced_total", service="users", reason="connect_failures") == 0
        assert of(samples, "nodes", service="users", state="ejected") == 1
        assert of(samples, "node_in_rotation", service="users", address=unused_address) == 0
        assert of(samples, "requests_total", service="users") == 3
        assert of(samples, "retries_total", service="users") == 3
