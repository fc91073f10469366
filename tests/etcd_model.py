"""A model of etcd in memory that has all of its bad habits, in place of the connections of `EtcdClient`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from discovery.etcd.wire import b64, unb64

PREFIX = b"users/"


@dataclass
class Event:
    """What happened to one key at one revision; no value is a deletion."""

    revision: int
    key: bytes
    value: bytes | None

    def frame(self) -> dict[str, Any]:
        pair = {"key": b64(self.key), "mod_revision": str(self.revision)}
        if self.value is None:
            return {"type": "DELETE", "kv": pair}
        return {"kv": {**pair, "value": b64(self.value)}}


class Watch:
    """One stream of a watch, as its client reads it; chunks are cut where the story says."""

    def __init__(self, etcd: FakeEtcd, start: int) -> None:
        self.etcd = etcd
        self.start = start
        self.chunks: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.silent = False
        self.lose = 0
        etcd.watches.append(self)

    async def readany(self) -> bytes:
        chunk = await self.chunks.get()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def send(self, result: dict[str, Any], *, newline: bool = True) -> None:
        if self.silent:
            return
        header = {"cluster_id": str(self.etcd.cluster), "revision": str(self.etcd.revision)}
        self.write(json.dumps({"result": {"header": header, **result}}).encode() + b"\n" * newline)

    def write(self, data: bytes) -> None:
        cuts = sorted(self.etcd.rng.randrange(len(data)) for _ in range(self.etcd.cuts)) if data else []
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if data[begin:end]:
                self.chunks.put_nowait(data[begin:end])

    def events(self, events: list[Event]) -> None:
        events = [event for event in events if event.revision >= self.start]
        events, self.lose = events[self.lose :], max(0, self.lose - len(events))
        if events:
            self.send({"events": [event.frame() for event in events]})


@dataclass
class FakeEtcd:
    """Keys, revisions and history as etcd has them, and all its bad habits.

    Attributes:
        down: calls fail.
        hung: calls are not answered.
        cuts: into how many more chunks each frame is cut.
    """

    rng: random.Random
    cluster: int = 7
    revision: int = 1
    compacted: int = 0
    keys: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    down: bool = False
    hung: bool = False
    cuts: int = 0
    backup: tuple[int, dict[bytes, tuple[bytes, int]], list[Event]] = (1, {}, [])

    def change(self, *changes: tuple[bytes, bytes | None]) -> None:
        """One transaction."""
        self.revision += 1
        events = []
        for key, value in dict(changes).items():
            if value is not None:
                self.keys[key] = (value, self.revision)
            elif self.keys.pop(key, None) is None:
                continue
            events.append(Event(self.revision, key, value))
        self.history += events
        for watch in self.watches:
            watch.events(events)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A range request; the only one that the source makes."""
        assert path == "/kv/range"
        header = {"cluster_id": str(self.cluster), "revision": str(self.revision)}
        at = int(body.get("revision", 0)) or self.revision
        if at < self.compacted or at > self.revision:
            return {"error": "etcdserver: mvcc: required revision is not there", "code": 11}
        keys: dict[bytes, tuple[bytes, int]] = self.keys
        if at < self.revision:
            keys = {}
            for event in self.history:
                if event.revision <= at:
                    keys.pop(event.key, None)
                    if event.value is not None:
                        keys[event.key] = (event.value, event.revision)
        begin, end = unb64(body["key"]), unb64(body["range_end"])
        inside = sorted((key, value, at) for key, (value, at) in keys.items() if begin <= key < end)
        count = len(inside)
        if "min_mod_revision" in body:
            inside = [each for each in inside if each[2] >= int(body["min_mod_revision"])]
        if body.get("sort_target") == "MOD":
            inside.sort(key=lambda each: each[2])
        limit = int(body.get("limit", 0)) or count
        shown: list[dict[str, str]] = []
        for key, value, revision in [] if body.get("count_only") else inside[:limit]:
            pair = {"key": b64(key), "mod_revision": str(revision)}
            shown.append(pair if body.get("keys_only") else {**pair, "value": b64(value)})
        # Fields that are zero or false are not there.
        more = {"more": True} if len(inside) > limit else {}
        found = {"kvs": shown, "count": str(count) if count else ""}
        return {"header": header, **{name: value for name, value in found.items() if value}, **more}

    def open(self, create: dict[str, Any]) -> Watch:
        """A new stream."""
        watch = Watch(self, int(create["start_revision"]))
        if watch.start <= self.compacted:
            # It may come with the first frame, and the stream stays open.
            watch.send({"created": True, "canceled": True, "compact_revision": str(self.compacted)})
            watch.silent = True
            return watch
        watch.send({"created": True})
        watch.events(self.history)
        return watch

    def end_streams(self, error: Exception | None) -> None:
        """With an error, or with an end."""
        for watch in self.watches:
            watch.chunks.put_nowait(error or b"")
        self.watches.clear()


class Response:
    """What `EtcdClient._request` returns: awaited for a stream, entered for a call."""

    status = 200

    def __init__(self, etcd: FakeEtcd, path: str, body: dict[str, Any]) -> None:
        self._etcd, self._path, self._body = etcd, path, body

    def __await__(self) -> Generator[Any, None, Self]:
        return self._reached().__await__()

    async def __aenter__(self) -> Self:
        return await self._reached()

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _reached(self) -> Self:
        await asyncio.sleep(0.001)
        if self._etcd.hung:
            await asyncio.sleep(2)
            raise TimeoutError
        if self._etcd.down:
            raise aiohttp.ServerDisconnectedError
        if self._path == "/watch":
            self.content = self._etcd.open(self._body["create_request"])
        return self

    async def read(self) -> bytes:
        answer = self._etcd.answer(self._path, self._body)
        self.status = 400 if "error" in answer else 200
        return json.dumps(answer).encode()

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._etcd.watches.remove(self.content)


Act = Callable[[FakeEtcd, int], None]

ACTS: dict[str, Act] = {}
"""What may happen to it, by name; the number says which or how much."""


def act(function: Act) -> Act:
    """Add to the table, under the function's name in words."""
    ACTS[function.__name__.replace("_", " ").strip()] = function
    return function


def key_of(number: int) -> bytes:
    return PREFIX + b"%d" % (number % 7)


def value_of(number: int) -> bytes:
    return b"10.0.0.%d:80" % (number % 11 + 1)


@act
def put(etcd: FakeEtcd, number: int) -> None:
    etcd.change((key_of(number), value_of(number)))


@act
def delete(etcd: FakeEtcd, number: int) -> None:
    etcd.change((key_of(number), None))


@act
def many(etcd: FakeEtcd, number: int) -> None:
    etcd.change(*((key_of(n), value_of(number) if (n + number) % 3 else None) for n in range(number % 7)))


@act
def elsewhere(etcd: FakeEtcd, number: int) -> None:
    etcd.change((b"users2/%d" % number, value_of(number)))


@act
def compact(etcd: FakeEtcd, _: int) -> None:
    etcd.compacted = etcd.revision


@act
def lose(etcd: FakeEtcd, number: int) -> None:
    """The next events get lost, those after them come."""
    for watch in etcd.watches:
        watch.lose = number % 4 + 1


@act
def repeat(etcd: FakeEtcd, number: int) -> None:
    for watch in etcd.watches:
        watch.send({"events": [event.frame() for event in etcd.history[-(number % 4 + 1) :]]})


@act
def silent(etcd: FakeEtcd, _: int) -> None:
    for watch in etcd.watches:
        watch.silent = True


@act
def cancel(etcd: FakeEtcd, number: int) -> None:
    """The stream stays open after it."""
    for watch in etcd.watches:
        watch.send({"canceled": True, **({"cancel_reason": "no leader"} if number % 2 else {})})
        watch.silent = True


@act
def break_(etcd: FakeEtcd, number: int) -> None:
    etcd.end_streams(aiohttp.ClientPayloadError() if number % 2 else None)


@act
def error(etcd: FakeEtcd, _: int) -> None:
    """Without a newline, as etcd 3.5.1 does."""
    for watch in etcd.watches:
        watch.write(b'{"error":{"grpc_code":14,"message":"x"}}')
    etcd.end_streams(None)


@act
def garbage(etcd: FakeEtcd, number: int) -> None:
    for watch in etcd.watches:
        watch.write(b"<html>\n" if number % 2 else b"[]\n")


@act
def empty(etcd: FakeEtcd, _: int) -> None:
    for watch in etcd.watches:
        watch.write(b"\n\n")
        watch.send({})


@act
def cut(etcd: FakeEtcd, number: int) -> None:
    etcd.cuts = number % 5


@act
def backup(etcd: FakeEtcd, _: int) -> None:
    etcd.backup = (etcd.revision, dict(etcd.keys), list(etcd.history))


@act
def restore(etcd: FakeEtcd, _: int) -> None:
    """The same cluster, an earlier revision, another history from now on."""
    gone = list(etcd.watches)
    restore_behind_our_back(etcd, 0)
    for watch in gone:
        watch.chunks.put_nowait(aiohttp.ClientPayloadError())


@act
def restore_behind_our_back(etcd: FakeEtcd, _: int) -> None:
    """Connections stay open, and are silent."""
    revision, keys, history = etcd.backup
    etcd.revision, etcd.keys, etcd.history = revision, dict(keys), list(history)
    etcd.compacted = min(etcd.compacted, etcd.revision)
    etcd.watches = []


@act
def wipe(etcd: FakeEtcd, _: int) -> None:
    gone = list(etcd.watches)
    wipe_behind_our_back(etcd, 0)
    for watch in gone:
        watch.chunks.put_nowait(aiohttp.ClientPayloadError())


@act
def wipe_behind_our_back(etcd: FakeEtcd, _: int) -> None:
    etcd.cluster, etcd.revision, etcd.compacted = etcd.cluster + 1, 1, 0
    etcd.keys, etcd.history, etcd.backup, etcd.watches = {}, [], (1, {}, []), []


@act
def down(etcd: FakeEtcd, _: int) -> None:
    etcd.down, etcd.hung = True, False


@act
def hung(etcd: FakeEtcd, _: int) -> None:
    etcd.down, etcd.hung = False, True


@act
def up(etcd: FakeEtcd, _: int) -> None:
    etcd.down = etcd.hung = False
