"""How long an event loop is held up by what runs in it and beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def loop_gaps() -> AsyncIterator[list[float]]:
    """Seconds between two turns of the loop, the longest first once the block has ended."""
    found: list[float] = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.001)
            began_at = time.perf_counter()
            await asyncio.sleep(0)
            found.append(time.perf_counter() - began_at)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    try:
        yield found
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
        found.sort(reverse=True)
