"""The only loop: `Watcher` keeps one immutable `Snapshot` fresh from one source, whatever the source does."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Self

from discovery.backoff import Backoff
from discovery.endpoint import Endpoint, Snapshot, endpoint_tuple
from discovery.source import Source, SourceError

__all__ = ["Listener", "Watcher"]

log = logging.getLogger(__name__)

Listener = Callable[[Snapshot], None]


class Watcher:
    """Follows one source in one background task and swaps `snapshot` when something changed.

    What a caller may rely on: `snapshot` is always a complete, immutable value and reading it costs nothing; an
    error of the source never ends the watcher and never takes away the last good endpoints, it only turns
    the state to `stale`; each change of state is logged once. What it does not do: it never decides which
    endpoint is healthy.

    Args:
        source: where the endpoints come from.
        name: what log lines call this watcher; the source's own description by default.
        backoff: delays between attempts to reach the source; a stop interrupts them.
        rng: source of the jitter, for tests.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str = "",
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not callable(getattr(source, "watch", None)):
            raise TypeError(f"{source!r} is no source: it has no watch() method")
        self.source = source
        self.name = name or repr(source)
        self.snapshot = Snapshot()
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners: list[Listener] = []

    def __repr__(self) -> str:
        return f"<Watcher {self.name}: version {self.snapshot.version}, {self.snapshot}>"

    @property
    def running(self) -> bool:
        """Whether the background task is there."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to follow the source; needs a running event loop. Doing it twice is harmless."""
        if self._stopped:
            raise RuntimeError(f"{self.name}: the watcher was stopped")
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """End the background task and wait until the source has released everything it held."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._swap(replace(self.snapshot, state="stale", reason="the watcher was stopped"))
        self._wake()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each new snapshot, inside the swap itself, so that nothing can run in between.

        The listener must be quick, must not await and must not subscribe. Returns the function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def newer_than(self, version: int) -> Snapshot:
        """The newest snapshot as soon as its version is above `version`; versions in between are left out."""
        while self.snapshot.version <= version:
            await self._next_swap()
        return self.snapshot

    async def ready(self, timeout: float | None = None) -> Snapshot:  # noqa: ASYNC109 - the message names the reason
        """Wait until endpoints were received for the first time, at most `timeout` seconds.

        Raises:
            TimeoutError: with the reason why nothing came.
        """
        self.start()
        try:
            async with asyncio.timeout(timeout):
                return await self.newer_than(0)
        except TimeoutError:
            why = self.snapshot.reason or "no answer yet"
            raise TimeoutError(f"{self.name}: nothing received within {timeout} s: {why}") from None

    async def __aiter__(self) -> AsyncGenerator[Snapshot, None]:
        """Yield the newest snapshot now and whenever something about it changed, until the watcher is stopped."""
        seen: object = None
        while not self._stopped:
            snapshot = self.snapshot
            # That there is a reason is news, its wording is not: it may change with every attempt.
            news = (snapshot.version, snapshot.state, bool(snapshot.reason), snapshot.skipped)
            if seen != news:
                seen = news
                yield snapshot
            else:
                await self._next_swap()

    async def _next_swap(self) -> None:
        if self._stopped:
            raise RuntimeError(f"{self.name}: the watcher was stopped")
        woken = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)

    def _wake(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    async def _follow(self) -> None:
        now = asyncio.get_running_loop().time
        failures = 0
        while True:
            began_at: float | None = None
            try:
                async with aclosing(self.source.watch()) as sets:
                    async for endpoints in sets:
                        began_at = began_at or now()
                        self._received(endpoints)
                reason = "the source ended"
            except asyncio.CancelledError as error:
                # Only our own cancellation may end the task; a source that leaks one is a broken source.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                reason = f"the source was cancelled {error}".strip()
            except SourceError as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - a source may fail in any way and must not end the watcher
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            # A source that answers and fails at once must not be asked in a hot loop.
            lasted = began_at is not None and now() - began_at > self._backoff.cap
            failures = 1 if lasted else failures + 1
            self._lost(reason)
            await asyncio.sleep(self._backoff.delay(failures, self._rng))

    def _received(self, endpoints: Sequence[Endpoint]) -> None:
        old = self.snapshot
        if endpoints is not old.endpoints:
            endpoints = endpoint_tuple(endpoints)
        changed = old.version == 0 or endpoints != old.endpoints
        new = Snapshot(
            version=old.version + 1 if changed else old.version,
            # The old tuple is kept where it is equal, so that "did it change" is an identity test for readers.
            endpoints=tuple(endpoints) if changed else old.endpoints,
            received_at=time.monotonic(),
            state="live",
            skipped=len(getattr(self.source, "skipped", ())),
        )
        if old.state != "live":
            log.info("%s: live, %d endpoints", self.name, len(new.endpoints))
        self._swap(new)

    def _lost(self, reason: str) -> None:
        old = self.snapshot
        if old.state == "stale" or (old.state == "starting" and old.reason):
            log.debug("%s: still %s: %s", self.name, old.state, reason)
        elif old.version:
            log.warning("%s: stale, %d endpoints kept: %s", self.name, len(old.endpoints), reason)
        else:
            log.warning("%s: not reached yet: %s", self.name, reason)
        self._swap(replace(old, state="stale" if old.version else "starting", reason=reason))

    def _swap(self, new: Snapshot) -> None:
        self.snapshot = new
        for listener in tuple(self._listeners):
            try:
                listener(new)
            except Exception:
                log.exception("%s: a listener failed", self.name)
        self._wake()
