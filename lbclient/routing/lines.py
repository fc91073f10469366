"""`Lines`: a log that says not more than somebody can read."""

from __future__ import annotations

import logging

__all__ = ["Lines"]

# Seconds for which lines are counted.
_SPAN = 60.0


class Lines:
    """Logs so many lines in a minute at their level, further ones at DEBUG; it says so, and how many they were.

    Servers that can be reached now and then, as with a full accept queue, may change their state dozens of times
    in a second, for as long as the trouble lasts.

    Args:
        log: where to.
        name: of the service.
        most: lines in a minute.
    """

    def __init__(self, log: logging.Logger, name: str, most: int) -> None:
        self._log = log
        self._name = name
        self._most = most
        self._until = 0.0
        self._count = 0

    def say(self, now: float, level: int, message: str, *args: object) -> None:
        """Log it, or not, after the name of the service."""
        if now >= self._until:
            if self._count > self._most:
                self._log.warning("%s: %d lines were left out before", self._name, self._count - self._most)
            self._until, self._count = now + _SPAN, 0
        self._count += 1
        if self._count == self._most + 1:
            said = "%s: more than %d changes within a minute: the next ones are logged at DEBUG"
            self._log.warning(said, self._name, self._most)
        shown = level if self._count <= self._most else min(level, logging.DEBUG)
        self._log.log(shown, f"%s: {message}", self._name, *args)
