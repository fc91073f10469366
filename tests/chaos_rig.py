"""Random faults and random churn on fault servers, and a diary of what was wrong with whom and when."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

from fault_rig import Fault, FaultServer
from proof_rig import HEALTHY, Sent

from discovery import Memory
from lbclient import Outcome

# Each of them for some of the requests, or for all, and the others are served as usual.
FAULTS = {
    "reset before reading": Fault(reads="nothing", sends="nothing", then="reset"),
    "reset after the head": Fault(reads="head", sends="nothing", then="reset"),
    "closed after reading": Fault(sends="nothing", then="close"),
    "half a head": Fault(sends="half head", then="close"),
    "half a body": Fault(sends="half body", then="close"),
    "length too large": Fault(length=10, then="close"),
    "no HTTP": Fault(raw="garbage\r\n\r\n", then="close"),
    "dripping": Fault(pieces=10, pause=0.03),
    "silence": Fault(sends="nothing", then="silence"),
    "silence after half a body": Fault(sends="half body", then="silence"),
    "500": Fault(status=500),
    "503": Fault(status=503),
    "503 and Retry-After": Fault(status=503, headers={"Retry-After": "1"}),
    "429": Fault(status=429),
    "last answer": Fault(headers={"Connection": "close"}),
    "closed at reuse": Fault(reads="nothing", sends="nothing", then="close", reused=True),
}
# What was sent before the end of a fault arrives a little later, on a busy machine.
SLACK = 0.3
# What says nothing against a server: an answer, a lost race.
_UNBLAMED = (Outcome.SUCCESS, Outcome.OURS)
# Seconds from leaving the registry to stopping.
LINGER = 0.2


@dataclass(slots=True)
class Trouble:
    """Something that was wrong with a server for a while."""

    what: str
    address: str
    since: float
    until: float = inf


@dataclass
class Chaos:
    """Breaks some of the servers at a time, never all of them, and mends them after a while.

    Args:
        servers: all of them.
        memory: the registry.
        rng: chooses.
        well: so many are left in peace at each moment.
    """

    servers: list[FaultServer]
    memory: Memory
    rng: random.Random
    well: int = 3
    diary: list[Trouble] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def reigning(self) -> AsyncIterator[None]:
        """Until the end of the block, after which all are well and registered."""
        reign = asyncio.create_task(self._run())
        try:
            yield
            if reign.done():
                reign.result()
        finally:
            reign.cancel()
            await asyncio.gather(reign, return_exceptions=True)

    async def _run(self) -> None:
        acts: dict[asyncio.Task[None], FaultServer] = {}
        try:
            while True:
                await asyncio.sleep(self.rng.uniform(0.05, 0.3))
                for act in [act for act in acts if act.done()]:
                    del acts[act]
                    act.result()
                peaceful = [server for server in self.servers if server not in acts.values()]
                if len(peaceful) > self.well:
                    victim = self.rng.choice(peaceful)
                    acts[asyncio.create_task(self._act(victim))] = victim
        finally:
            # They end by themselves, having mended what they broke.
            await asyncio.gather(*acts)

    async def _act(self, victim: FaultServer) -> None:
        acts: list[Callable[[FaultServer], Awaitable[None]]] = [
            self._misbehave,
            self._misbehave,
            self._misbehave,
            self._refuse,
            self._fill,
            self._close_idle,
            self._die,
            self._stop,
            self._leave,
            self._leave,
            self._deploy,
        ]
        await self.rng.choice(acts)(victim)

    @contextlib.contextmanager
    def _noted(self, what: str, victim: FaultServer) -> Iterator[None]:
        trouble = Trouble(what, victim.address, time.monotonic())
        self.diary.append(trouble)
        self.counts[what] += 1
        yield
        trouble.until = time.monotonic()

    async def _a_while(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.1, 1.0))

    async def _misbehave(self, victim: FaultServer) -> None:
        what = self.rng.choice(list(FAULTS))
        with self._noted(what, victim):
            fault = replace(FAULTS[what], share=self.rng.choice([0.3, 1.0]))
            await victim.play(fault, *HEALTHY, seed=self.rng.randrange(1000))
            await self._a_while()
            await victim.play(*HEALTHY)

    async def _refuse(self, victim: FaultServer) -> None:
        with self._noted("refused", victim):
            await victim.refuse()
            await self._a_while()
            await victim.listen()

    async def _fill(self, victim: FaultServer) -> None:
        with self._noted("queue full", victim):
            await victim.fill()
            await self._a_while()
            await victim.listen()

    async def _close_idle(self, victim: FaultServer) -> None:
        with self._noted("idle connections closed", victim):
            await victim.close_idle()

    async def _die(self, victim: FaultServer) -> None:
        with self._noted("killed", victim):
            await victim.kill()
            await self._a_while()
            await victim.restart(*HEALTHY)

    async def _stop(self, victim: FaultServer) -> None:
        with self._noted("stopped", victim):
            await victim.pause()
            await self._a_while()
            await victim.resume()

    async def _leave(self, victim: FaultServer) -> None:
        """It leaves the registry and comes back, and answers all the time: no excuse for a failure."""
        self.counts["left"] += 1
        self.memory.remove(victim.address)
        await self._a_while()
        self.memory.add(victim.address)

    async def _deploy(self, victim: FaultServer) -> None:
        """Deregistered, stopped gracefully, started and registered: no excuse either."""
        self.counts["deployed"] += 1
        self.memory.remove(victim.address)
        await asyncio.sleep(LINGER)
        await victim.terminate()
        await victim.restart(*HEALTHY)
        self.memory.add(victim.address)

    def excuses(self, sent: Sent) -> bool:
        """Whether something was wrong with the server of each attempt that failed, while it was under way."""
        end = sent.started_at + sent.elapsed
        excused = [self._excuses(each.endpoint.address, each.started_at, end) for each in sent.tries]
        failed = [
            excuse for each, excuse in zip(sent.tries, excused, strict=True) if each.outcome not in _UNBLAMED
        ]
        # If none of them failed, the body of the winner broke off: it says nothing of that when its node has left
        # meanwhile, and who lost the race against it may be well.
        return all(failed) and any(excused)

    def _excuses(self, address: str, since: float, until: float) -> bool:
        return any(
            trouble.address == address and trouble.since <= until and trouble.until + SLACK >= since
            for trouble in self.diary
        )
