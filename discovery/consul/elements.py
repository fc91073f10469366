"""A long list in JSON, taken apart in slices: the event loop goes on in between."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["elements"]

_SLICE = 1 << 16  # bytes: about 100 instances, parsed in 1 to 2 ms
_SPACE = re.compile(r"[ \t\n\r]*")

_KeyOf = Callable[[int, Any], str]  # the key of an element, given its number and its value


async def elements(chunks: Iterable[bytes], known: Mapping[str, str], key_of: _KeyOf) -> dict[str, str]:
    """The texts of the elements of a list, by key and in their order.

    Texts and not values: 10 000 instances as objects would make each full run of Python's garbage collector stop
    the process for 60 ms. And what stands there as it stood before costs a comparison instead of parsing.

    Args:
        chunks: the document in UTF-8, cut anywhere.
        known: what was returned for the document before.
        key_of: the key of an element, given its number and its value; a slash is in it if it does not
            depend on the number.

    Raises:
        ValueError: this is no list in JSON.
    """
    # UTF-8 of its own for each document: a character may be cut in two.
    decode = codecs.getincrementaldecoder("utf-8")().decode
    taken = _Elements(known, key_of)
    for number, piece in enumerate(_pieces(chunks)):
        if number:
            await asyncio.sleep(0)
        taken.feed(decode(piece))
    return taken.end(decode(b"", final=True))


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), _SLICE):
            yield chunk[start : start + _SLICE]


class _Elements:
    """The elements found so far, and the text that is not understood yet."""

    def __init__(self, known: Mapping[str, str], key_of: _KeyOf) -> None:
        self._found: dict[str, str] = {}
        self._count = 0
        self._known = list(known.items())
        self._places = {key: place for place, key in enumerate(known)}
        self._place = 0  # where the next element stood before, if the list is as it was
        self._key_of = key_of
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._enough = 0  # so long must the text be to try again
        self._ended = False

    def feed(self, text: str, *, final: bool = False) -> None:
        """Understand what can be understood; `ValueError` for what never will be."""
        self._text += text
        if len(self._text) < self._enough and not final:
            return
        text, at = self._text, 0
        while (after := self._one(text, at, final=final)) is not None:
            at = after
        self._text = text[at:]
        # An element that is longer than a slice is not tried with each slice that comes.
        self._enough = 2 * len(self._text)

    def end(self, text: str) -> dict[str, str]:
        """What was found; `ValueError` if the list has no end."""
        self.feed(text, final=True)
        if not self._ended or self._text.strip():
            raise ValueError("the list has no end")
        return self._found

    def _one(self, text: str, at: int, *, final: bool) -> int | None:
        """Take one element with the sign before it, or the end; where the text goes on, None if more is needed."""
        start = _after_space(text, at)
        if start == len(text):
            return None
        if text[start] == "]" and self._count and not self._ended:
            self._ended = True
            return start + 1
        if self._ended or text[start] != ("," if self._count else "["):
            raise ValueError("this is no list")
        start = _after_space(text, start + 1)
        if text.startswith("]", start) and not self._count:
            self._ended = True
            return start + 1
        return self._element(text, start, final=final)

    def _element(self, text: str, start: int, *, final: bool) -> int | None:
        if self._place < len(self._known):
            key, same = self._known[self._place]
            # The text of an object cannot be the beginning of another one.
            if "/" in key and same.startswith("{") and text.startswith(same, start):
                return self._take(key, same, start + len(same))
        try:
            value, end = self._decode(text, start)
        except (ValueError, RecursionError) as error:
            if final or isinstance(error, RecursionError):
                raise ValueError(f"broken JSON: {error}") from error
            return None
        if not final and not text.startswith((",", "]"), _after_space(text, end)):
            return None  # a number may go on: 1.5e is read as 1.5, and then comes e
        return self._take(self._key_of(self._count, value), text[start:end], end)

    def _take(self, key: str, text: str, end: int) -> int:
        self._found[key] = text
        self._count += 1
        place = self._places.get(key)
        if place is not None:
            self._place = place + 1
        return end


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
