"""What ten thousand endpoints cost: how long starting takes, and how long the event loop stands still for it.

Real etcd and Consul on loopback. The longest turn is measured in CPU time, since other processes share the cores;
with Python's garbage collector as it is, and with `gc.freeze()` after the imports. Run it with `make bench-scale`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable

import aiohttp

from discovery import Consul, Etcd, Source, Watcher
from lbclient import BalancedSession
from lbclient.sandbox import start_consul, start_etcd


class Turns:
    """The longest time that other tasks had to wait for their turn, in seconds of CPU time and of the clock."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    async def watch(self) -> None:
        """Take a turn whenever there is one."""
        while True:
            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.sleep(0)
            self.cpu = max(self.cpu, time.process_time() - cpu)
            self.wall = max(self.wall, time.perf_counter() - wall)


async def start(source: Source, count: int) -> dict[str, float]:
    """Milliseconds until all endpoints are nodes of a balancer, and of the longest turn."""
    turns = Turns()
    watching = asyncio.create_task(turns.watch())
    await asyncio.sleep(0.1)
    turns.cpu = turns.wall = 0.0
    began = time.perf_counter()
    async with Watcher(source) as watcher, BalancedSession(watcher, name="bench") as session:
        await session.ready(60)
        took = time.perf_counter() - began
        if len(session.endpoints()) != count:
            raise RuntimeError(f"{len(session.endpoints())} endpoints, not {count}")
        watching.cancel()
    return {"start_ms": took * 1000, "longest_turn_cpu_ms": turns.cpu * 1000, "longest_turn_ms": turns.wall * 1000}


async def etcd(count: int, measure: Callable[[Callable[[], Source]], Awaitable[None]]) -> None:
    """Fill one etcd member."""
    async with await start_etcd("3.5", own=True) as server:
        for number in range(0, count, 500):
            await asyncio.gather(*(server.put(f"bench/{n}", address(n)) for n in range(number, number + 500)))
        await measure(lambda: Etcd("bench", hosts=server.addresses))


async def consul(count: int, measure: Callable[[Callable[[], Source]], Awaitable[None]]) -> None:
    """Fill one agent."""
    async with await start_consul(own=True) as server, aiohttp.ClientSession() as session:
        for begin in range(0, count, 60):
            # A node of its own: the agent would tidy up what it does not know on its own one.
            changes = [{"Node": {"Verb": "set", "Node": {"Node": "bench", "Address": "127.0.0.1"}}}]
            for number in range(begin, min(begin + 60, count)):
                host, _, port = address(number).partition(":")
                service = {"ID": f"i{number}", "Service": "bench", "Address": host, "Port": int(port)}
                changes.append({"Service": {"Verb": "set", "Node": "bench", "Service": service}})
            async with session.put(f"http://{server.address}/v1/txn", json=changes) as response:
                response.raise_for_status()
        await measure(lambda: Consul("bench", address=server.address))


def address(number: int) -> str:
    """In no order."""
    number = number * 7919 % 10007
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}:80"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table: dict[str, dict[str, float]] = {}

    for name, fill in (("etcd 3.5", etcd), ("consul", consul)):

        async def measure(source: Callable[[], Source], name: str = name) -> None:
            for frozen in (False, True):
                gc.collect()
                (gc.freeze if frozen else gc.unfreeze)()
                rows = [await start(source(), options.count) for _ in range(options.rounds)]
                row = {key: round(sorted(row[key] for row in rows)[len(rows) // 2], 1) for key in rows[0]}
                table[f"{name}, {'gc.freeze()' if frozen else 'gc as it is'}"] = row
            gc.unfreeze()

        asyncio.run(fill(options.count, measure))
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{options.count} endpoints, medians of {options.rounds} rounds")
    for name, row in table.items():
        print(f"{name:24} " + "   ".join(f"{key} {value:8}" for key, value in row.items()))


if __name__ == "__main__":
    main()
