"""`Hops`: which requests in a session of somebody else were redirected, so that another hop of them may come."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lbclient.passage import Passage

__all__ = ["Hop", "Hops"]

# Seconds after a redirect within which its next hop comes: aiohttp begins that at once, but for what traces and
# other middlewares do in between.
_WITHIN = 1.0


class Hop(Passage):
    """The passage of one hop in a session of somebody else, where nothing leads from it to those before."""

    __slots__ = ()


class Hops:
    """Requests whose last answer was a redirect, by their tasks: aiohttp makes all hops of a request in one.

    A redirect that nobody follows leaves its task here until that ends or makes another request.

    Attributes:
        tasks: with the moment of the redirect, in `time.monotonic()` seconds. Almost always empty: who finds it
            so need not ask `take`.
    """

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[Any], float] = {}

    def add(self) -> None:
        """The request of this task was redirected."""
        task = asyncio.current_task()
        if task is not None:
            if task not in self.tasks:
                task.add_done_callback(self._forget)
            self.tasks[task] = time.monotonic()

    def take(self) -> bool:
        """Whether what this task sends now is the next hop of a request that was redirected."""
        task = asyncio.current_task()
        if task is None or task not in self.tasks:
            return False
        task.remove_done_callback(self._forget)
        return time.monotonic() - self.tasks.pop(task) < _WITHIN

    def awaited(self) -> bool:
        """Whether there may be another hop of some request; none of this very task, which does something else."""
        now, this = time.monotonic(), asyncio.current_task()
        return any(now - at < _WITHIN and task is not this for task, at in self.tasks.items())

    def clear(self) -> None:
        """Let go of the tasks."""
        for task in self.tasks:
            task.remove_done_callback(self._forget)
        self.tasks.clear()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
