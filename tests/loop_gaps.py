"""How long an event loop is held up by what runs in it and beside it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def loop_gaps() -> AsyncIterator[list[float]]:
    """Seconds by which a timer was late, the longest first once the block has ended."""
    found: list[float] = []

    async def tick() -> None:
        while True:
            began_at = time.perf_counter()
            await asyncio.sleep(0.001)
            found.append(time.perf_counter() - began_at - 0.001)

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
