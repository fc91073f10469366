"""What a balanced request costs the client beside a bare one: CPU per request, in one interleaved run.

Each round sends the same number of requests with every variant in turn, so that a machine that slows down slows
down all of them; ratios are taken within a round, and their median and quartiles are printed. Run it with
`make bench`, or `python benchmarks/overhead.py --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from discovery import Memory
from lbclient import BalancedSession
from lbclient.sandbox import Backend

Call = Callable[[], AbstractAsyncContextManager[ClientResponse]]


async def nothing(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Be the smallest middleware there is."""
    return await handler(req)


async def cpu_per_request(call: Call, requests: int, concurrency: int) -> float:
    """CPU microseconds of this process per request."""
    todo = iter(range(requests))

    async def client() -> None:
        for _ in todo:
            async with call() as response:
                await response.read()

    began = time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return (time.process_time() - began) / requests * 1e6


async def measure(rounds: int, requests: int, concurrency: int) -> dict[str, list[float]]:
    """CPU microseconds per request for each variant, one number per round."""
    async with (
        await Backend.start("bench", ports=4) as backend,
        aiohttp.ClientSession() as bare,
        aiohttp.ClientSession(middlewares=(nothing,)) as middleware,
        BalancedSession(Memory(backend.addresses), name="bench") as balanced,
    ):
        url = f"http://{backend.address}/ping"
        variants: dict[str, Call] = {
            "bare aiohttp": lambda: bare.get(url),
            "empty middleware": lambda: middleware.get(url),
            "lbclient": lambda: balanced.get("/ping"),
        }
        results: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            for name, call in variants.items():
                spent = await cpu_per_request(call, requests, concurrency)
                if number:  # the first round warms up
                    results[name].append(spent)
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--requests", type=int, default=1000, help="per round and variant")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = {}
    for concurrency in options.concurrency:
        results = asyncio.run(measure(options.rounds, options.requests, concurrency))
        bare = results["bare aiohttp"]
        for name, spent in results.items():
            low, middle, high = statistics.quantiles([a / b for a, b in zip(spent, bare, strict=True)], n=4)
            more = statistics.median(a - b for a, b in zip(spent, bare, strict=True))
            table[f"{name}, concurrency {concurrency}"] = {
                "us_per_request": round(statistics.median(spent), 1),
                "more_us": round(more, 1),
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
            }
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'CPU of the client per request':34} {'µs':>8} {'more':>7} {'ratio':>7}  quartiles")
    for name, row in table.items():
        print(f"{name:34} {row['us_per_request']:8} {row['more_us']:7} {row['ratio']:7}  {row['quartiles']}")


if __name__ == "__main__":
    main()
