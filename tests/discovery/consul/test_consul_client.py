"""The rules of Consul's blocking queries and its errors, against an agent that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from patience import patience
from registry_rig import Fake, http, until

from discovery import Consul, SourceError, Watcher
from discovery.consul.client import ConsulClient, ConsulError
from discovery.consul.follower import Pace

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Instance = dict[str, Any]

TOKEN = "s3cret"


def instance(number: int, *, status: str | None = None, **service: Any) -> Instance:
    checks = None if status is None else [{"Status": "passing"}, {"Status": status}]
    service = {"ID": f"i{number}", "Address": f"10.0.0.{number}", "Port": 80, **service}
    return {"Node": {"Node": "n", "Address": "10.9.9.9"}, "Service": service, "Checks": checks}


def answer(index: int | None, *instances: Any, leader: bool = True) -> bytes:
    headers = f"X-Consul-KnownLeader: {str(leader).lower()}\r\n"
    if index is not None:
        headers += f"X-Consul-Index: {index}\r\n"
    return http(json.dumps(instances), headers=headers)


def query(head: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(head.split()[1]).query)


def agent(*polls: bytes, probe: Callable[[], bytes] | None = None) -> tuple[Fake, list[str | None]]:
    """One that gives these answers to polls, then keeps them waiting; and the indexes that were asked for."""
    left, indexes = list(polls), []

    async def say(head: str) -> bytes | None:
        if "filter" in query(head):
            return probe() if probe else answer(1)
        indexes.append(query(head).get("index", [None])[0])
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return Fake(say), indexes


async def hosts_of(*instances: Any, **options: Any) -> dict[str, float]:
    """Hosts and weights that a source makes of these instances."""
    fake, _ = agent(answer(5, *instances))
    async with fake:
        sets = Consul("web", address=fake.address, **options).watch()
        found = await anext(sets)
        await sets.aclose()
    return {endpoint.host: endpoint.weight for endpoint in found}


@pytest.mark.parametrize(
    ("indexes", "asked"),
    [
        ([5, 7, 9], [None, "5", "7", "9"]),
        ([5, 5, 5], [None, "5", "5", "5"]),
        ([7, 5, 6], [None, "7", None, "6"]),
        ([0, 0, 3], [None, "1", None, "3"]),
        ([None, 4], [None, "1", "4"]),
    ],
)
async def test_the_index(indexes: list[int | None], asked: list[str | None]) -> None:
    """At least 1, from the beginning after a decrease (where an equal one is none)."""
    fake, seen = agent(*(answer(index, instance(1)) for index in indexes))
    async with fake, Watcher(Consul("web", address=fake.address)):
        await fake.asked(lambda: len(seen) >= len(asked))
    assert seen == asked


async def test_waits_become_longer() -> None:
    """In a crowd that begins, connections become free soon."""
    fake, _ = agent(*(answer(5, instance(1)) for _ in range(6)))
    async with fake, Watcher(Consul("web", address=fake.address, wait=10)):
        await fake.asked(lambda: len(fake.requests) == 6)
    assert [query(head)["wait"] for head in fake.requests[1:]] == [[f"{n}000ms"] for n in (2, 4, 8, 10, 10)]


async def test_an_error_begins_anew() -> None:
    fake, seen = agent(answer(5, instance(1)), http("rpc error", status="500 x"), answer(9, instance(2)))
    async with fake, Watcher(Consul("web", address=fake.address)) as watcher:
        await until(watcher, lambda snapshot: [e.host for e in snapshot.endpoints] == ["10.0.0.2"])
    assert seen[:3] == [None, "5", None]


async def test_a_probe_behind_the_index_begins_anew() -> None:
    """A server restored from a backup keeps a query from the future waiting in silence."""
    fake, seen = agent(answer(50, instance(1)), probe=lambda: answer(7))
    async with fake, Watcher(Consul("web", address=fake.address, probe_interval=0.1)) as watcher:
        async with patience(2):
            await watcher.ready(10)
        await fake.asked(lambda: len(seen) >= 3)
    assert seen[:3] == [None, "50", None]


async def test_no_set_is_made_up_before_the_first_answer() -> None:
    fake, _ = agent()
    async with fake, Watcher(Consul("web", address=fake.address, probe_interval=0.1, timeout=0.3)) as watcher:
        snapshot = await until(watcher, lambda snapshot: snapshot.reason)
        assert (snapshot.state, snapshot.version) == ("starting", 0)
        assert "no answer within 0.3 s" in snapshot.reason


async def test_a_probe_without_an_answer_ends_the_wait() -> None:
    fake, _ = agent(answer(5, instance(1)), probe=lambda: http("", status="500 x"))
    async with fake, Watcher(Consul("web", address=fake.address, probe_interval=0.2)) as watcher:
        async with patience(2):
            await watcher.ready(10)
        await until(watcher, lambda snapshot: "500" in snapshot.reason, 1)


async def test_what_is_asked() -> None:
    fake, _ = agent(answer(5))
    async with fake:
        source = Consul(
            "web", address=fake.address, tag=["a", "b&c"], dc="x", token="s3cret", wait=1.5, probe_interval=0.2
        )
        assert repr(source) == f"consul://{fake.address}/web?tag=a&tag=b%26c&dc=x"
        async with Watcher(source):
            await fake.asked(lambda: len(fake.requests) >= 3)
    filters = {"tag": ["a", "b&c"], "dc": ["x"]}
    assert query(fake.requests[0]) == filters
    assert query(fake.requests[1]) == {**filters, "index": ["5"], "wait": ["1500ms"]}
    assert query(fake.requests[2]) == {**filters, "filter": ['Service.ID == "-"']}
    for head in fake.requests:
        assert head.startswith("GET /v1/health/service/web?")
        assert "\r\nX-Consul-Token: s3cret\r\n" in head


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (http("Permission denied s3cret", status="403 x"), "403: 'Permission denied ***' (the token is missing"),
        (http("ACL support disabled", status="401 x"), "401"),
        (http("", status="429 x"), "429: '' (its limit"),
        (http("No path to datacenter", status="500 x"), "500: 'No path to datacenter'"),
        (http("x" * 196 + "s3cret", status="500 x"), "500"),
        (http("not found", status="404 x"), "is there a Consul agent"),
        (http("", status="301 x", headers="Location: http://127.0.0.1:1/\r\n"), "status 301"),
        (http("<html>"), "is it Consul? this is no list"),
        (http("{}"), "is it Consul?"),
        (http(""), "is it Consul?"),
        (http("[]", headers="X-Consul-Index: x\r\n"), "not Consul's"),
        (answer(5, leader=False), "knows no leader"),
        (None, "closed the connection without an answer"),
    ],
)
async def test_errors_are_sentences_without_the_token(given: bytes | None, words: str) -> None:
    async def say(_: str) -> bytes | None:
        return given

    async with Fake(say) as fake:
        with pytest.raises(SourceError) as caught:
            await anext(Consul("web", address=fake.address, token=TOKEN).watch())
    assert words in str(caught.value)
    assert fake.address in str(caught.value)
    assert TOKEN[:3] not in "".join(traceback.format_exception(caught.value))


async def test_the_status_of_an_error_can_be_asked() -> None:
    async def say(_: str) -> bytes:
        return http("", status="403 x")

    async with Fake(say) as fake, ConsulClient(fake.address) as client:
        with pytest.raises(ConsulError) as caught:
            await client.put("/v1/agent/service/register", {"Name": "web"})
    assert caught.value.status == 403
    assert fake.requests[0].startswith("PUT /v1/agent/service/register HTTP/1.1\r\n")


async def test_fields_may_be_null_or_absent() -> None:
    bare = {"Node": {"Node": "n"}, "Service": {"ID": "i", "Address": "10.0.0.1", "Port": 80}}
    null = instance(2, Tags=None, Meta=None, Weights=None, TaggedAddresses=None)
    assert await hosts_of(bare, null) == {"10.0.0.1": 1, "10.0.0.2": 1}


@pytest.mark.parametrize("passing", [True, False])
async def test_the_worst_check_counts(passing: bool) -> None:
    weights = {"Passing": 10, "Warning": 3}
    instances = [
        instance(number, status=status, Weights=weights)
        for number, status in enumerate((None, "passing", "warning", "critical", "maintenance", ""), 1)
    ]
    instances.append(
        {
            **instance(7, Weights=weights),
            "Checks": [{"Status": "critical"}, {"Status": "warning"}, {"Status": "passing"}],
        }
    )
    expected = {"10.0.0.1": 10, "10.0.0.2": 10} | ({} if passing else {"10.0.0.3": 3})
    assert await hosts_of(*instances, passing=passing) == expected


async def test_broken_instances_are_skipped_and_an_id_is_unique_on_its_node_only() -> None:
    elsewhere = instance(1, Address="10.0.0.2")
    elsewhere["Node"] = {"Node": "m"}
    broken: list[Any] = [
        None,
        {},
        [],
        "x",
        {"Node": None, "Service": None},
        instance(3, Port=0),
        instance(4, Port="80"),
    ]
    broken += [instance(5, Weights={"Passing": -1}), instance(6, Weights=[]), instance(7, Meta=[1])]
    broken += [{**instance(8), "Checks": [{}]}, {**instance(9), "Checks": 7}]
    fake, _ = agent(answer(5, instance(1), elsewhere, *broken))
    async with fake:
        source = Consul("web", address=fake.address)
        async with Watcher(source) as watcher, patience(2):
            snapshot = await watcher.ready(10)
    assert [(e.host, e.id) for e in snapshot.endpoints[:2]] == [("10.0.0.1", "n/i1"), ("10.0.0.2", "m/i1")]
    # An empty list of weights is as good as none.
    assert [e.host for e in snapshot.endpoints[2:]] == ["10.0.0.6"]
    assert snapshot.skipped == len(source.skipped) == len(broken) - 1


async def test_what_became_critical_is_gone_even_if_it_is_broken_as_well() -> None:
    worse = instance(1, status="critical", Port=0)
    fake, _ = agent(answer(5, instance(1)), answer(6, instance(1, Port=0)), answer(7, worse))
    async with fake, Watcher(Consul("web", address=fake.address)) as watcher:
        await until(watcher, lambda snapshot: snapshot.version == 1)
        await until(watcher, lambda snapshot: snapshot.skipped == 1)
        assert len(watcher.snapshot.endpoints) == 1
        await until(watcher, lambda snapshot: snapshot.endpoints == () and not snapshot.skipped)


def test_the_pace() -> None:
    pace = Pace(5.0, 2)
    assert [round(pace.delay(100.0), 9) for _ in range(4)] == [0, 0, 0.2, 0.4]
    assert round(pace.delay(100.7), 9) == 0
    assert round(pace.delay(100.7), 9) == 0.1
    assert [round(pace.delay(200.0), 9) for _ in range(3)] == [0, 0, 0.2]
