"""The loop of a registrar: writes the entry, gives signs of life, and begins again whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from discovery.backoff import Backoff
from discovery.endpoint import Endpoint
from discovery.registrar.registration import Forgotten, Registration, Taken
from discovery.registrar.standing import Standing
from discovery.source import SourceError

__all__ = ["Upkeep", "Wanted"]

# Seconds that leaving may take when the registry does not answer: for a request that is on its way (cut off, it
# might be carried out after the removal), and for the removal.
_FINISH, _REMOVE = 0.5, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the registry should say.

    Attributes:
        endpoint: what others shall find.
        complaint: why they must not, now; empty if they may; None if that is not known yet: nothing is written.
        number: grows with each change.
    """

    endpoint: Endpoint
    complaint: str | None
    number: int = 1


class Upkeep:
    """Keeps one entry as it is wanted, until told to leave.

    Args:
        registration: the entry.
        standing: where to say how it stands.
        wanted: what to begin with.
        ttl: seconds; a sign of life is given every third of it, 10 % sooner or later.
        backoff: delays between attempts after a failure.
        rng: source of the jitter.

    Attributes:
        wanted: what the registry should say.
        written: the number of what it does say.
        leaving: whether this is the end.
    """

    def __init__(
        self,
        registration: Registration[Any],
        standing: Standing,
        wanted: Wanted,
        *,
        ttl: float,
        backoff: Backoff,
        rng: random.Random,
    ) -> None:
        self.wanted = wanted
        self.written = 0
        self.leaving = False
        self._registration = registration
        self._standing = standing
        self._ttl = ttl
        self._backoff = backoff
        self._rng = rng
        self._alive_at = 0.0
        self._removing = False
        self._wake = asyncio.Event()

    def want(self, **changes: Any) -> Wanted:
        """Change what the registry should say; it is written as soon as possible."""
        self.wanted = replace(self.wanted, **changes, number=self.wanted.number + 1)
        self._wake.set()
        return self.wanted

    async def leave(self, task: asyncio.Task[None]) -> None:
        """End `run()`, which runs in this task, and wait for it: 1.5 s at most."""

        def cut_off() -> None:
            if not self._removing:
                task.cancel()

        self.leaving = True
        self._wake.set()
        timer = asyncio.get_running_loop().call_later(_FINISH, cut_off)
        try:
            await asyncio.wait([task])
        finally:
            timer.cancel()

    async def run(self) -> None:
        """Keep the entry; remove it when we leave, or are cancelled."""
        now = asyncio.get_running_loop().time
        failures = 0
        try:
            while not self.leaving:
                alive_at, pause = self._alive_at, 0.0
                try:
                    await self._beat()
                    break
                except SourceError as error:
                    pause = error.retry_after
                    self._failed(str(error), gone=isinstance(error, (Forgotten, Taken)))
                except Exception as error:  # noqa: BLE001 - whatever it is, giving up would be worse
                    self._failed(f"{type(error).__name__}: {error}", gone=False)
                failures = 1 if self._alive_at != alive_at else failures + 1
                # New connections: certificates may have been renewed, or a name may lead elsewhere now.
                with contextlib.suppress(Exception):
                    await self._registration.close()
                again_at = now() + max(self._backoff.delay(failures, self._rng), pause)
                # In a long pause the entry may end.
                if now() < (ends_at := self._alive_at + self._ttl) < again_at:
                    await self._sleep(ends_at, lambda: False)
                    self._failed(self._standing.reason, gone=False)
                await self._sleep(again_at, lambda: False)
        finally:
            self.leaving = self._removing = True
            await self._remove()

    async def _beat(self) -> None:
        """Write the entry and give signs of life, until one fails or we leave."""
        now = asyncio.get_running_loop().time
        fresh = False
        await self._sleep(None, lambda: self.wanted.complaint is not None)
        while not self.leaving:
            began_at, wanted, complaint = now(), self.wanted, self.wanted.complaint or ""
            if fresh and wanted.number == self.written:
                await self._renew(wanted.endpoint, complaint)
            else:
                await self._registration.put(wanted.endpoint, complaint)
            fresh, self.written, self._alive_at = True, wanted.number, began_at
            self._standing.move("unhealthy" if complaint else "registered", complaint)
            # From the beginning of one to the next: a slow answer must not stretch the interval.
            due = began_at + self._ttl / 3 * self._rng.uniform(0.9, 1.1)
            await self._sleep(due, lambda: self.wanted.number != self.written)

    async def _renew(self, endpoint: Endpoint, complaint: str) -> None:
        try:
            await self._registration.renew()
        except Forgotten as error:
            self._failed(str(error), gone=True)
            await self._registration.put(endpoint, complaint)

    async def _sleep(self, until: float | None, interrupted: Callable[[], object]) -> None:
        """Wait until a moment (loop time; None is for ever), shorter if we leave or are interrupted."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not (self.leaving or interrupted()):
                    self._wake.clear()
                    await self._wake.wait()

    def _failed(self, reason: str, *, gone: bool) -> None:
        state = self._standing.state
        over = asyncio.get_running_loop().time() >= self._alive_at + self._ttl
        if state in ("registered", "unhealthy") and (gone or over):
            state = "lost"
        self._standing.move(state, reason)

    async def _remove(self) -> None:
        reason = ""
        try:
            async with asyncio.timeout(_REMOVE):
                await self._registration.remove()
        except TimeoutError:
            reason = f"no answer within {_REMOVE:g} s"
        except Exception as error:  # noqa: BLE001 - leaving must come to its end
            reason = str(error) or type(error).__name__
        finally:
            await self._registration.close()
            self._standing.move("left", reason)
