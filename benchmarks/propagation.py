"""How fast a change arrives: from registering to the swapped tuple, from removing to the closed connection.

Real etcd and Consul on loopback, 20 endpoints already registered. The closed connection is timed by the server
that lost it. Run it with `make bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp

from discovery import Consul, Endpoint, Etcd, Source, Watcher
from lbclient import BalancedSession
from lbclient.sandbox import Backend, start_consul, start_etcd

OTHERS = [f"127.0.1.{n}:80" for n in range(1, 21)]
# Seconds between rounds: the Consul source takes ten changes in a row at once and more than that at five a second,
# which is not what is measured here.
PAUSE = 0.5
Change = Callable[[str], Awaitable[object]]


class OnlyOne:
    """A policy that goes to the backend under test whenever it is there."""

    def __init__(self, address: str) -> None:
        self._address = address

    def pick(self, nodes: tuple) -> object:  # noqa: D102 - as in lbclient.policy.Policy
        return next((node for node in nodes if node.address == self._address), nodes[0])


async def measure(source: Source, add: Change, remove: Change, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from add to swap, and from remove to the last connection closed."""
    added, closed = [], []
    for address in OTHERS:
        await add(address)
    async with (
        await Backend.start("bench") as backend,
        Watcher(source) as watcher,
        BalancedSession(watcher, name="bench", policy=lambda: OnlyOne(backend.address)) as session,
    ):
        await until(watcher, lambda endpoints: len(endpoints) == len(OTHERS))
        for _ in range(rounds):
            began = time.monotonic()
            adding = asyncio.ensure_future(add(backend.address))
            await until(watcher, lambda endpoints: len(endpoints) > len(OTHERS))
            added.append((time.monotonic() - began) * 1000)
            await adding
            async with session.get("/ping") as response:
                await response.read()
            began = time.monotonic()
            removing = asyncio.ensure_future(remove(backend.address))
            while (stat := await backend.stat())["connections_open"]:
                pass
            closed.append(((stat["last_connection_closed_at"] or 0) - began) * 1000)
            await removing
            await asyncio.sleep(PAUSE)
    return added, closed


async def until(watcher: Watcher, holds: Callable[[tuple[Endpoint, ...]], bool]) -> None:
    """Wait for a snapshot like that."""
    async for snapshot in watcher:
        if holds(snapshot.endpoints):
            return


async def etcd(version: str, rounds: int) -> tuple[list[float], list[float]]:
    """Measure with one etcd member."""
    # One kept connection, as a registering server has: making a new one takes as long as all the rest.
    async with await start_etcd(version, own=True) as server, aiohttp.ClientSession() as session:

        async def ask(path: str, **body: str) -> None:
            encoded = {name: base64.b64encode(text.encode()).decode() for name, text in body.items()}
            async with session.post(f"http://{server.address}/v3/kv/{path}", json=encoded) as response:
                await response.read()

        return await measure(
            Etcd("bench/", hosts=server.addresses),
            lambda address: ask("put", key=f"bench/{address}", value=address),
            lambda address: ask("deleterange", key=f"bench/{address}"),
            rounds,
        )


async def consul(rounds: int) -> tuple[list[float], list[float]]:
    """Measure with one Consul agent."""
    async with await start_consul(own=True) as server, aiohttp.ClientSession() as session:

        async def ask(path: str, **body: object) -> None:
            async with session.put(f"http://{server.address}/v1/agent/service/{path}", json=body) as response:
                await response.read()

        async def add(address: str) -> None:
            host, _, port = address.partition(":")
            await ask("register", ID=address, Name="bench", Address=host, Port=int(port))

        return await measure(
            Consul("bench", address=server.address), add, lambda address: ask(f"deregister/{address}"), rounds
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = {
        "etcd 3.5": etcd("3.5", options.rounds),
        "etcd 3.4": etcd("3.4", options.rounds),
        "consul": consul(options.rounds),
    }
    table = {}
    for name, run in runs.items():
        for what, times in zip(("registered to swapped", "removed to closed"), asyncio.run(run), strict=True):
            cuts = statistics.quantiles(times, n=100)
            table[f"{name}: {what}"] = {"p50_ms": round(cuts[49], 2), "p90_ms": round(cuts[89], 2)}
    if options.json:
        print(json.dumps(table, indent=2))
        return
    for name, row in table.items():
        print(f"{name:36} p50 {row['p50_ms']:7} ms   p90 {row['p90_ms']:7} ms")


if __name__ == "__main__":
    main()
