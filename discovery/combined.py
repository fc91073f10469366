"""Several sources as one: `Merge`, all of them together, and `Failover`, the first one that is good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import chain
from operator import is_

from discovery.connection import positive
from discovery.endpoint import Endpoint, endpoint_tuple
from discovery.snapshot import Snapshot
from discovery.source import Source, SourceError
from discovery.watcher import Watcher

__all__ = ["Failover", "Merge"]

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds at the start for which the answers of all are waited for


class _Combined(ABC):
    """Follows each source with a watcher of its own, and keeps in mind what each one listed last."""

    def __init__(self, *sources: Source) -> None:
        if len(sources) < 2:  # noqa: PLR2004 - one is no combination
            raise ValueError(f"{type(self).__name__} needs two sources or more")
        for source in sources:
            if not callable(getattr(source, "watch", None)):
                raise TypeError(f"{source!r} is no source: it has no watch() method")
        self.sources = sources
        self._parts = [_Part(source) for source in sources]
        # Beyond a call of watch(): it ends when none can be reached, and its watchers with it.
        self._last: list[Snapshot] = [Snapshot() for _ in sources]
        self._lost_at: list[float | None] = [None] * len(sources)
        self._degraded = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.sources))})"

    @property
    def skipped(self) -> Mapping[str, str]:
        """The keys of the records that cannot be read now, of all sources, and why."""
        return {key: why for source in self.sources for key, why in getattr(source, "skipped", {}).items()}

    @property
    def degraded(self) -> str:
        """Which of the sources cannot be relied on now, and why; empty if all can."""
        return self._degraded

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the combined set now, after every change, and after every sign of life.

        Raises:
            SourceError: none of the sources can be reached.
        """
        now = asyncio.get_running_loop().time
        news = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            watchers = []
            for part in self._parts:
                # Whatever vanishes from one may be in another: it is the whole that may be held, not its parts.
                watcher = Watcher(part, on_empty="accept")
                watcher.subscribe(lambda _: news.set())
                watchers.append(await stack.enter_async_context(watcher))
            began_at = now()
            while True:
                # Before the states are looked at, so that no swap is missed.
                news.clear()
                snapshots = [watcher.snapshot for watcher in watchers]
                self._note(snapshots, now())
                waiting: float | None = max(0.0, began_at + _PATIENCE - now())
                if not waiting or self._is_enough(snapshots):
                    if not any(_confirmed(snapshot) for snapshot in snapshots):
                        raise SourceError("; ".join(snapshot.reason or "no answer yet" for snapshot in snapshots))
                    yield self._combine(snapshots)
                    waiting = self._until_changed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(waiting):
                        await news.wait()

    def _combine(self, snapshots: Sequence[Snapshot]) -> Sequence[Endpoint]:
        self._last = [new if new.version else old for old, new in zip(self._last, snapshots, strict=True)]
        self._degraded = "; ".join(
            f"{source!r}: {snapshot.state}: {snapshot.reason or 'no answer yet'}"
            for source, snapshot in zip(self.sources, snapshots, strict=True)
            if not _confirmed(snapshot)
        )
        return self._chosen(self._last)

    def _note(self, snapshots: Sequence[Snapshot], now: float) -> None:
        for number, snapshot in enumerate(snapshots):
            lost_at = self._lost_at[number]
            self._lost_at[number] = None if _confirmed(snapshot) else now if lost_at is None else lost_at

    def _is_enough(self, snapshots: Sequence[Snapshot]) -> bool:
        """Whether the sources that have not answered yet need not be waited for."""
        return all(map(_has_answered, snapshots))

    @abstractmethod
    def _chosen(self, snapshots: Sequence[Snapshot]) -> Sequence[Endpoint]:
        """The combined set; a snapshot is the last one known, from an earlier call of watch() if need be."""

    def _until_changed(self) -> float | None:
        """Seconds until the choice may change without news."""
        return None


class Merge(_Combined):
    """All endpoints of several sources: for a service that is registered in two registries during a migration.

    A caller may rely on: a source that cannot be reached keeps the endpoints it listed last in the set, and is
    named in the snapshot's `reason`; the state is `stale` only if none can be reached. Of two descriptions of one
    address, the one with the lower id stays. What it does not do: when one source of several lists nothing any
    more, that is believed; give the watcher a `collapse` to have it held.

    Args:
        sources: two or more.

    Raises:
        TypeError, ValueError: there are fewer, or one is none.
    """

    def __init__(self, *sources: Source) -> None:
        super().__init__(*sources)
        self._merged: tuple[list[tuple[Endpoint, ...]], tuple[Endpoint, ...]] = [], ()

    def _chosen(self, snapshots: Sequence[Snapshot]) -> Sequence[Endpoint]:
        lists = [snapshot.endpoints for snapshot in snapshots]
        # Most of the time it was a sign of life, for which thousands need not be sorted again.
        if not self._merged[0] or not all(map(is_, lists, self._merged[0])):
            self._merged = lists, endpoint_tuple(chain.from_iterable(lists))
        return self._merged[1]


class Failover(_Combined):
    """The endpoints of the first source that has some: the later ones stand in for the earlier.

    A caller may rely on: a source is passed over when it lists nothing, or has been out of reach for `patience`
    seconds while a later one has endpoints; the first one is used again as soon as it lists some. If none is good,
    the endpoints that were used last stay.

    Args:
        sources: two or more, the best first.
        patience: seconds for which a source that cannot be reached is still relied on.

    Raises:
        TypeError, ValueError: there are fewer, one is none, or the patience is not above 0.
    """

    def __init__(self, *sources: Source, patience: float = 10.0) -> None:
        super().__init__(*sources)
        self._patience = positive("patience", patience)
        self._used = 0

    @property
    def used(self) -> Source:
        """The source whose endpoints are used now."""
        return self.sources[self._used]

    def _is_enough(self, snapshots: Sequence[Snapshot]) -> bool:
        # The first that is good decides, and those behind it may be silent.
        for snapshot in snapshots:
            if not _has_answered(snapshot):
                return False
            if _confirmed(snapshot) and snapshot.endpoints:
                return True
        return True

    def _chosen(self, snapshots: Sequence[Snapshot]) -> Sequence[Endpoint]:
        now = asyncio.get_running_loop().time()
        for number, snapshot in enumerate(snapshots):
            lost_at = self._lost_at[number]
            if snapshot.endpoints and (lost_at is None or now - lost_at < self._patience):
                if number != self._used:
                    log.warning("%r is used in place of %r", self.sources[number], self.used)
                self._used = number
                break
        return snapshots[self._used].endpoints

    def _until_changed(self) -> float | None:
        now = asyncio.get_running_loop().time()
        moments = [at + self._patience - now for at in self._lost_at if at is not None]
        return min((moment for moment in moments if moment > 0), default=None)


class _Part:
    """One of the sources. What it said of when to come back counts beyond a call of watch() of the whole."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._said: tuple[str, float] = "", 0.0  # the last error, and until when it counts

    def __repr__(self) -> str:
        return repr(self._source)

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        now = asyncio.get_running_loop().time
        why, until = self._said
        if (left := until - now()) > 0:
            raise SourceError(why, retry_after=left)
        try:
            async with contextlib.aclosing(self._source.watch()) as sets:
                async for endpoints in sets:
                    yield endpoints
        except SourceError as error:
            self._said = str(error), now() + error.retry_after
            raise


def _has_answered(snapshot: Snapshot) -> bool:
    return bool(snapshot.version or snapshot.reason)


def _confirmed(snapshot: Snapshot) -> bool:
    return snapshot.state in ("live", "held")
