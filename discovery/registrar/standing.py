"""How a registration stands: its state and the reason, said to the log, to listeners and to whoever waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from discovery.news import News

__all__ = ["Listener", "Standing", "State"]

log = logging.getLogger("discovery.registrar")  # whose words these are

State = Literal["registering", "registered", "unhealthy", "lost", "left"]
Listener = Callable[[State, str], None]

_LEVELS: dict[tuple[State, bool], tuple[int, str]] = {
    ("registering", True): (logging.WARNING, "not registered yet, trying again"),
    ("registered", False): (logging.INFO, "registered"),
    ("registered", True): (logging.WARNING, "no sign of life arrives, trying again"),
    ("unhealthy", True): (logging.WARNING, "unhealthy, withdrawn"),
    ("lost", True): (logging.WARNING, "no longer registered, trying again"),
    ("left", False): (logging.INFO, "left"),
    ("left", True): (logging.WARNING, "left, but the registry does not know yet"),
}


class Standing:
    """State and reason. Each change of state, and the first reason in one, is logged once.

    Args:
        name: what log lines begin with.
    """

    def __init__(self, name: str) -> None:
        self.state: State = "registering"
        self.reason = ""
        self._name = name
        self._news = News(name)

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(state, reason)` with each change of either. Returns the function that ends it."""
        return self._news.subscribe(listener)

    def move(self, state: State, reason: str) -> None:
        """Take a new state and reason, and tell everybody; waiters are woken even if nothing changed."""
        before = self.state, self.reason
        self.state, self.reason = state, reason
        if (state, bool(reason)) != (before[0], bool(before[1])):
            level, words = _LEVELS[state, bool(reason)]
            log.log(level, "%s: %s%s", self._name, words, reason and f": {reason}")
        elif reason != before[1]:
            log.debug("%s: still %s", self._name, self)
        if (state, reason) != before:
            self._news.tell(state, reason)
        self._news.wake()

    async def until(self, check: Callable[[], object]) -> None:
        """Wait until the check holds; it is made now and with each move.

        Raises:
            RuntimeError: it does not hold, and never will: the registrar has left.
        """
        while not check():
            if self.state == "left":
                raise RuntimeError(f"{self._name}: the registrar has left")
            await self._news.next()
