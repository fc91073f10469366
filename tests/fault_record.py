"""The record of a fault server, a file that outlives it: how it is written, and how it is read."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Meter", "Record", "Report", "Trace"]


@dataclass
class Meter:
    """Bytes of all connections since the last line of the record."""

    received: int = 0
    sent: int = 0


class Record:
    """The record file: each line is `[moment, kind, connection, bytes received, bytes sent, ...]`.

    The moment is in `time.monotonic()` seconds, which are the same in all processes of a machine; the bytes are
    those since the last line.
    """

    def __init__(self, path: str, meter: Meter) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._meter = meter

    def note(self, kind: str, connection: int, *more: object) -> None:
        meter = self._meter
        line = json.dumps([time.monotonic(), kind, connection, meter.received, meter.sent, *more])
        meter.received = meter.sent = 0
        os.write(self._file, line.encode() + b"\n")


@dataclass
class Trace:
    """What a server saw of the requests with one `X-Request-Id`.

    Attributes:
        heads: how often the head was read completely.
        processed: how often the body was, too; one without a body is as soon as its head is.
        answered: how often an answer was sent completely, up to its last byte.
        bodies: SHA-256 (hexadecimal) and size of each body that was read.
        statuses: of the answers.
        methods: of the requests.
        processed_at: when, in `time.monotonic()` seconds, which are the same in all processes.
    """

    heads: int = 0
    answered: int = 0
    bodies: list[tuple[str, int]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    processed_at: list[float] = field(default_factory=list)

    @property
    def processed(self) -> int:
        return len(self.bodies)


@dataclass
class Report:
    """What a server saw in all, over all its starts.

    Attributes:
        requests: by `X-Request-Id`; those without one have the key "".
        opened: connections that were accepted; `open` are those that have not ended.
        heads, processed, answered: of all requests.
        received, sent: bytes.
        starts: of the process.
        opened_at: when connections were accepted, in `time.monotonic()` seconds.
        heads_at: the same for the heads of requests.
    """

    requests: dict[str, Trace] = field(default_factory=dict)
    opened: int = 0
    open: int = 0
    heads: int = 0
    processed: int = 0
    answered: int = 0
    received: int = 0
    sent: int = 0
    starts: int = 0
    opened_at: list[float] = field(default_factory=list)
    heads_at: list[float] = field(default_factory=list)
    offset: int = 0

    def read(self, path: Path) -> None:
        """Take in what was written since the last time."""
        with path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self.offset += len(data)
        for line in data.splitlines():
            self._take(*json.loads(line))

    def trace(self, request_id: str) -> Trace:
        """What was seen of this request; an empty trace if it never came."""
        return self.requests.get(request_id) or Trace()

    def _take(self, at: float, kind: str, _connection: int, received: int, sent: int, *more: object) -> None:
        self.received += received
        self.sent += sent
        match kind, more:
            case "start", _:
                # Connections of the one that was killed are gone with it.
                self.starts, self.open = self.starts + 1, 0
            case "open", _:
                self.opened, self.open = self.opened + 1, self.open + 1
                self.opened_at.append(at)
            case "close", _:
                self.open -= 1
            case "head", (str(request_id), str(method), str(_)):
                self.heads += 1
                self.heads_at.append(at)
                trace = self.requests.setdefault(request_id, Trace())
                trace.heads += 1
                trace.methods.append(method)
            case "body", (str(request_id), str(digest), int(size)):
                self.processed += 1
                trace = self.requests[request_id]
                trace.bodies.append((digest, size))
                trace.processed_at.append(at)
            case "answer", (str(request_id), int(status)):
                self.answered += 1
                trace = self.requests[request_id]
                trace.answered += 1
                trace.statuses.append(status)
            case _:
                raise ValueError(f"no such line in a record: {kind!r} {more!r}")
