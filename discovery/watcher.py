"""The only loop: `Watcher` keeps one immutable `Snapshot` fresh from one source, whatever the source does."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Self

from discovery.backoff import Backoff
from discovery.cache import Cache, Cached, keep
from discovery.endpoint import Endpoint, endpoint_tuple
from discovery.hold import Hold, OnEmpty
from discovery.published import Published
from discovery.snapshot import Snapshot
from discovery.source import Source, SourceError

__all__ = ["Watcher"]

log = logging.getLogger(__name__)

_LARGE = 1000  # endpoints


class Watcher(Published):
    """Follows one source in one background task and swaps `snapshot` when something changed.

    What a caller may rely on: `snapshot` is always a complete, immutable value and reading it costs nothing; an
    error of the source never ends the watcher and never takes away the last good endpoints, it only turns
    the state to `stale`; endpoints that vanish all at once stay for a while (see `Hold`); each change of state is
    logged once. What it does not do: it never decides which endpoint is healthy, and it does not collect changes;
    a source that may have thousands a second does.

    Args:
        source: where the endpoints come from.
        name: what log lines call this watcher; the source's own description by default.
        backoff: delays between attempts to reach the source; a stop interrupts them.
        on_empty: when the registry lists nothing any more: `hold` the endpoints for a while, `accept` it at once,
            or `keep` them until others come.
        hold_for: seconds for which they are held. A hold does not end while the registry is out of reach.
        collapse: hold, too, if more than this share (0 to 1) of the endpoints vanishes at once; None for never.
        cache: a `Cache` or its folder; the endpoints found there are used, as stale ones, when the registry
            cannot be reached at the start. The source's `repr` says which file is its own.
        rng: source of the jitter, for tests.

    Attributes:
        counts: what happened so far: `updates` (answers of the source), `changes` (new versions), `outages`, and
            `holds` (times when vanished endpoints began to be held).

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str = "",
        backoff: Backoff | None = None,
        on_empty: OnEmpty = "hold",
        hold_for: float = 30.0,
        collapse: float | None = None,
        cache: Cache | str | Path | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not callable(getattr(source, "watch", None)):
            raise TypeError(f"{source!r} is no source: it has no watch() method")
        if cache is not None and " at 0x" in repr(source):
            # The place in memory: another file in every process, never to be found again.
            raise TypeError(f"{source!r}: the cache needs a source with a __repr__ that says what it reads")
        super().__init__(name or repr(source))
        self.source = source
        self.counts = Counter(updates=0, changes=0, outages=0, holds=0)
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()
        self._hold = Hold(on_empty, seconds=hold_for, collapse=collapse)
        self._hold_reason = ""
        self._hold_over: asyncio.TimerHandle | None = None
        self._cache = cache if isinstance(cache, Cache) or cache is None else Cache(cache)
        self._restored = ""
        self._failing = False
        # What the registry listed last: the snapshot's endpoints without those that are held.
        self._listed: tuple[Endpoint, ...] = ()
        # The very object that these came in.
        self._seen: Sequence[Endpoint] | None = None
        self._task: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

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
            if self._cache is not None:
                self._keeping = asyncio.create_task(keep(self._cache, self), name=f"cache {self.name}")

    async def stop(self) -> None:
        """End the background task and wait until the source has released everything it held."""
        self._stopped = True
        if self._hold_over is not None:
            self._hold_over.cancel()
        if self._task is not None:
            tasks = [self._task] if self._keeping is None else [self._task, self._keeping]
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
            finally:
                # Also if the waiting is cut short: nobody follows the registry any more.
                self._swap(replace(self.snapshot, state="stale", reason="the watcher was stopped"))
        self._news.wake()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

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
            if self.snapshot.version > 0:
                return self.snapshot  # a busy loop sees both in one turn: that it came, and that the time is up
            why = self.snapshot.reason or "no answer yet"
            raise TimeoutError(f"{self.name}: nothing received within {timeout} s: {why}") from None

    def accept(self) -> None:
        """Take the registry's word now: whatever is held goes."""
        self.let_go(self.snapshot.held)

    def let_go(self, addresses: Iterable[str]) -> None:
        """Hold these no longer: for servers that are found to be gone indeed. Addresses that are listed stay."""
        if count := self._hold.let_go(tuple(addresses)):
            log.info("%s: no longer held: %s", self.name, _counted(count))
            self._show(self.snapshot)

    def restore(self, cached: Cached) -> None:
        """Begin with endpoints from the cache, as stale ones; nothing happens if there are any already."""
        if self.snapshot.version:
            return
        count = _counted(len(cached.endpoints))
        log.warning("%s: %s from the cache, %.0f s old", self.name, count, cached.age)
        self._listed = cached.endpoints
        self._restored = "; the endpoints are from the cache"
        reason = (self.snapshot.reason or "no answer yet") + self._restored
        self._show(Snapshot(received_at=time.monotonic() - cached.age, state="stale", reason=reason))

    async def _follow(self) -> None:
        now = asyncio.get_running_loop().time
        failures = 0
        while True:
            began_at: float | None = None
            retry_after = 0.0
            try:
                async with aclosing(self.source.watch()) as sets:
                    async for endpoints in sets:
                        if self._stopped:
                            return  # it swallowed its cancellation
                        rewound = bool(getattr(self.source, "rewound", False))
                        # A sign of life; sorting thousands of endpoints for that is a waste.
                        listed = self._listed if endpoints is self._seen else endpoint_tuple(endpoints)
                        if len(listed) > _LARGE:
                            # Sorting thousands is enough for one turn of the loop, so is taking them over.
                            await asyncio.sleep(0)
                        self._received(listed, followed=began_at is not None, rewound=rewound)
                        self._seen = endpoints if isinstance(endpoints, tuple) else None
                        began_at = began_at or now()
                reason = "the source ended"
            except asyncio.CancelledError as error:
                # Only our own cancellation may end the task; a source that leaks one is a broken source.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                reason = f"the source was cancelled {error}".strip()
            except SourceError as error:
                reason, retry_after = str(error), error.retry_after
            except Exception as error:  # noqa: BLE001 - a source may fail in any way and must not end the watcher
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            # A source that answers and fails at once must not be asked in a hot loop.
            lasted = began_at is not None and now() - began_at > self._backoff.cap
            failures = 1 if lasted else failures + 1
            if self._stopped:
                return  # as above
            self._lost(reason)
            await asyncio.sleep(max(retry_after, self._backoff.delay(failures, self._rng)))

    def _received(self, listed: tuple[Endpoint, ...], *, followed: bool, rewound: bool) -> None:
        """Take in what the registry lists; `followed` and `rewound` as for `Hold.begin`."""
        before = self.snapshot
        now = asyncio.get_running_loop().time()
        if listed != self._listed:
            if reason := self._hold.begin(self._listed, listed, now, followed=followed, rewound=rewound):
                self.counts["holds"] += 1
                self._hold_reason = reason
                log.warning("%s: %s: %s held", self.name, reason, _counted(len(self._hold.until)))
            self._listed = listed
        self._expire(now)
        self.counts["updates"] += 1
        self._restored, self._failing = "", False
        self._show(replace(before, received_at=time.monotonic(), state="live"))
        if before.state not in ("live", "held"):
            log.info("%s: %s, %s", self.name, self.snapshot.state, _counted(len(self.snapshot.endpoints)))

    def _lost(self, reason: str) -> None:
        # Endpoints from the cache are stale as well, but nothing has failed by then.
        old, known, self._failing = self.snapshot, self._failing, True
        if known:
            log.debug("%s: still %s: %s", self.name, old.state, reason)
        elif old.version:
            log.warning("%s: stale, %s kept: %s", self.name, _counted(len(old.endpoints)), reason)
        else:
            log.warning("%s: not reached yet: %s", self.name, reason)
        self.counts["outages"] += not known
        self._show(replace(old, state="stale" if old.version else "starting", reason=reason + self._restored))

    def _show(self, base: Snapshot) -> None:
        """Swap to what is listed and what is held; state, reason and age are those of `base`."""
        until = self._hold.until
        shown = endpoint_tuple((*self._listed, *self._hold.endpoints)) if until else self._listed
        heard = base.state != "starting"
        changed = heard and (base.version == 0 or shown != base.endpoints)
        state, reason = base.state, base.reason
        degraded, skipped = self._said_beside()
        if state in ("live", "held"):
            state = "held" if until else "live"
            reason = "; ".join(filter(None, (self._hold_reason if until else "", degraded)))
        self.counts["changes"] += changed
        self._swap(
            Snapshot(
                version=base.version + 1 if changed else base.version,
                # The old tuple is kept where it is equal, so that "did it change" is an identity test for readers.
                endpoints=shown if changed else base.endpoints,
                received_at=base.received_at,
                state=state,
                reason=reason,
                skipped=skipped,
                held=self._watch_the_clock(until),
            )
        )

    def _said_beside(self) -> tuple[str, int]:
        """What the source says beside its sets: what is missing in them, and how many records are skipped."""
        try:
            return str(getattr(self.source, "degraded", "")), len(getattr(self.source, "skipped", ()))
        except Exception:  # noqa: BLE001 - somebody else's attributes; an error here would end the watcher
            return "", 0

    def _watch_the_clock(self, until: Mapping[str, float]) -> Mapping[str, float]:
        """Notice when the first of these holds is over; returns the same moments in `time.monotonic()` seconds."""
        if self._hold_over is not None:
            self._hold_over.cancel()
            self._hold_over = None
        if not until:
            return {}
        loop = asyncio.get_running_loop()
        if (first := min(until.values())) < math.inf:
            self._hold_over = loop.call_at(first, self._hold_is_over)
        ahead = time.monotonic() - loop.time()
        return {address: moment + ahead for address, moment in until.items()}

    def _hold_is_over(self) -> None:
        # Out of reach, the registry may have changed its mind: its next answer decides.
        if self.snapshot.state == "held" and self._expire(asyncio.get_running_loop().time()):
            self._show(self.snapshot)

    def _expire(self, now: float) -> int:
        if count := self._hold.expire(now):
            log.warning("%s: the hold is over for %s", self.name, _counted(count))
        return count


def _counted(endpoints: int) -> str:
    return f"{endpoints} endpoint{'s' * (endpoints != 1)}"
