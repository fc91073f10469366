"""`Cache`: the last known good endpoints on disk, for a process that starts while its registry is down."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from discovery.endpoint import Endpoint, endpoint_tuple
from discovery.snapshot import Snapshot

__all__ = ["Cache", "Cached", "keep"]

log = logging.getLogger(__name__)

_FORMAT = 1
_LARGEST = 64 * 2**20  # bytes; about 300 000 endpoints
_LONGEST_SLUG = 60
_PATIENCE = 1.0  # seconds for the registry to answer at the start, before the file is used
_REFRESH = 0.1  # share of `max_age` after which an unchanged set is written again
_CLOCK_STEP = 60.0  # seconds by which a clock may have been set back since the file was written


@dataclass(frozen=True, slots=True)
class Cached:
    """What was found on disk.

    Attributes:
        endpoints: sorted, one per address.
        age: seconds since the registry confirmed them.
    """

    endpoints: tuple[Endpoint, ...]
    age: float


class Cache:
    """A folder with one file per source: the endpoints it had when they were last stable.

    A caller may rely on: a file is replaced in one step and never half written; one that is damaged, too old, from
    another source or from the future is refused with a log line and does no harm. It has what the registry
    lists, and no credentials. Both methods block; the `Watcher` calls them in a thread.

    Args:
        folder: where the files are; made when the first one is written.
        settle: seconds for which a set must stay the same until it is written.
        max_age: seconds after which a file is not used any more; it is written anew long before while the registry
            confirms the set.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(self, folder: str | Path, *, settle: float = 10.0, max_age: float = 86_400.0) -> None:
        for name, seconds in (("settle", settle), ("max_age", max_age)):
            if (
                isinstance(seconds, bool)
                or not isinstance(seconds, (int, float))
                or not 0 < seconds < float("inf")
            ):
                raise ValueError(f"{name} must be a number of seconds above 0, not {seconds!r}")
        self.folder = Path(folder)
        self.settle = settle
        self.max_age = max_age

    def __repr__(self) -> str:
        return f"Cache({str(self.folder)!r})"

    def path(self, source: str) -> Path:
        """The file for the source with this description."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[:_LONGEST_SLUG]
        return self.folder / f"{slug}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.json"

    def save(self, source: str, endpoints: Sequence[Endpoint]) -> None:
        """Write the endpoints that the source with this description has now.

        Raises:
            OSError: the file cannot be written; the old one, if any, is as it was.
        """
        content = {
            "format": _FORMAT,
            "source": source,
            "saved_at": time.time(),
            "endpoints": [
                {**endpoint.as_dict(), "host": endpoint.host, "port": endpoint.port} for endpoint in endpoints
            ],
        }
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(source)
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=self.folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({**content, "sha256": _digest(content)}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

    def load(self, source: str) -> Cached | None:
        """What was last written for the source; None if there is nothing, or nothing that can be trusted."""
        path = self.path(source)
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST + 1)
            return self._read(text, source)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: the cache %s is not used: %s", source, path, error)
            return None

    def _read(self, text: bytes, source: str) -> Cached:
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        try:
            content = json.loads(text)
            digest = content.pop("sha256")
            if digest != _digest(content):
                raise ValueError("its checksum is wrong")
            if (content["format"], content["source"]) != (_FORMAT, source):
                raise ValueError(f"it is of {content['source']!r}, format {content['format']!r}")
            age = time.time() - content["saved_at"]
            endpoints = endpoint_tuple(_endpoint(each) for each in content["endpoints"])
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error
        if not -_CLOCK_STEP <= age <= self.max_age:
            raise ValueError(f"it is {age:.0f} s old, and 0 to {self.max_age:.0f} s are allowed")
        return Cached(endpoints, max(0.0, age))


def _endpoint(fields: dict[str, Any]) -> Endpoint:
    return Endpoint(**{name: value for name, value in fields.items() if name != "address"})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Watched(Protocol):
    """The `Watcher`, as far as it is needed here."""

    snapshot: Snapshot
    name: str
    source: Any

    async def newer_than(self, version: int) -> Snapshot: ...

    async def next_swap(self) -> None: ...

    def restore(self, cached: Cached) -> None: ...


async def keep(cache: Cache, watcher: _Watched) -> None:
    """Give a watcher what is in the cache if it hears nothing, and write down what it hears, until cancelled."""
    source = repr(watcher.source)
    now = asyncio.get_running_loop().time
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while not watcher.snapshot.version and not watcher.snapshot.reason:
                await watcher.next_swap()
    if not watcher.snapshot.version:
        cached = await asyncio.to_thread(cache.load, source)
        if cached is not None and cached.endpoints:
            watcher.restore(cached)
    saved: tuple[Endpoint, ...] | None = None
    saved_at = 0.0
    failed = ""
    while True:
        await _stable(watcher, cache.settle)
        snapshot = watcher.snapshot
        fresh = snapshot.endpoints is saved and now() - saved_at < cache.max_age * _REFRESH
        if snapshot.state != "live" or fresh:
            continue
        try:
            await asyncio.to_thread(cache.save, source, snapshot.endpoints)
            saved, saved_at, failed = snapshot.endpoints, now(), ""
        except OSError as error:
            if failed != str(error):
                log.warning("%s: the endpoints cannot be written down: %s", watcher.name, error)
            failed = str(error)


async def _stable(watcher: _Watched, seconds: float) -> None:
    """Wait until the endpoints have not changed for so many seconds."""
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(seconds):
                await watcher.newer_than(watcher.snapshot.version)
