"""The table of faults: what each server may have seen of a request, and what its caller gets, by a few rules.

A cell is a method, a body, a fault and the place of the one healthy server among three (or none is healthy). The
rules know nothing of the implementation:

1. A server that was not connected to has seen nothing: any request goes on to the next one, with its whole body.
2. Where a request was sent and no answer came, it may have been processed: it goes on if it is idempotent, by its
   method or by its key, and if its body can be sent once more, which a generator's cannot. Else the caller gets
   the error.
3. An answer of 429, 502, 503 or 504 is treated the same; where the request does not go on, it is the answer.
4. Any other answer is the answer, also if its body breaks off, which the caller notices when reading it.
5. What is no HTTP is an error, and nobody else is asked.
6. There are three attempts, each at another server; after a server that cannot prove who it is there is only one
   more. When they are used up the last result is the caller's.
7. A server has processed a request once it has read its head and its whole body.

The session differs, too (see `Way`), and so do a few rules:

8. With hedging, a request that may go on by 2 and has no body, or one in memory, goes to two servers at the same
   time where the first one is late. Both are attempts. The healthy server's answer, or one by 4, ends it, and the
   other server may have seen all of the request, a part, or nothing; it is not to blame. Else both are waited for,
   and what holds for the last result is done. How late a server is depends on the machine as well: any two may
   race, but only where a server is late by its fault they have to.
9. In a session of somebody else there is `AttemptsFailed` in place of an error after which aiohttp would send the
   request once more: a connection that ended, a method that is idempotent, and a body that can be sent once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from fault_kinds import KINDS, Kind, Shows

__all__ = ["BODIES", "HEALTHY_AT", "METHODS", "SERIES", "Cell", "Expected", "Way", "cells", "left_out", "sample"]

METHODS = ("GET", "HEAD", "PUT", "DELETE", "POST", "POST with key", "PATCH")
BODIES = ("none", "bytes", "json", "form", "file", "generator")
# The place of the healthy server in the order of preference; -1 if there is none.
HEALTHY_AT = (0, 1, 2, -1)

_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE", "POST with key")
_IN_MEMORY = ("none", "bytes", "json")
# Servers that are asked at the same time; one after the other if it is one.
_Round = tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """How a request is sent.

    Attributes:
        hedged: whether the attempts may race.
        foreign: whether the session is aiohttp's own, with a middleware.
    """

    hedged: bool = False
    foreign: bool = False

    def __str__(self) -> str:
        return ("foreign " if self.foreign else "") + ("hedged" if self.hedged else "series")


SERIES = Way()


@dataclass(frozen=True)
class Expected:
    """What may be seen of one request.

    Attributes:
        heads: how often its head was read, by each server in the order of preference.
        processed: the same for the whole request.
        server: the place of the server whose answer the caller gets; None if it gets none.
        status: of the answer.
        errors: the exceptions, one of which the caller gets, from the request or when it reads the answer.
        lost: the places of those that lost a race: they may have seen less.
    """

    heads: tuple[int, ...]
    processed: tuple[int, ...]
    server: int | None
    status: int | None
    errors: tuple[str, ...]
    lost: _Round = ()


@dataclass(frozen=True)
class Cell:
    """One request of the table."""

    name: str
    method: str
    body: str
    healthy_at: int
    way: Way = SERIES

    @property
    def request_id(self) -> str:
        return f"{self.name}/{self.method}/{self.body}/{self.healthy_at}/{self.way}"

    @property
    def verb(self) -> str:
        return self.method.split(" ", maxsplit=1)[0]

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def shows(self) -> Shows:
        # An answer to HEAD has no body of which there could be too much.
        return Shows.ANSWER if self.verb == "HEAD" and self.kind.fault.length < 0 else self.kind.shows

    @property
    def races(self) -> bool:
        """Whether two servers may have it at the same time."""
        return self.way.hedged and self.method in _IDEMPOTENT and self.body in _IN_MEMORY

    @property
    def patient(self) -> bool:
        """Whether nothing ends a late attempt in time: only a hedge can bring the healthy server's answer."""
        return self.races and self.kind.late and self.healthy_at in (0, 1)

    def goes_on(self) -> bool:
        """Whether the request goes to another server after this fault."""
        if self.shows is Shows.UNSENT:
            return True
        may = self.shows in (Shows.UNKNOWN, Shows.REFUSED)
        return may and self.method in _IDEMPOTENT and self.body != "generator"

    def expected(self) -> Iterator[Expected]:
        """What the rules allow: one thing only, but for requests that race."""
        for rounds in self._rounds(0):
            asked: _Round = ()
            for number, asking in enumerate(rounds, 1):
                asked += asking
                final = tuple(place for place in asking if self._is_final(place))
                if final or not self.goes_on() or number == len(rounds):
                    for place in final or asking:
                        lost = tuple(other for other in asking if final and other != place)
                        yield self._ends(asked, place, lost)
                    break

    def _rounds(self, place: int) -> Iterator[tuple[_Round, ...]]:
        """Who is asked from this place on, with whom at the same time, should the request go on and on."""
        if place >= self.kind.attempts:
            yield ()
            return
        may_race = self.races and place + 1 < self.kind.attempts
        if may_race:
            yield from (((place, place + 1), *more) for more in self._rounds(place + 2))
        if not may_race or place == self.healthy_at or not self.kind.late:
            yield from (((place,), *more) for more in self._rounds(place + 1))

    def _is_final(self, place: int) -> bool:
        """Whether what this server answers is not waited for another one's answer."""
        return place == self.healthy_at or self.shows in (Shows.ANSWER, Shows.TORN)

    def _ends(self, asked: _Round, last: int, lost: _Round) -> Expected:
        """What is seen if these were asked, and the result of one of them is the caller's."""
        heads, processed = [0, 0, 0], [0, 0, 0]
        reads = self.kind.fault.reads
        for place in asked:
            if place == self.healthy_at:
                heads[place] = processed[place] = 1
            elif self.shows is not Shows.UNSENT:
                heads[place] = int(reads != "nothing")
                processed[place] = int(reads == "all" or (reads == "head" and self.body == "none"))
        seen = tuple(heads), tuple(processed)
        if last == self.healthy_at:
            return Expected(*seen, last, 200, (), lost)
        answered = self.shows in (Shows.REFUSED, Shows.ANSWER, Shows.TORN)
        errors = () if self.shows in (Shows.REFUSED, Shows.ANSWER) else self._errors()
        return Expected(*seen, last if answered else None, self.kind.status if answered else None, errors, lost)

    def _errors(self) -> tuple[str, ...]:
        ended = self.shows is Shows.UNKNOWN and not self.kind.late
        by_method = self.verb in _IDEMPOTENT and self.body != "generator"
        return ("AttemptsFailed",) if self.way.foreign and ended and by_method else self.kind.errors


def cells(name: str) -> Iterator[Cell]:
    """All cells with this fault, but for those that are `left_out`."""
    for method, body, healthy_at in product(METHODS, BODIES, HEALTHY_AT):
        if not left_out(name, method, body):
            yield Cell(name, method, body, healthy_at)


def sample(name: str, way: Way) -> Iterator[Cell]:
    """A bit more than a quarter of all cells with this fault, sent in another way.

    What may be done with a request is decided by its fault, its method and its body together: all of these are
    there. The place of the healthy server says only how far it goes, and goes round: with every fault each body,
    and each method that may have one, has every place. So has GET; HEAD has over all faults. Where the way mixes
    two that have samples of their own, there are GET at every place, and one body.
    """
    for cell in cells(name):
        turn = METHODS.index(cell.method) + BODIES.index(cell.body) + list(KINDS).index(name)
        its_turn = HEALTHY_AT[turn % len(HEALTHY_AT)] == cell.healthy_at
        if way.hedged and way.foreign:
            its_turn = its_turn and cell.body == "bytes"
        if its_turn or cell.method == "GET":
            yield Cell(cell.name, cell.method, cell.body, cell.healthy_at, way)


def left_out(name: str, method: str, body: str) -> str:
    """Why there are no such cells; nothing for those that there are."""
    if method in ("GET", "HEAD") and body != "none":
        return "it has no meaning (RFC 9110, section 9.3.1)"
    if method == "HEAD" and KINDS[name].shows is Shows.TORN:
        return "no body is to come, so the answer is whole, and the fault would be the next request's"
    return ""
