"""`News`: whoever wants to hear of each change, and whoever waits for the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

__all__ = ["News"]

log = logging.getLogger(__name__)


class News:
    """Listeners, called at once, and waiters, woken in the loop's next turn; never a queue.

    Args:
        name: what the log line about a listener that failed begins with.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._listeners: list[Callable[..., None]] = []
        self._waiting: set[asyncio.Future[None]] = set()

    def subscribe(self, listener: Callable[..., None]) -> Callable[[], None]:
        """Call `listener` with whatever is told; returns the function that ends it, harmless if called twice."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def tell(self, *what: Any) -> None:
        """Call all listeners; one that fails harms nobody."""
        for listener in tuple(self._listeners):
            try:
                listener(*what)
            except Exception:
                log.exception("%s: a listener failed", self._name)

    def wake(self) -> None:
        """Wake all that wait."""
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    async def next(self) -> None:
        """Wait for the next `wake`."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)
