"""Bodies that aiohttp reads in threads: what is read for one attempt takes nothing from the next one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp.payload import IOBasePayload

__all__ = ["IN_MEMORY", "take_turns"]

# Bodies that are no files, and that most requests have: to look more closely takes longer.
IN_MEMORY = frozenset({bytes, aiohttp.BytesPayload, aiohttp.JsonPayload, aiohttp.StringPayload})

# The private methods of aiohttp that run in a thread: the first read with a look at the size, and the others.
_FIRST = "_read_and_available_len"
_NEXT = "_read"


class _Turn:
    """The reads of one attempt: none before those of an earlier one are through, and none after its end.

    A cancelled writer leaves its thread alone. A read that is under way there, or just about to begin, would move
    the file on after it was rewound, and the next attempt would send what comes behind that.
    """

    def __init__(self, body: IOBasePayload, lock: threading.Lock) -> None:
        self._first: Any = getattr(type(body), _FIRST)
        self._next: Any = getattr(type(body), _NEXT)
        self._body = body
        self.lock = lock
        self.over = False

    def first(self, most: int | None) -> Any:
        with self.lock:
            return (None, b"") if self.over else self._first(self._body, most)

    def next(self, most: int | None) -> Any:
        with self.lock:
            return b"" if self.over else self._next(self._body, most)


def take_turns(body: Any) -> None:
    """An attempt begins, and with it a turn of each file in the body; to be called before the first one as well.

    The event loop waits for no read: the first one of the new attempt waits for the last of the old one.
    """
    for file in _files(body):
        before: _Turn | None = getattr(vars(file).get(_NEXT), "__self__", None)
        if before is not None:
            before.over = True
        turn = _Turn(file, threading.Lock() if before is None else before.lock)
        setattr(file, _FIRST, turn.first)
        setattr(file, _NEXT, turn.next)


def _files(body: Any) -> Iterator[IOBasePayload]:
    if isinstance(body, aiohttp.MultipartWriter):
        for part, *_ in body:
            yield from _files(part)
    # What is in memory is read in the event loop. Should aiohttp read files in another way, they are left alone.
    elif (
        isinstance(body, IOBasePayload)
        and not isinstance(body, aiohttp.BytesIOPayload)
        and hasattr(body, _FIRST)
        and hasattr(body, _NEXT)
    ):
        yield body
