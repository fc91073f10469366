"""Endpoints from a file, JSON or YAML, which is looked at again and again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args
from urllib.parse import quote

from discovery.connection import positive
from discovery.endpoint import Endpoint, endpoint_tuple
from discovery.file.entries import Broken, as_endpoint
from discovery.file.json_text import json_entries
from discovery.file.yaml_text import require_yaml, yaml_entries
from discovery.source import SourceError

__all__ = ["File"]

log = logging.getLogger(__name__)

Format = Literal["json", "yaml"]

_LARGEST = 16 * 1024 * 1024  # bytes
# Seconds without a change after which a file is no longer being written, and for how long one is waited for.
_SETTLED, _PATIENCE = 0.1, 1.0
# Seconds: two changes so close to each other may leave the same time stamp (FAT has 2 s).
_GRANULARITY = 2.5
_LONGEST_REASON = 300  # characters
_NOTHING: Mapping[str, str] = MappingProxyType({})

_SUFFIXES: Mapping[str, Format] = MappingProxyType({".json": "json", ".yaml": "yaml", ".yml": "yaml"})


class File:
    """The endpoints in a file: a list, or a mapping with the list as `endpoints`, in JSON or YAML.

    An entry is text (`10.0.0.1:8080`, `https://host`) or a mapping with `address`, or `host` and `port`, and as
    wanted `weight`, `priority`, `zone`, `tls`, `metadata`, `id`. A caller may rely on: a change is seen within
    `interval` and about 0.1 s, whether the file was written in place, replaced by renaming, or a symbolic link on
    the way to it was changed, as Kubernetes does. A file that is missing, broken, empty (0 bytes) or without any
    good entry is an error, never an empty set; an empty list is one. A bad entry beside good ones is in
    `skipped`. Files are read and parsed in a thread. What it does not do: it cannot tell a YAML list from its
    beginning, so replace YAML files by renaming, as editors do; aliases (`*name`) are refused.

    Args:
        path: the file; a relative path is made absolute now.
        interval: seconds between two looks at the file.
        format: `json` or `yaml`; by default what the file's ending says (.json, .yaml, .yml), else its content.

    Raises:
        ImportError: it is YAML by name or `format`, and PyYAML is not installed.
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        format: Format | None = None,  # noqa: A002 - what everybody calls it
    ) -> None:
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise ValueError(f"path must be the name of a file, not {path!r}")
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps ".."
        self._interval = positive("interval", interval)
        if not self.path.name:
            raise ValueError(f"{os.fspath(path)!r} names no file")
        if format is not None and format not in get_args(Format):
            raise ValueError(f"format must be one of {', '.join(get_args(Format))}, not {format!r}")
        self._format = format or _SUFFIXES.get(self.path.suffix.lower())
        if self._format == "yaml":
            require_yaml()
        self._seen = _Seen()
        self._skipped = _NOTHING

    def __repr__(self) -> str:
        told = self._format is None or self._format == _SUFFIXES.get(self.path.suffix.lower())
        return f"file://{quote(str(self.path))}{'' if told else f'?format={self._format}'}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """The entries (number and line) of the last readable file that cannot be used, and why."""
        return MappingProxyType(dict(self._skipped))

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, and after each look at the file.

        Raises:
            SourceError: the file cannot be read; a broken one is not read again until it changes.
        """
        while True:
            yield await self._look()
            await asyncio.sleep(self._interval)

    async def _look(self) -> Sequence[Endpoint]:
        until = time.monotonic() + _PATIENCE
        while True:
            seen = await asyncio.to_thread(self._read, patient=time.monotonic() < until)
            if seen is not None:
                break
            await asyncio.sleep(_SETTLED)
        self._seen = seen
        if seen.problem:
            raise SourceError(seen.problem, retry_after=self._interval)
        if seen.skipped is not self._skipped:
            known = set(self._skipped.values())
            for where, why in seen.skipped.items():
                if why not in known:
                    log.warning("%r: %s skipped: %s", self, where, why)
            self._skipped = seen.skipped
        return seen.endpoints

    def _read(self, *, patient: bool) -> _Seen | None:
        """What the file holds, as cheaply as can be; None if it seems that it is being written. In a thread."""
        seen = self._seen
        try:
            found = self.path.stat()
            stamp = _stamp(found)
            if seen.final and seen.stamp == stamp:
                return seen
            age = time.time() - found.st_mtime
            if patient and 0 <= age < _SETTLED:
                return None
            content = self._content(found)
        except OSError as error:
            return _Seen(problem=f"{self.path}: {error.strerror or error}")
        except ValueError as error:
            return _Seen(problem=f"{self.path}: {error}")
        # Changes of the inode (a rename, a new time stamp) count as well.
        newest = max(found.st_mtime, found.st_ctime)
        final = time.time() - newest > _GRANULARITY
        digest = hashlib.blake2b(content).digest()
        if digest == seen.digest:
            return replace(seen, stamp=stamp, final=final)
        parsed = replace(self._parsed(content), digest=digest, stamp=stamp, final=final)
        return None if parsed.problem and patient and 0 <= age < _PATIENCE else parsed

    def _content(self, found: os.stat_result) -> bytes:
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("this is no file")
        if found.st_size > _LARGEST:
            raise ValueError(f"too large: {found.st_size} bytes, at most {_LARGEST} are read")
        with self.path.open("rb") as file:
            return file.read(_LARGEST)

    def _parsed(self, content: bytes) -> _Seen:
        endpoints: list[Endpoint] = []
        skipped: dict[str, str] = {}
        try:
            text = content.decode("utf-8-sig")
            if not text.strip():
                raise ValueError("the file is empty; an empty set is written []")  # noqa: TRY301 - one way out
            format_ = self._format or ("json" if text.lstrip()[0] in "[{" else "yaml")
            entries = json_entries(text) if format_ == "json" else yaml_entries(text)
            for number, (line, entry) in enumerate(entries, 1):
                try:
                    endpoints.append(as_endpoint(entry))
                except (ValueError, TypeError) as error:
                    skipped[f"entry {number} (line {line})"] = _printable(str(error))
        except UnicodeDecodeError as error:
            before = content[: error.start]
            line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
            return _Seen(problem=f"{self.path}: {Broken('this is not UTF-8', line, column)}")
        except (ValueError, ImportError) as error:
            return _Seen(problem=f"{self.path}: {_printable(str(error))}")
        if skipped and not endpoints:
            where, why = next(iter(skipped.items()))
            return _Seen(problem=f"{self.path}: none of its {len(skipped)} entries can be read; {where}: {why}")
        return _Seen(endpoints=endpoint_tuple(endpoints), skipped=skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What was found in the file at one look.

    Attributes:
        stamp: tells one version of the file from another.
        digest: of its content.
        final: whether an equal stamp means an equal content.
        problem: why there are no endpoints.
        endpoints: sorted, one per address.
        skipped: the bad entries, and why.
    """

    stamp: tuple[int, ...] = ()
    digest: bytes = b""
    final: bool = False
    problem: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _printable(reason: str) -> str:
    # A value that is quoted must not be able to write log lines of its own.
    cut = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
