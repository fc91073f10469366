"""`Published`: a snapshot that others read, wait for and subscribe to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from discovery.news import News
from discovery.snapshot import Snapshot

__all__ = ["Listener", "Published"]

Listener = Callable[[Snapshot], None]


class Published:
    """The readers' side of a `Watcher`: the newest snapshot, and a wake-up when there is a newer one.

    Never a queue: a slow reader misses what was in between, but never the last.

    Attributes:
        name: what log lines call it.
        snapshot: a complete, immutable value; reading it costs nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.snapshot = Snapshot()
        self._stopped = False
        self._news = News(name)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each new snapshot, inside the swap itself, so that nothing can run in between.

        The listener must be quick, must not await and must not subscribe. Returns the function that ends it.
        """
        return self._news.subscribe(listener)

    async def newer_than(self, version: int) -> Snapshot:
        """The newest snapshot as soon as its version is above `version`; versions in between are left out."""
        while self.snapshot.version <= version:
            await self.next_swap()
        return self.snapshot

    async def __aiter__(self) -> AsyncGenerator[Snapshot, None]:
        """Yield the newest snapshot now and whenever something about it changed, until the watcher is stopped."""
        seen: object = None
        while not self._stopped:
            snapshot = self.snapshot
            # That there is a reason is news, its wording is not: it may change with every attempt.
            reason, held = bool(snapshot.reason), snapshot.held.keys()
            news = (snapshot.version, snapshot.state, reason, snapshot.skipped, held)
            if seen != news:
                seen = news
                yield snapshot
            else:
                await self.next_swap()

    async def next_swap(self) -> None:
        """Wait for the next snapshot of any kind; a sign of life from the registry makes one, too."""
        if self._stopped:
            raise RuntimeError(f"{self.name}: the watcher was stopped")
        await self._news.next()

    def _swap(self, new: Snapshot) -> None:
        """Publish a snapshot: this is the one swap, and the listeners are called in it."""
        self.snapshot = new
        self._news.tell(new)
        self._news.wake()
