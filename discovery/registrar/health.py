"""Whether this process is healthy, as a function of the program says it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

__all__ = ["HealthCheck", "complaint_of"]

HealthCheck = Callable[[], bool | Awaitable[bool | None] | None]
"""False or an exception is unhealthy; None counts as healthy, so that a check may be a mere call that can fail."""

_LONGEST = 200  # characters of a complaint: it goes into a log line, and to Consul


async def complaint_of(check: HealthCheck, *, within: float) -> str:
    """Why the check is not content; empty if it is.

    Args:
        check: called in the event loop, so a plain function must be quick; an awaitable result is awaited.
        within: seconds; no answer until then is a complaint.
    """
    try:
        async with asyncio.timeout(within) as deadline:
            said = check()
            if inspect.isawaitable(said):
                said = await said
            healthy = said is None or bool(said)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return "the health check was cancelled"
    except Exception as error:  # noqa: BLE001 - a check may fail in any way
        if deadline.expired():
            return f"the health check did not answer within {within:g} s"
        return _line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    return "" if healthy else "the health check said no"


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_LONGEST])
