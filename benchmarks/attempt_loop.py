"""What outcomes, ejection, budgets, limits and deadlines cost a healthy request beside a plain attempt loop.

Nothing is sent: the handler that aiohttp would run is replaced by one that answers at once, so that only the
loop's own time is left. All variants take turns in short rounds; what is printed is the median of the differences
within a round, and its quartiles. Run it with `make bench`, or `python benchmarks/attempt_loop.py --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from discovery import Static
from lbclient import BalancingMiddleware, Ejection, HealthCheck, Hedge, Limits, Throttle
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.outcome import classify, classify_answer
from lbclient.passage import Passage
from lbclient.policies import RoundRobin

# Nobody listens there: the first health checks are over before anything is measured.
NODES = [f"127.0.0.1:{n}" for n in range(1, 11)]
Ask = Callable[[], Awaitable[Any]]


class Protocol:
    """As much of aiohttp's as is looked at."""

    def force_close(self) -> None:
        """Close it after this request."""


# Connections are kept: nearly every request finds one.
KEPT = Protocol()


class Connection:
    """As much of aiohttp's as an attempt touches; it is free again at once."""

    def __init__(self) -> None:
        self.protocol = KEPT
        self.transport = None

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Remember what to call in the end."""
        self.callback = callback


class Request:
    """As much of aiohttp's as the balancer touches."""

    method = "GET"
    body = b""
    ssl = True

    def __init__(self, session: Any) -> None:
        self.session = session
        self.url = URL("http://users/v1/users/42")
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.server_hostname = None
        self.proxy = None

    async def send(self, _: Connection) -> Any:
        """Answer."""
        return SimpleNamespace(
            status=200, headers={}, content=SimpleNamespace(exception=lambda: None, is_eof=lambda: True)
        )


async def handler(req: Any) -> Any:
    """Connect, send, and let the connection go."""
    conn = Connection()
    response = await req.send(conn)
    conn.callback()
    return response


def plain_loop() -> Ask:
    """What any client must do that balances: pick, count, send, look at the answer, try again."""
    balancer = Balancer("users", RoundRobin, ejection=Ejection(**OFF))
    balancer.update(Static(NODES).endpoints, 0.0)
    session = SimpleNamespace(closed=False)

    async def ask() -> Any:
        req: Any = Request(session)
        url = req.url
        call = Call(None)
        try:
            for _ in range(3):
                call.now = time.monotonic()
                node = balancer.pick(call)
                attempt = Attempt(node, "", lambda: None)  # type: ignore[arg-type]
                try:
                    attempt.aim(req, url, None)
                    response = await handler(req)
                except Exception as error:  # noqa: BLE001 - never happens here
                    attempt.land()
                    balancer.observe(attempt, classify(error), time.monotonic())
                    call.tried = (*call.tried, node)
                else:
                    balancer.observe(attempt, classify_answer(response), time.monotonic())
                    return response
        finally:
            req.url = url
            vars(req).pop("send", None)

    return ask


def balanced(connector: aiohttp.TCPConnector, **options: Any) -> tuple[Ask, BalancingMiddleware]:
    """The same through the middleware."""
    lb = BalancingMiddleware({"users": Static(NODES)}, policy=RoundRobin, **options)
    session = SimpleNamespace(closed=False, connector=connector)

    async def ask() -> Any:
        return await Passage(lb.pass_on, None, 300.0)(Request(session), handler)  # type: ignore[arg-type]

    return ask, lb


# Nothing is learned from failures.
OFF: dict[str, Any] = {
    "connect_failures": None,
    "failures": None,
    "gateway_failures": None,
    "success_rate_deviations": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "and a classifier": {"classify": lambda _: None},
    "and a header with the deadline": {"deadline_header": "X-Deadline-Ms"},
    "and a limit for the service": {"limits": Limits(per_service=1000)},
    "and an age and a number of requests for connections": {
        "limits": Limits(connection_age=60, connection_requests=1000)
    },
    "and a throttle": {"throttle": Throttle()},
    "and hedging": {"hedge": Hedge(after=10)},
    "all but hedging": {
        "classify": lambda _: None,
        "deadline_header": "X-Deadline-Ms",
        "limits": Limits(per_service=1000, connection_age=60, connection_requests=1000),
        "throttle": Throttle(),
        "health_check": HealthCheck(draining_header="X-Draining", interval=3600),
    },
}


async def spent(ask: Ask, requests: int) -> float:
    """Microseconds of CPU per request."""
    began = time.process_time()
    for _ in range(requests):
        await ask()
    return (time.process_time() - began) / requests * 1e6


async def measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """For each variant the microseconds per request, one number per round."""
    asks: dict[str, Ask] = {"plain attempt loop": plain_loop()}
    opened = []
    connector = aiohttp.TCPConnector()
    for name, options in VARIANTS.items():
        asks[name], lb = balanced(connector, **options)
        opened.append(lb)
    results: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(rounds + 1):
        for name, ask in asks.items():
            took = await spent(ask, requests)
            if number:  # the first round warms up
                results[name].append(took)
    for lb in opened:
        await lb.close()
    await connector.close()
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--requests", type=int, default=500, help="per round and variant")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = asyncio.run(measure(options.rounds, options.requests))
    plain = results["plain attempt loop"]
    table = {}
    for name, took in results.items():
        low, middle, high = statistics.quantiles([a - b for a, b in zip(took, plain, strict=True)], n=4)
        table[name] = {
            "us": round(statistics.median(took), 2),
            "more_us": round(middle, 2),
            "quartiles": [round(low, 2), round(high, 2)],
        }
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'CPU of a healthy request, nothing sent':52} {'µs':>7} {'more':>7}  quartiles")
    for name, row in table.items():
        print(f"{name:52} {row['us']:7} {row['more_us']:7}  {row['quartiles']}")


if __name__ == "__main__":
    main()
