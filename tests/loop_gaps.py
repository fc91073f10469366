"""How long an event loop is held up by what runs in it and beside it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def loop_gaps(clock: Callable[[], float]) -> AsyncIterator[list[float]]:
    """CPU seconds between two timers of a millisecond each, the most first once the block has ended.

    By the wall clock it would be the machine's load that is measured.

    Args:
        clock: `time.thread_time` where it is the loop's own thread that might work for too long,
            `time.process_time` where another one might not give way to it.
    """
    found: list[float] = []

    async def tick() -> None:
        while True:
            began_at = clock()
            await asyncio.sleep(0.001)
            found.append(clock() - began_at)

    # A garbage collection looks at everything that pytest holds: not what is measured here.
    gc.collect()
    gc.freeze()
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    try:
        yield found
    finally:
        ticking.cancel()
        gc.unfreeze()
        await asyncio.wait([ticking])
        found.sort(reverse=True)
