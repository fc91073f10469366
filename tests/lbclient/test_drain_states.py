"""All short histories of one address that two services list, against a model that knows nothing of the code."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from discovery import Endpoint
from lbclient.attempt import Attempt
from lbclient.drain import Drain
from lbclient.node import Node

ADDRESS = "127.0.0.1:1"
TIMEOUT = 10.0
# So that two of them pass a deadline, and one does not.
PAUSE = 6.0
LENGTH = 6


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """As much of an event loop as a drain needs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(self.now + seconds, lambda: call(*args)))
        return self.timers[-1]

    def call_soon(self, call: Callable[..., None], *args: Any) -> Timer:
        return self.call_later(0.0, call, *args)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            if timer.call is not None:
                timer.call()


class Connection:
    """As much of aiohttp's `Connection` and of its protocol as a drain touches."""

    def __init__(self) -> None:
        self.protocol = self.transport = self
        self.marked = self.cut = False
        self.closed = 0

    def is_connected(self) -> bool:
        return not self.closed and not self.cut

    def force_close(self) -> None:
        self.marked = True

    def set_exception(self, error: Exception) -> None:
        assert ADDRESS in str(error)

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        assert not self.cut
        self.cut = True

    def close(self) -> None:
        self.closed += 1


class Key:
    host, port = "127.0.0.1", 1


class Connector:
    def __init__(self) -> None:
        self.idle: deque[tuple[Connection, float]] = deque()
        self._conns = {Key: self.idle}


class System:
    """The real drain, with the real nodes and attempts of two services."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.drain = Drain(TIMEOUT, lambda address: any(address in nodes for nodes in self.services.values()))
        self.connector = Connector()
        self.drain._connectors.add(self.connector)  # type: ignore[arg-type]
        self.services: dict[str, dict[str, Node]] = {"A": {}, "B": {}}
        self.attempts: list[tuple[Attempt, Connection]] = []
        self.seen: list[Connection] = []
        for service in "AB":
            self.add(service)

    def add(self, service: str) -> None:
        self.services[service][ADDRESS] = Node(Endpoint.parse(ADDRESS))

    def drop(self, service: str) -> None:
        node = self.services[service].pop(ADDRESS)
        node.left = True
        self.drain.begin([node])

    def begin(self, service: str) -> None:
        idle = self.connector.idle
        while idle and not idle[0][0].is_connected():
            idle.popleft()
        connection = idle.popleft()[0] if idle else Connection()
        if connection not in self.seen:
            self.seen.append(connection)
        attempt = Attempt(self.services[service][ADDRESS], "", lambda: None)
        attempt.conn = connection  # type: ignore[assignment]
        self.attempts.append((attempt, connection))

    def end(self, index: int) -> None:
        attempt, connection = self.attempts.pop(index)
        attempt.land()
        if connection.cut:
            return
        if connection.marked:
            connection.close()
        else:
            self.connector.idle.append((connection, 0.0))

    def wait(self) -> None:
        self.clock.advance(PAUSE)

    def close(self) -> None:
        self.drain.close()

    def state(self) -> Any:
        assert all(connection.closed <= 1 for connection in self.seen)
        return {
            "busy": [(connection.marked, connection.cut) for _, connection in self.attempts],
            "idle": sum(connection.is_connected() for connection, _ in self.connector.idle),
            "draining": sum(len(node.attempts) for node in self.drain.nodes),
        }


@dataclass
class Busy:
    service: str
    old: bool = False
    marked: bool = False
    cut: bool = False


@dataclass
class Model:
    """What is to happen, in the words of the documentation."""

    listed: set[str] = field(default_factory=lambda: {"A", "B"})
    busy: list[Busy] = field(default_factory=list)
    idle: int = 0
    now: float = 0.0
    # When the last service dropped the address, until the seconds since then are over.
    dropped_at: float | None = None
    open: bool = True

    def add(self, service: str) -> None:
        self.listed.add(service)

    def drop(self, service: str) -> None:
        self.listed.remove(service)
        for attempt in self.busy:
            attempt.old = attempt.old or attempt.service == service
        if not self.listed:
            self.idle = 0
            for attempt in self.busy:
                attempt.marked = True
            self.dropped_at = self.now

    def begin(self, service: str) -> None:
        self.idle = max(0, self.idle - 1)
        self.busy.append(Busy(service))

    def end(self, index: int) -> None:
        attempt = self.busy.pop(index)
        self.idle += not attempt.marked

    def wait(self) -> None:
        self.now += PAUSE
        if self.dropped_at is not None and self.now >= self.dropped_at + TIMEOUT:
            self.dropped_at = None
            if not self.listed:
                for attempt in self.busy:
                    attempt.cut = True

    def close(self) -> None:
        self.open = False

    def state(self) -> Any:
        return {
            "busy": [(attempt.marked, attempt.cut) for attempt in self.busy],
            "idle": self.idle,
            "draining": sum(attempt.old and not attempt.cut for attempt in self.busy) if self.open else 0,
        }

    def events(self) -> Iterator[tuple[str, Any]]:
        """What may happen next."""
        if not self.open:
            yield "wait", None
            return
        for service in "AB":
            yield ("drop" if service in self.listed else "add"), service
            if service in self.listed and len(self.busy) < 3:
                yield "begin", service
        for index in range(len(self.busy)):
            yield "end", index
        yield "wait", None
        yield "close", None


def apply(target: Any, event: tuple[str, Any]) -> None:
    name, argument = event
    if argument is None:
        getattr(target, name)()
    else:
        getattr(target, name)(argument)


def histories(length: int) -> Iterator[list[tuple[str, Any]]]:
    """All of that length that the model allows."""

    def go_on(history: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
        if len(history) == length:
            yield history
            return
        model = Model()
        for event in history:
            apply(model, event)
        for event in list(model.events()):
            yield from go_on([*history, event])

    yield from go_on([])


def check(history: list[tuple[str, Any]], clock: Clock) -> None:
    clock.now, clock.timers = 0.0, []
    system, model = System(clock), Model()
    for count, event in enumerate(history, 1):
        apply(system, event)
        apply(model, event)
        if not model.open:
            # Only that nothing is cut or closed any more is still to be seen.
            model.dropped_at = None
        assert system.state() == model.state(), history[:count]


def test_every_short_history_goes_as_documented(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    clock = Clock()
    monkeypatch.setattr("lbclient.drain.asyncio.get_running_loop", lambda: clock)
    count = 0
    for history in histories(LENGTH):
        check(history, clock)
        count += 1
    assert count > 24_000


@pytest.mark.parametrize(
    "history",
    [
        # It is back when its first deadline passes; what it still does then is not in the way.
        "begin A, drop A, drop B, wait, add A, wait, wait, end 0",
        # It leaves once more before its first deadline: the seconds begin anew.
        "begin A, drop A, drop B, wait, add A, drop A, wait, wait, end 0",
        # And once more after it.
        "begin A, drop A, drop B, add B, wait, wait, drop B, wait, wait, end 0",
        # What began in between ends with the others, at the second deadline.
        "begin A, drop A, drop B, add A, begin A, wait, drop A, wait, wait, end 1, end 0",
        # One service drops it and has it again, the other has it all the time: nothing happens to anybody.
        "begin A, begin B, drop A, wait, wait, add A, wait, end 0, begin A, end 0, end 0, drop B, wait, wait",
        "begin A, drop A, add A, drop B, add B, begin B, drop A, wait, wait, drop B, wait, wait",
    ],
)
def test_longer_histories(history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("lbclient.drain.asyncio.get_running_loop", lambda: clock)
    events: list[tuple[str, Any]] = []
    for text in history.split(", "):
        name, _, argument = text.partition(" ")
        events.append((name, int(argument) if argument.isdigit() else argument or None))
    check(events, clock)
