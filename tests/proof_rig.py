"""For the proofs: servers that are killed, a load that nothing slows down, and what both sides wrote down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from fault_rig import Fault, FaultServer, fault_servers

from lbclient import BalancedSession, attempts
from lbclient.attempt import Attempt

# `make proofs` sets it: more rounds, longer loads.
WHOLE = bool(os.environ.get("LBCLIENT_PROOFS"))
_OK = 200


# Seconds that servers work for a request, by what is asked for: some are always under way.
WORK = {"/quick": 0.005, "/usual": 0.02, "/slow": 0.06}
HEALTHY = tuple(Fault(path=path, delay=delay) for path, delay in WORK.items())


@contextlib.asynccontextmanager
async def working(count: int, *faults: Fault) -> AsyncIterator[list[FaultServer]]:
    """So many servers, in processes of their own."""
    async with fault_servers(*(f"s{number}" for number in range(1, count + 1))) as servers:
        for server in servers:
            await server.play(*(faults or HEALTHY))
        yield servers


@dataclass(slots=True)
class Sent:
    """A request and what became of it."""

    id: str
    method: str
    started_at: float
    keyed: bool = False
    elapsed: float = 0.0
    status: int = 0
    error: str = ""
    tries: tuple[Attempt, ...] = ()

    @property
    def failed(self) -> bool:
        return self.over and self.status != _OK

    @property
    def over(self) -> bool:
        return bool(self.status or self.error)

    def __str__(self) -> str:
        said = self.error or f"status {self.status}"
        return f"{self.method} {self.id}: {said} after {self.elapsed:.3f} s; {'; '.join(map(str, self.tries))}"


@dataclass
class Load:
    """An open loop: each request starts at its time, whatever becomes of those before.

    Args:
        session: what sends them; it has one service.
        rate: requests per second.
        posts: share of POSTs; the others are GETs.
        keyed: share of those with an idempotency key.
        timeout: seconds for a whole request.
    """

    session: BalancedSession
    rate: float = 200.0
    posts: float = 0.3
    keyed: float = 0.0
    timeout: float = 10.0
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    sent: list[Sent] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Send until the end of the block; then those under way come to their ends."""
        requests: set[asyncio.Task[None]] = set()
        sending = asyncio.create_task(self._run(requests))
        try:
            yield self
            sending.cancel()
            await asyncio.wait([sending, *requests])
        finally:
            for task in (sending, *requests):
                task.cancel()
            await asyncio.gather(sending, *requests, return_exceptions=True)

    async def _run(self, requests: set[asyncio.Task[None]]) -> None:
        began_at, number = time.monotonic(), 0
        while True:
            await asyncio.sleep(max(0.0, began_at + number / self.rate - time.monotonic()))
            number += 1
            method = "POST" if self.rng.random() < self.posts else "GET"
            record = Sent(f"{len(self.sent)}", method, time.monotonic())
            record.keyed = method == "POST" and self.rng.random() < self.keyed
            self.sent.append(record)
            task = asyncio.create_task(self._send(record, self.rng.choice(list(WORK))))
            requests.add(task)
            task.add_done_callback(requests.discard)

    async def _send(self, record: Sent, path: str) -> None:
        options: dict[str, Any] = {"headers": {"X-Request-Id": record.id}, "timeout": self.timeout}
        if record.method == "POST":
            options["data"] = b"x" * 200
        if record.keyed:
            options["headers"]["Idempotency-Key"] = record.id
        result: Any = None
        try:
            async with self.session.request(record.method, path, **options) as result:
                await result.read()
                record.status = result.status
        except (aiohttp.ClientError, TimeoutError) as error:
            result = result or error
            record.error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        finally:
            record.elapsed = time.monotonic() - record.started_at
            record.error = record.error or ("" if record.status else "never ended")
            record.tries = () if result is None else attempts(result)

    def between(self, start: float, end: float = float("inf")) -> list[Sent]:
        """Those that were started in this time."""
        return [sent for sent in self.sent if start <= sent.started_at < end]

    @property
    def failed(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.failed]


def quantile(sent: Iterable[Sent], share: float) -> float:
    """Seconds within which this share of them was over."""
    elapsed = sorted(each.elapsed for each in sent)
    return elapsed[min(len(elapsed) - 1, int(share * len(elapsed)))] if elapsed else 0.0


def processed(servers: Iterable[FaultServer]) -> Counter[str]:
    """How often each request was read whole by a server, by its id."""
    times: Counter[str] = Counter()
    for server in servers:
        times.update({name: trace.processed for name, trace in server.report.requests.items()})
    return times


def posts_processed_twice(load: Load, servers: Iterable[FaultServer]) -> list[str]:
    """POSTs without an idempotency key that servers read more than once."""
    times = processed(servers)
    return [str(sent) for sent in load.sent if sent.method == "POST" and not sent.keyed and times[sent.id] > 1]


def tries_of(sent: Iterable[Sent]) -> list[Attempt]:
    """All attempts."""
    return [attempt for each in sent for attempt in each.tries]


def report(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print a table of what was measured (pytest shows it with `-s`), and keep it for `make proofs`."""
    shown = [(name, f"{value:.3g}" if isinstance(value, float) else str(value)) for name, value in rows]
    width = max(len(name) for name, _ in shown)
    lines = "".join(f"  {name:<{width}}  {value}\n" for name, value in shown)
    sys.stdout.write(f"\n{title}\n{lines}")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@contextlib.contextmanager
def connects_counted() -> Iterator[Counter[str]]:
    """How many connections were tried, by address, counted where the loop is asked for them."""
    loop: Any = asyncio.get_running_loop()
    original, counts = loop.sock_connect, Counter[str]()

    async def sock_connect(sock: Any, address: Any) -> None:
        counts["{}:{}".format(*address[:2])] += 1
        await original(sock, address)

    loop.sock_connect = sock_connect
    try:
        yield counts
    finally:
        del loop.sock_connect
