"""A storm over a registry: random changes, random disasters, and a witness for each watcher."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from patience import patience
from registry_rig import Proxy

from discovery import Endpoint, Snapshot, Watcher
from discovery.endpoint import endpoint_tuple
from lbclient.sandbox import EtcdCluster

SECONDS = float(os.environ.get("LBCLIENT_SOAK_SECONDS", "8"))
SEED = int(os.environ.get("LBCLIENT_SOAK_SEED", "1"))
# Time for elections, back-off, probes and leases after the last disaster; and for Consul's waits: an index that
# went back, and happens to be the one that we had, shows at the end of a wait only.
CALM = 40.0

Disaster = Callable[[], Awaitable[None]]


@dataclass
class Witness:
    """Looks at every snapshot of a watcher for what must never be."""

    watcher: Watcher
    last: Snapshot = field(default_factory=Snapshot)

    def __post_init__(self) -> None:
        self.watcher.subscribe(self.look)

    def look(self, new: Snapshot) -> None:
        old, self.last = self.last, new
        # An assertion here would only be logged, so it is remembered.
        wrong = [
            why
            for why, holds in (
                ("a version went back", new.version >= old.version),
                ("a version skipped one", new.version <= old.version + 1),
                ("a change without a version", new.version != old.version or new.endpoints is old.endpoints),
                ("not sorted", new.endpoints == endpoint_tuple(new.endpoints)),
                ("endpoints appeared while stale", new.state != "stale" or new.endpoints is old.endpoints),
                ("back to the start", new.state != "starting" or not old.version),
            )
            if not holds
        ]
        self.wrong = getattr(self, "wrong", []) + wrong


async def storm(
    writers: Iterable[Awaitable[None]],
    disasters: dict[str, Disaster],
    rng: random.Random,
    enough: Callable[[], bool],
) -> list[str]:
    """Change and break things at random for a while, and until it is enough; returns what was broken."""
    happened = []
    running = [asyncio.ensure_future(writer) for writer in writers]
    try:
        until = asyncio.get_running_loop().time() + SECONDS
        while asyncio.get_running_loop().time() < until or not enough():
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            name = rng.choice(list(disasters))
            happened.append(name)
            await disasters[name]()
            for writer in running:
                if writer.done():
                    writer.result()
    finally:
        for writer in running:
            writer.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return happened


async def converge(watchers: list[Watcher], registered: Callable[[], Awaitable[tuple[Endpoint, ...]]]) -> None:
    """Wait until all watchers have what is registered; leases may still be running out."""
    expected: tuple[Endpoint, ...] = ()
    try:
        async with patience(CALM):
            while True:
                expected = await registered()
                good = [w.snapshot.endpoints == expected and w.snapshot.state == "live" for w in watchers]
                # Still so a moment later: not on the way to somewhere else.
                if all(good) and expected == await registered():
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        for watcher in watchers:
            missing = sorted({e.address for e in expected} - {e.address for e in watcher.snapshot.endpoints})
            extra = sorted({e.address for e in watcher.snapshot.endpoints} - {e.address for e in expected})
            if watcher.snapshot.endpoints != expected or watcher.snapshot.state != "live":
                pytest.fail(f"{watcher!r}: missing {missing[:5]}, too many {extra[:5]}, {watcher.snapshot}")
        raise


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class EtcdWriter:
    """Writes as fast as one connection can: many random changes in each transaction."""

    def __init__(self, cluster: EtcdCluster, prefix: str, rng: random.Random) -> None:
        self.operations = 0
        self.leases: list[str] = []
        self._cluster = cluster
        self._prefix = prefix
        self._rng = rng

    async def run(self) -> None:
        """Write until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as session:
            while True:
                member = self._rng.choice(self._cluster.addresses)
                try:
                    await self._write(session, member)
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    await asyncio.sleep(0.02)

    async def _write(self, session: aiohttp.ClientSession, member: str) -> None:
        if self._rng.random() < 0.02:
            answer = await self._ask(session, member, "/v3/lease/grant", {"TTL": self._rng.choice([1, 2])})
            self.leases = [*self.leases[-3:], answer["ID"]]
        if self.leases and self._rng.random() < 0.02:
            await self._ask(session, member, "/v3/lease/revoke", {"ID": self.leases.pop()})
        keys = self._rng.sample(range(200), self._rng.choice([1, 1, 2, 5, 60, 100]))
        changes = [self._change(f"{self._prefix}/{key}") for key in keys]
        await self._ask(session, member, "/v3/kv/txn", {"success": changes})
        self.operations += len(changes)
        # Both sides share two cores.
        await asyncio.sleep(self._rng.choice([0, 0, 0.01]))

    def _change(self, key: str) -> dict[str, Any]:
        if self._rng.random() < 0.3:
            return {"request_delete_range": {"key": b64(key)}}
        put = {"key": b64(key), "value": b64(value_of(self._rng))}
        if self.leases and self._rng.random() < 0.1:
            put["lease"] = self._rng.choice(self.leases)
        return {"request_put": put}

    @staticmethod
    async def _ask(session: aiohttp.ClientSession, member: str, path: str, body: dict[str, Any]) -> Any:
        async with session.post(f"http://{member}{path}", json=body) as response:
            answer = await response.json(content_type=None)
            if not response.ok:
                raise ValueError(answer)
            return answer


def value_of(rng: random.Random) -> str:
    """An address out of a few hundred, with and without a description; several keys may have the same."""
    address = f"10.0.{rng.randrange(3)}.{rng.randrange(1, 100)}:80"
    if rng.random() < 0.5:
        return address
    return json.dumps({"Op": 0, "Addr": address, "Metadata": {"weight": rng.randrange(5)}})


def endpoint_of(key: str, value: str) -> Endpoint:
    """The same in the test's own words."""
    if not value.startswith("{"):
        return Endpoint.parse(value, id=key)
    said = json.loads(value)
    weight = said["Metadata"]["weight"]
    return Endpoint.parse(said["Addr"], id=key, weight=float(weight), metadata={"weight": str(weight)})


@contextlib.asynccontextmanager
async def followed(*watchers: Watcher) -> AsyncIterator[list[Witness]]:
    """All of them running, with witnesses that saw nothing wrong in the end."""
    async with contextlib.AsyncExitStack() as stack:
        witnesses = [Witness(watcher) for watcher in watchers]
        for watcher in watchers:
            await stack.enter_async_context(watcher)
        yield witnesses
        for witness in witnesses:
            assert not witness.wrong, f"{witness.watcher!r}: {set(witness.wrong)}"


async def flaky(way: Proxy, rng: random.Random) -> None:
    """Break a connection now and then, and refuse new ones for a moment."""
    while True:
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        await way.cut()
        await asyncio.sleep(rng.uniform(0, 0.3))
        await way.accept()


class ConsulWriter:
    """Changes the catalog: transactions of instances and checks on nodes that exist nowhere else."""

    def __init__(self, address: str, service: str, numbers: range, rng: random.Random) -> None:
        self.operations = 0
        self._numbers = numbers
        self._address = address
        self._service = service
        self._rng = rng
        self._there: set[int] = set()

    async def run(self) -> None:
        """Write until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            while True:
                try:
                    changes = [each for number in self._some() for each in self._change(number)]
                    async with session.put(f"http://{self._address}/v1/txn", json=changes) as response:
                        if response.ok:
                            self.operations += len(changes)
                        else:
                            # Something to be deleted was gone: the data of an earlier time is back.
                            self._there.clear()
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(self._rng.choice([0, 0, 0.01]))

    def _some(self) -> list[int]:
        return self._rng.sample(self._numbers, self._rng.choice([1, 1, 5, 20]))

    def _change(self, number: int) -> list[dict[str, Any]]:
        """At most three operations; a transaction takes 64."""
        node, key = f"{self._service}-{number % 3}", f"i{number}"
        if number in self._there and self._rng.random() < 0.4:
            self._there.discard(number)
            return [{"Service": {"Verb": "delete", "Node": node, "Service": {"ID": key}}}]
        self._there.add(number)
        service = {"ID": key, "Service": self._service, "Address": f"10.1.0.{number + 1}", "Port": 80}
        service["Weights"] = {"Passing": self._rng.randrange(1, 5), "Warning": 1}
        status = self._rng.choice(["passing", "passing", "warning", "critical"])
        check = {"Node": node, "CheckID": f"c{key}", "Name": "c", "ServiceID": key, "Status": status}
        return [
            {"Node": {"Verb": "set", "Node": {"Node": node, "Address": "127.0.0.1"}}},
            {"Service": {"Verb": "set", "Node": node, "Service": service}},
            {"Check": {"Verb": "set", "Check": check}},
        ]


def passing(instance: dict[str, Any]) -> Endpoint:
    """The endpoint in the test's own words."""
    service = instance["Service"]
    return Endpoint(
        host=service["Address"],
        port=service["Port"],
        weight=service["Weights"]["Passing"],
        metadata=service["Meta"] or {},
        id=f"{instance['Node']['Node']}/{service['ID']}",
    )


def ignored(call: Callable[[], Awaitable[object]]) -> Disaster:
    """Something that may fail while the server is away."""

    async def attempt() -> None:
        with contextlib.suppress(Exception):
            await call()

    return attempt
