"""How soon an outage of a registry is known, and how soon it is over: real etcd and Consul on loopback.

Killed with -9, stopped with SIGSTOP, several members, and what stopping a watcher takes. All on default settings.
Run it with `make bench-outages`; it takes some minutes, most of them waiting for silent servers to be noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import time
from collections.abc import Callable

from discovery import Consul, Etcd, Snapshot, Source, Watcher
from lbclient.sandbox import ConsulServer, EtcdCluster, start_consul, start_etcd

Times = dict[str, list[float]]
SERVICE = "bench"


async def reached(watcher: Watcher, state: str, began: float) -> float:
    """Milliseconds from `began` until the watcher is in the state."""
    found: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def look(snapshot: Snapshot) -> None:
        if snapshot.state == state and not found.done():
            found.set_result((time.monotonic() - began) * 1000)

    end = watcher.subscribe(look)
    look(watcher.snapshot)
    try:
        async with asyncio.timeout(60):
            return await found
    finally:
        end()


async def one_server(server: EtcdCluster | ConsulServer, source: Callable[[], Source], rounds: int) -> Times:
    """One server, killed and stopped again and again."""
    times: Times = {"killed to stale": [], "ready to fresh": [], "SIGSTOP to stale": [], "stop()": []}
    rng = random.Random(1)
    async with Watcher(source()) as watcher:
        await watcher.ready(10)
        for _ in range(rounds):
            await asyncio.sleep(rng.uniform(0.1, 1))
            began = time.monotonic()
            known = asyncio.ensure_future(reached(watcher, "stale", began))
            await server.kill()
            times["killed to stale"].append(await known)
            await asyncio.sleep(rng.uniform(0, 6))
            await server.restart()
            times["ready to fresh"].append(await reached(watcher, "live", time.monotonic()))
        for _ in range(max(3, rounds // 3)):
            await asyncio.sleep(rng.uniform(0, 5))
            began = time.monotonic()
            known = asyncio.ensure_future(reached(watcher, "stale", began))
            await server.pause()
            times["SIGSTOP to stale"].append(await known)
            await server.resume()
            await reached(watcher, "live", time.monotonic())
    for _ in range(rounds):
        watcher = Watcher(source())
        watcher.start()
        await watcher.ready(10)
        times["stop()"].append(await stopped(watcher))
    await server.kill()
    for _ in range(rounds):
        watcher = Watcher(source())
        watcher.start()
        await asyncio.sleep(rng.uniform(0, 1))  # somewhere in its back-off
        times["stop()"].append(await stopped(watcher))
    return times


async def stopped(watcher: Watcher) -> float:
    """Milliseconds that stopping takes."""
    began = time.monotonic()
    await watcher.stop()
    return (time.monotonic() - began) * 1000


async def three_members(cluster: EtcdCluster, rounds: int) -> Times:
    """The member in use falls silent; another one takes over."""
    times: Times = {"SIGSTOP to another member": []}
    for number in range(rounds):
        used = number % 3
        hosts = [*cluster.addresses[used:], *cluster.addresses[:used]]
        async with Watcher(Etcd(SERVICE, hosts=hosts)) as watcher:
            await watcher.ready(10)
            await asyncio.sleep(random.uniform(0, 5))
            began = time.monotonic()
            await cluster.pause(used)
            await reached(watcher, "stale", began)
            times["SIGSTOP to another member"].append(await reached(watcher, "live", began))
            await cluster.resume(used)
            await asyncio.sleep(1)
    return times


async def etcd(rounds: int) -> Times:
    """One member, then three."""
    async with await start_etcd("3.5", own=True) as cluster:
        await cluster.put(f"{SERVICE}/a", "10.0.0.1:80")
        hosts = cluster.addresses
        times = await one_server(cluster, lambda: Etcd(SERVICE, hosts=hosts), rounds)
    async with await start_etcd("3.5", own=True, members=3) as cluster:
        await cluster.put(f"{SERVICE}/a", "10.0.0.1:80")
        return times | await three_members(cluster, max(3, rounds // 3))


async def consul(rounds: int) -> Times:
    """One agent."""
    async with await start_consul(own=True) as server:
        await server.register(SERVICE, "10.0.0.1", 80)
        return await one_server(server, lambda: Consul(SERVICE, address=server.address), rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # outages are the point here
    table = {}
    for name, run in (("etcd 3.5", etcd), ("consul", consul)):
        for what, times in asyncio.run(run(options.rounds)).items():
            cuts = statistics.quantiles(times, n=10, method="inclusive")
            row = {"p50_ms": cuts[4], "p90_ms": cuts[8], "max_ms": max(times), "rounds": len(times)}
            table[f"{name}: {what}"] = {key: round(value, 1) for key, value in row.items()}
            if not options.json:
                row = table[f"{name}: {what}"]
                print(
                    f"{name + ':':9} {what:26} p50 {row['p50_ms']:8} ms   p90 {row['p90_ms']:8} ms"
                    f"   max {row['max_ms']:8} ms   ({row['rounds']} rounds)",
                    flush=True,
                )
    if options.json:
        print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
