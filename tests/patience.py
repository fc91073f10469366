"""Time as the event loop had it: while the machine gives this process no CPU, it stands still.

A bound on wall-clock time says as much about the machine as about what is tested. Here a time is a number of
timers of 50 ms, each set when the one before has fired: one that is late, and be it by seconds, counts as one.
What waits for a timer, or for an answer that does not come, is found to be as long as it is. What blocks the loop
is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

_TICK = 0.05


class Stopwatch:
    """Counts while its block lasts; `seconds` is what has passed."""

    def __init__(self, at_each_tick: Callable[[float], object] = lambda _: None) -> None:
        self._ticks = 0
        self._at_each_tick = at_each_tick

    @property
    def seconds(self) -> float:
        return self._ticks * _TICK

    def __enter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)
        self._at_each_tick(self.seconds)


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, in this time."""
    async with asyncio.timeout(None) as limit:

        def look(passed: float) -> None:
            if passed >= seconds and not limit.expired() and limit.when() is None:
                limit.reschedule(asyncio.get_running_loop().time())

        with Stopwatch(look):
            yield
