"""Nodes leave and return all the time: nothing fails, nothing leaks, nobody is asked after having left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from patience import patience

from discovery import Memory, Watcher
from lbclient import BalancedSession, RoundRobin
from lbclient.sandbox.backends import Backend

REQUESTS = 20_000
SWAPS = 100
CLIENTS = 64
SWAP_EVERY = 0.04


async def _upload() -> AsyncIterator[bytes]:
    for _ in range(4):
        yield b"x" * 500
        await asyncio.sleep(0.002)


async def _request(session: BalancedSession, kind: int) -> None:
    if kind == 0:
        call = session.get("/slow?ms=25")
    elif kind == 1:
        call = session.get("/stream?chunks=4&ms=4&size=2000")
    elif kind == 2:
        call = session.post("/upload", data=_upload())
    elif kind < 8:
        call = session.post("/upload", data=b"y" * 3000)
    else:
        call = session.get("/ping")
    async with call as response:
        assert response.status == 200
        await response.read()


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _open_connections(backends: Iterable[Backend]) -> int:
    return sum([stat["connections_open"] for b in backends for stat in (await b.stats()).values()])


class Churn:
    """Swaps a random subset every 40 ms; each server knows when it has left and when it is about to be back."""

    def __init__(self, backends: list[Backend], memory: Memory) -> None:
        self._memory = memory
        self._servers = {port: backend for backend in backends for port in backend.ports}
        self._inside = sorted(self._servers)
        self._returning: list[int] = []
        self._rng = random.Random(20)
        self.swaps = self.left = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as absences:
            while True:
                tick = asyncio.create_task(asyncio.sleep(SWAP_EVERY))
                leaving = self._rng.sample(self._inside, min(self._rng.randint(0, 6), len(self._inside) - 3))
                self._inside = [port for port in self._inside if port not in leaving] + self._returning
                self._returning = []
                self._memory.set(f"127.0.0.1:{port}" for port in self._inside)
                for port in leaving:
                    absences.create_task(self._absence(port))
                self.swaps += 1
                self.left += len(leaving)
                await tick

    async def _absence(self, port: int) -> None:
        # One turn for the source to yield and one for the watcher to swap. What is sent now travels on a
        # connection of its own behind everything that was sent to the server before.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await self._servers[port].left(port)
        await asyncio.sleep(self._rng.uniform(0, 0.2))
        await self._servers[port].back(port)
        self._returning.append(port)


@pytest.mark.timeout(120)
async def test_churn_loses_nothing_and_asks_nobody_who_left() -> None:
    async with AsyncExitStack() as stack:
        backends = await asyncio.gather(*(Backend.start(f"b{n}", ports=5) for n in range(4)))
        for backend in backends:
            await stack.enter_async_context(backend)
        memory = Memory(address for backend in backends for address in backend.addresses)
        watcher = await stack.enter_async_context(Watcher(memory, on_empty="accept"))
        await watcher.ready(5)
        for backend in backends:
            await backend.stats()  # opens the control connections, which are not to be counted below
        descriptors = _descriptors()

        async with BalancedSession(watcher, name="users", policy=RoundRobin) as session:
            churn = Churn(list(backends), memory)
            churning = asyncio.create_task(churn.run())
            rng = random.Random(1)
            sent = 0

            async def client() -> None:
                nonlocal sent
                while sent < REQUESTS or churn.swaps < SWAPS:
                    sent += 1
                    await _request(session, rng.randrange(100))

            clients = asyncio.gather(*(client() for _ in range(CLIENTS)))
            await asyncio.wait([clients, churning], return_when=asyncio.FIRST_COMPLETED)
            churning.cancel()
            await asyncio.wait([churning])
            await clients

            stats = [stat for backend in backends for stat in (await backend.stats()).values()]
            assert sum(stat["after_leaving"] for stat in stats) == 0
            assert sum(stat["requests"] for stat in stats) == sent, "a request was sent twice, or not at all"
            assert churn.left > 2 * SWAPS
            nodes = session.describe()["services"]["users"]["nodes"]
            assert sum(node["in_flight"] for node in nodes) == 0

            memory.set([])
            await watcher.newer_than(watcher.snapshot.version)
            async with patience(1):  # well below the time after which idle connections end anyway
                while await _open_connections(backends):
                    pass
            assert session.describe()["draining"] == []
        assert _descriptors() <= descriptors
