"""What happens in the demo while the load goes on: servers come, go and fail, and so does the registry."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from discovery import Snapshot, Watcher
from lbclient.cli.connections import Connections
from lbclient.cli.registries import Registry
from lbclient.cli.standing import Standing
from lbclient.cli.tally import counted
from lbclient.sandbox import Backend, SandboxError

__all__ = ["Removal", "Scenario", "Server"]

# When each event happens, as a share of the demo's duration.
_KILL = 0.08
_DRAIN = 0.22
_ADD = 0.32
_FAIL = 0.4
_SILENCE = 0.58
_STOP_REGISTRY = 0.76
# For how long, as shares of the duration: a server fails after it was taken out, one is silent, and the registry
# is away.
_FAILING = 0.03
_SILENT = 0.12
_AWAY = 0.14

# Seconds until a dead server's registration is gone, as a share of the duration; a real lease lasts longer.
_LEASE = 0.07
_LONGEST_LEASE = 1.0
# Seconds for the client to see what the registry says: its longest pause between two tries is 2 s.
_SEEN_WITHIN = 15.0
_DRAINED_WITHIN = 30.0
_POLL = 0.01
# Seconds; with very few requests it takes long until a server that fails is found.
_FOUND_WITHIN = 5.0


@dataclass(slots=True, eq=False)
class Server:
    """A backend and what the demo has done to it."""

    backend: Backend
    state: Literal["running", "killed", "draining", "drained", "errors", "stopped"] = "running"

    def __str__(self) -> str:
        return f"{self.backend.name} ({self.backend.address})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A server that went, and how long the last connection to it was open after that.

    Attributes:
        address: the server's.
        why: `killed` or `drained`.
        milliseconds: from the kill, as the client sees it; or from the deregistration, as the server sees it.
    """

    address: str
    why: Literal["killed", "drained"]
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "address": self.address,
            "why": self.why,
            "ms_to_last_connection_closed": round(self.milliseconds, 3),
        }


@dataclass(slots=True, kw_only=True)
class Scenario:
    """The events of the demo, spread over its duration.

    Attributes:
        registry: where the servers register.
        watcher: what the client knows of it.
        connections: the client's.
        stack: where what is started is to be stopped.
        duration: seconds from the beginning to the end.
        rng: chooses the victims.
        note: is told each event.
        servers: all that were ever started, in that order.
        removals: what was killed and drained.
        added: addresses that arrived during the demo.
        failed: addresses of those that answered 500 for a while, with the reason why the client took each out;
            None if it did not.
        silent: addresses of those that were stopped for a while, with the number of requests that others answered.
        away: seconds for which the registry was stopped; None before.
    """

    registry: Registry
    watcher: Watcher
    connections: Connections
    stack: AsyncExitStack
    duration: float
    rng: random.Random
    note: Callable[[str], None]
    servers: list[Server] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    failed: dict[str, str | None] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    away: float | None = None
    began_at: float = field(default_factory=time.monotonic)

    async def prepare(self, count: int) -> None:
        """Start the first servers and register them."""
        await self.start(count)
        for server in self.servers:
            await self.registry.add(server.backend.address)

    async def run(self, standing: Standing) -> None:
        """Let everything happen; `standing` is what the client says of the servers."""
        self.began_at = time.monotonic()
        await self._reach(_KILL)
        await self._kill(self._chosen())
        await self._reach(_DRAIN)
        await self._drain(self._chosen())
        await self._reach(_ADD)
        await self._add(2)
        await self._reach(_FAIL)
        await self._fail(self._chosen(), standing)
        await self._reach(_SILENCE)
        await self._silence(self._chosen(), standing)
        await self._reach(_STOP_REGISTRY)
        if self.registry.stoppable:
            await self._stop_registry()
        else:
            self.note(f"{self.registry.name} was not started by the demo, so it is not stopped either")
        await self._reach(1.0)

    async def start(self, count: int) -> list[Server]:
        """Start servers at the same time."""
        first = len(self.servers) + 1
        names = [f"b{number}" for number in range(first, first + count)]
        started = await asyncio.gather(*(self._start(name) for name in names))
        self.servers += started
        return started

    async def _start(self, name: str) -> Server:
        backend = await Backend.start(name)
        self.stack.push_async_callback(backend.stop)
        return Server(backend)

    async def _reach(self, share: float) -> None:
        await asyncio.sleep(max(0.0, self.began_at + share * self.duration - time.monotonic()))

    def _chosen(self) -> Server:
        return self.rng.choice([server for server in self.servers if server.state == "running"])

    async def _kill(self, server: Server) -> None:
        address = server.backend.address
        killed_at = time.monotonic()
        server.state = "killed"
        await server.backend.kill()
        self.note(f"kill -9 {server}; the registry still lists it")
        await asyncio.sleep(min(_LONGEST_LEASE, _LEASE * self.duration))
        await self.registry.remove(address)
        await self._listed(address, listed=False)
        closed_at = self.connections.last_closed_at(address, opened_before=killed_at) or killed_at
        self.removals.append(
            Removal(address=address, why="killed", milliseconds=max(0.0, closed_at - killed_at) * 1000)
        )
        self.note(f"the registration of {server.backend.name} has run out")

    async def _drain(self, server: Server) -> None:
        address = server.backend.address
        left_at = time.monotonic()
        server.state = "draining"
        await self.registry.remove(address)
        await self._listed(address, listed=False)
        self.note(f"{server} deregistered; it answers what it has begun")
        closed_at = await self._closed_at(server) or left_at
        milliseconds = max(0.0, closed_at - left_at) * 1000
        await server.backend.terminate()
        server.state = "drained"
        self.removals.append(Removal(address=address, why="drained", milliseconds=milliseconds))
        self.note(f"{server.backend.name} saw its last connection closed {milliseconds:.1f} ms later, and exits")

    async def _closed_at(self, server: Server) -> float | None:
        """When the server saw its last connection closed; waits until there is none open."""
        deadline = time.monotonic() + _DRAINED_WITHIN
        while (stats := await server.backend.stat())["connections_open"]:
            if time.monotonic() > deadline:
                raise SandboxError(f"{server} left {_DRAINED_WITHIN:g} s ago and still has connections")
            await asyncio.sleep(_POLL)
        return stats["last_connection_closed_at"]

    async def _add(self, count: int) -> None:
        for server in await self.start(count):
            address = server.backend.address
            began_at = time.monotonic()
            await self.registry.add(address)
            await self._listed(address)
            self.added.append(address)
            milliseconds = (time.monotonic() - began_at) * 1000
            self.note(f"{server} started and registered; in use after {milliseconds:.1f} ms")

    async def _fail(self, server: Server, standing: Standing) -> None:
        address = server.backend.address
        await server.backend.fail()
        server.state = "errors"
        self.note(f"{server} answers 500 to everything, at once")
        await _until(lambda: standing.node(address)["ejected_because"])
        because = standing.node(address)["ejected_because"]
        self.failed[address] = because
        await asyncio.sleep(_FAILING * self.duration)
        await server.backend.recover()
        server.state = "running"
        self.note(f"{server.backend.name} works again; the client finds out with one request, its probe")
        # One act after the other: this one has no requests that could become silent.
        await _until(lambda: standing.node(address)["state"] == "ready")

    async def _silence(self, server: Server, standing: Standing) -> None:
        before = standing.describe()["hedges"]
        await server.backend.pause()
        server.state = "stopped"
        later = f"{before['delay']:g} s later"
        self.note(f"SIGSTOP {server}, silent from now on; others get its requests {later}")
        await asyncio.sleep(_SILENT * self.duration)
        await _until(lambda: standing.describe()["hedges"]["won"] > before["won"])
        answered = standing.describe()["hedges"]["won"] - before["won"]
        self.silent[server.backend.address] = answered
        await server.backend.resume()
        server.state = "running"
        others = f"other servers answered {counted(answered, 'request')} for it"
        self.note(f"SIGCONT {server.backend.name}, it has its turns again; {others}")

    async def _stop_registry(self) -> None:
        stopped_at = time.monotonic()
        await self.registry.stop()
        self.note(f"the registry ({self.registry.name}) is stopped")
        stale = await self._seen(lambda snapshot: snapshot.state == "stale")
        self.note(f"the client goes on with the {counted(len(stale.endpoints), 'endpoint')} it knows")
        await asyncio.sleep(max(0.0, stopped_at + _AWAY * self.duration - time.monotonic()))
        await self.registry.resume()
        resumed_at = time.monotonic()
        self.away = round(resumed_at - stopped_at, 3)
        await self._seen(lambda snapshot: snapshot.state == "live")
        later = time.monotonic() - resumed_at
        self.note(f"the registry is back after {self.away:.1f} s; the client follows it {later:.2f} s later")

    async def _listed(self, address: str, *, listed: bool = True) -> None:
        await self._seen(lambda snapshot: listed == any(e.address == address for e in snapshot.endpoints))

    async def _seen(self, fits: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until the client knows it."""
        seen: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()

        def look(snapshot: Snapshot) -> None:
            if fits(snapshot) and not seen.done():
                seen.set_result(snapshot)

        unsubscribe = self.watcher.subscribe(look)
        try:
            look(self.watcher.snapshot)
            async with asyncio.timeout(_SEEN_WITHIN):
                return await seen
        except TimeoutError:
            known = self.watcher.snapshot
            raise SandboxError(f"the client did not see it within {_SEEN_WITHIN:g} s; it knows {known}") from None
        finally:
            unsubscribe()


async def _until(happened: Callable[[], object]) -> None:
    """Wait for what needs requests; with too few of them the demo goes on without it."""
    for _ in range(int(_FOUND_WITHIN / _POLL)):
        if happened():
            return
        await asyncio.sleep(_POLL)
