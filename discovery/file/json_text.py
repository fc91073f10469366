"""A list in JSON, read entry by entry: the line of each is known, and other threads get their turns in between."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from discovery.file.entries import NO_LIST, Broken, Entry

__all__ = ["json_entries"]

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_entries(text: str) -> Iterator[Entry]:
    """The entries of the list, or of the list `endpoints` of an object.

    Raises:
        Broken: the text is no such list; entries before that place were yielded already.
    """
    source = _Json(text)
    try:
        yield from _entries(source)
    except json.JSONDecodeError as error:
        raise Broken(error.msg, error.lineno, error.colno) from error
    except RecursionError as error:
        raise Broken("nested too deeply", source.line, 1) from error


class _Json:
    """A place in a JSON text; the values are the json module's business."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.line = 1
        self._counted = self._at = 0

    def peek(self) -> str:
        """The next character that is no space, empty at the end."""
        match = _SPACE.match(self.text, self._at)
        self._at = match.end() if match else self._at
        self.line += self.text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self.text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found or found not in expected:
            raise self.error(f"Expecting {' or '.join(map(repr, expected))}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        value, self._at = _DECODER.raw_decode(self.text, self._at)
        return value

    def error(self, why: str) -> json.JSONDecodeError:
        """An error at this place."""
        return json.JSONDecodeError(why, self.text, self._at)


def _entries(source: _Json) -> Iterator[Entry]:
    if source.peek() == "[":
        yield from _list(source)
    elif source.peek() == "{":
        yield from _object(source)
    else:
        raise source.error(NO_LIST)
    if source.peek():
        raise source.error("Extra data")


def _list(source: _Json) -> Iterator[Entry]:
    source.take("[")
    if source.peek() == "]":
        source.take("]")
        return
    while True:
        source.peek()
        line = source.line
        yield line, source.value()
        if source.take(",]") == "]":
            return


def _object(source: _Json) -> Iterator[Entry]:
    found = False
    nowhere = source.error(NO_LIST)
    mark = source.take("{")
    while mark != "}" and not (mark == "{" and source.peek() == "}"):
        if source.peek() != '"':
            raise source.error("Expecting a name in double quotes")
        name = source.value()
        source.take(":")
        if name == "endpoints":
            if found or source.peek() != "[":
                raise source.error(NO_LIST)
            found = True
            yield from _list(source)
        else:
            source.value()
        mark = source.take(",}")
    if not found:
        raise nowhere
