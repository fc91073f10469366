"""A model of a Consul agent in memory that has all of its bad habits, in place of the calls of `ConsulClient`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from discovery.consul.client import Answer, ConsulError, Overloaded
from discovery.source import SourceError


@dataclass
class FakeConsul:
    """The instances of one service, the index of their last change, and what is wrong now.

    Attributes:
        down, hung, leaderless: nobody is there; nothing is answered; there is no leader.
        blind: answers are empty, with the index as it is: a token without rights.
        refuses: the status that calls are refused with; 0 for none.
        crowded: waiting is refused, by hanging up.
        deaf: polls that are under way are never answered.
        restless: polls are answered at once, without news.
        shows_no_index: answers say 0.
        cuts: into how many more pieces an answer is cut.
    """

    rng: random.Random
    index: int = 1
    instances: dict[int, tuple[int, str]] = field(default_factory=dict)
    down: bool = False
    hung: bool = False
    leaderless: bool = False
    blind: bool = False
    refuses: int = 0
    crowded: bool = False
    restless: bool = False
    shows_no_index: bool = False
    cuts: int = 0
    backup: tuple[int, dict[int, tuple[int, str]]] = (1, {})
    polls: set[asyncio.Event] = field(default_factory=set)

    def change(self, number: int, instance: tuple[int, str] | None) -> None:
        """One instance, registered, changed or removed."""
        if instance is None:
            self.instances.pop(number, None)
        else:
            self.instances[number] = instance
        self.index += self.rng.randrange(1, 4)
        self.wake()

    def wake(self) -> None:
        for poll in self.polls:
            poll.set()

    async def get(self, params: Iterable[tuple[str, str]], timeout: float) -> Answer:  # noqa: ASYNC109 - as the real one
        """A health query."""
        said = dict(params)
        asked = int(said.get("index", 0))
        await asyncio.sleep(0.001)
        self._expect_well(waiting=bool(asked))
        if self.hung:
            await asyncio.sleep(timeout)
            raise SourceError(f"no answer within {timeout:g} s")
        if asked and asked >= self.index and not self.restless:
            await self._wait(float(said["wait"].removesuffix("ms")) / 1000, asked, timeout)
            self._expect_well(waiting=False)
        # Without a leader an answer may be an old one.
        empty = self.blind or self.leaderless or "filter" in said
        text = json.dumps([] if empty else [entry(number, *each) for number, each in self.instances.items()])
        cuts = sorted(self.rng.randrange(len(text)) for _ in range(self.cuts))
        pieces = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return Answer(data=pieces, index=0 if self.shows_no_index else self.index, has_leader=not self.leaderless)

    async def _wait(self, seconds: float, asked: int, timeout: float) -> None:  # noqa: ASYNC109 - as above
        poll = asyncio.Event()
        self.polls.add(poll)
        try:
            async with asyncio.timeout(timeout):
                try:
                    async with asyncio.timeout(seconds):
                        # An index ahead of the server's blocks the whole wait, in silence.
                        while self.index <= asked:
                            poll.clear()
                            await poll.wait()
                except TimeoutError:
                    if poll not in self.polls:  # deaf: not even the end of the wait is told
                        await asyncio.Event().wait()
        except TimeoutError:
            raise SourceError(f"no answer within {timeout:g} s") from None
        finally:
            self.polls.discard(poll)

    def _expect_well(self, *, waiting: bool) -> None:
        if self.down:
            raise SourceError("cannot connect")
        if self.refuses:
            raise ConsulError(f"HTTP status {self.refuses}", self.refuses)
        if self.crowded and waiting:
            raise Overloaded("it closed the connection without an answer")


def entry(number: int, port: int, status: str) -> dict[str, Any]:
    """As /v1/health/service has it."""
    service = {"ID": f"i{number}", "Service": "web", "Address": f"10.0.0.{number}", "Port": port}
    return {"Node": {"Node": "n"}, "Service": service, "Checks": [{"Status": status}]}


Act = Callable[[FakeConsul, int], None]

ACTS: dict[str, Act] = {}
"""What may happen to it, by name; the number says which or how much."""


def act(function: Act) -> Act:
    """Add to the table, under the function's name in words."""
    ACTS[function.__name__.replace("_", " ")] = function
    return function


@act
def register(consul: FakeConsul, number: int) -> None:
    consul.change(number % 7 + 1, (80 + number % 3, "passing"))


@act
def check(consul: FakeConsul, number: int) -> None:
    if number % 7 + 1 in consul.instances:
        consul.change(number % 7 + 1, (80, ("passing", "warning", "critical")[number % 3]))


@act
def deregister(consul: FakeConsul, number: int) -> None:
    consul.change(number % 7 + 1, None)


@act
def elsewhere(consul: FakeConsul, number: int) -> None:
    """The index moves for others, and the set stays as it is."""
    consul.index += number
    consul.wake()


@act
def decrease(consul: FakeConsul, number: int) -> None:
    """The set changes, and the index is an earlier one."""
    register(consul, number)
    consul.index = max(1, consul.index - number)
    consul.wake()


@act
def no_index(consul: FakeConsul, number: int) -> None:
    """Below 1 it would not wait: it must not be asked with that."""
    consul.shows_no_index = bool(number % 2)


@act
def backup(consul: FakeConsul, _: int) -> None:
    consul.backup = consul.index, dict(consul.instances)


@act
def restore(consul: FakeConsul, _: int) -> None:
    consul.index, instances = consul.backup
    consul.instances = dict(instances)
    consul.wake()


@act
def wipe(consul: FakeConsul, _: int) -> None:
    consul.index, consul.instances = 1, {}
    consul.wake()


@act
def deaf(consul: FakeConsul, _: int) -> None:
    consul.polls.clear()


@act
def restless(consul: FakeConsul, number: int) -> None:
    consul.restless = bool(number % 2)
    consul.wake()


@act
def blind(consul: FakeConsul, number: int) -> None:
    consul.blind = bool(number % 2)
    if number % 3:
        consul.wake()


@act
def refuse(consul: FakeConsul, number: int) -> None:
    consul.refuses = (0, 403, 429, 500, 503)[number % 5]
    consul.wake()


@act
def crowd(consul: FakeConsul, number: int) -> None:
    consul.crowded = bool(number % 2)


@act
def lose_the_leader(consul: FakeConsul, number: int) -> None:
    consul.leaderless = bool(number % 2)
    consul.wake()


@act
def cut(consul: FakeConsul, number: int) -> None:
    consul.cuts = number % 6


@act
def down(consul: FakeConsul, _: int) -> None:
    consul.down, consul.hung = True, False
    consul.wake()


@act
def hung(consul: FakeConsul, _: int) -> None:
    consul.down, consul.hung = False, True
    consul.polls.clear()


@act
def up(consul: FakeConsul, _: int) -> None:
    consul.down = consul.hung = consul.leaderless = consul.blind = consul.crowded = consul.restless = False
    consul.refuses, consul.shows_no_index = 0, False
