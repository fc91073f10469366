"""`Subset`: a part of the servers for each client, so that not everyone is connected to everyone."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from xxhash import xxh64_intdigest

from discovery import Endpoint

__all__ = ["Subset", "hashed_order"]

_SPACE = 2.0**64
# In smaller sets halves of the hash space are too unequal to place windows by them.
_LEAST_TIMES = 4
_LAST_NUMBER = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """`size` servers for each client: the same ones each time, almost the same ones when servers come and go.

    Servers stand in an order that all clients agree on, by the hash of their addresses; a client uses `size`
    consecutive ones from a position of its own (Finagle's deterministic aperture, in whole servers). When a
    server comes or goes, at most one member changes, in sets of at least eight times the size; in smaller ones it
    may be one or two more now and then.

    How evenly the servers are used depends on the positions. Clients with the numbers 0, 1, 2, ... get those
    of the van der Corput sequence, which leaves no gap: with 300 clients, 300 servers and a size of 10 each server
    has about 8 to 12 clients. Clients with names that differ in their last number only (`users-0`, `users-1`, ...,
    as in a StatefulSet) are spread as well as that. With other names, or none, positions are as good as random
    and so are the counts: about 2 to 20. Give a number if there is one.

    Attributes:
        size: servers; the whole set if it is not larger.
        client: number or name of this client among all that call the service; None for a random position, which
            is another one in each process.
    """

    size: int
    client: int | str | None = None
    position: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size must be a whole number, 1 or more, not {self.size!r}")
        object.__setattr__(self, "position", _position(self.client))

    def select(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """This client's servers, in the order that they have."""
        count = len(endpoints)
        if count <= self.size:
            return tuple(endpoints)
        order, upper = hashed_order(endpoints)
        chosen = (order[number % count] for number in self.window(count, upper))
        return tuple(endpoints[number] for number in sorted(chosen))

    def window(self, count: int, upper: int) -> range:
        """The places of this client's servers among `count`, `upper` of them in the upper half of the hash space.

        It may go on beyond the last place: at the first one, then.
        """
        first = count - self._behind(count, upper)
        return range(first, first + self.size)

    def _behind(self, count: int, upper: int) -> int:
        """How many servers there are from the first one of the window to the end of the order.

        It would be `ceil((1 - position) * count)`, but for windows that go on at the beginning of the order.
        When a server comes into that part of such a window, it pushes another one out, and the other end must
        not move as well. So windows that begin among the last servers are placed by the number of servers in
        the upper half of the hash space alone, of which that part has none.
        """
        rest = 1.0 - self.position
        if count < _LEAST_TIMES * self.size or not upper:
            return ceil(rest * count)
        last = self.size / (2 * upper)
        if rest < last:
            return ceil(rest * 2 * upper)
        return ceil(self.size + (rest - last) / (1 - last) * (count - self.size))


def hashed_order(endpoints: Sequence[Endpoint]) -> tuple[list[int], int]:
    """The indices in the order of the hashed addresses, and how many of them are in the upper half."""
    places = [xxh64_intdigest(endpoint.address.encode()) / _SPACE for endpoint in endpoints]
    upper = sum(place >= 0.5 for place in places)  # noqa: PLR2004 - the middle of 0 to 1
    return sorted(range(len(places)), key=places.__getitem__), upper


def _position(client: object) -> float:
    """Where on the circle the client stands, from 0 to below 1."""
    if client is None:
        return random.random()
    if isinstance(client, int) and not isinstance(client, bool) and client >= 0:
        return _van_der_corput(client)
    if not isinstance(client, str):
        raise ValueError(f"client must be a whole number, 0 or more, a name, or None, not {client!r}")  # noqa: TRY004
    # Names that differ in their last number only share a starting point.
    parts = _LAST_NUMBER.fullmatch(client)
    name, number = (f"{parts[1]}#{parts[3]}", int(parts[2])) if parts else (client, 0)
    return (xxh64_intdigest(name.encode()) / _SPACE + _van_der_corput(number)) % 1.0


def _van_der_corput(number: int) -> float:
    """The digits of a number in base 2, mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ...

    https://en.wikipedia.org/wiki/Van_der_Corput_sequence
    """
    found, digit = 0.0, 0.5
    while number:
        found += digit * (number & 1)
        digit /= 2
        number >>= 1
    return found
