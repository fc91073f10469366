"""`Ring`: hosts at many points of a circle, for consistent hashing."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import frexp, ldexp, log2

from xxhash import xxh64_intdigest

from lbclient.node import Node

__all__ = ["Ring", "points_by_weight"]

# The circle has 2**64 places. It is kept in stretches, so that a point comes and goes without moving the others.
# Few hosts leave most of them empty, and thousands of hosts put hundreds of points into each: both are fast.
_ARCS = 2048
_SHIFT = 64 - 11
# Points that one pick may add and remove for hosts that changed: about two milliseconds.
_POINTS_PER_PICK = 2048
# However few hosts: so many points are made for exact shares, within ten milliseconds.
_ALWAYS_AFFORDED = 1 << 14


class Ring:
    """Which host comes first at or after each point of the circle.

    A host stands at the points XXH64(`address_0`), XXH64(`address_1`), ... as in Envoy; how many of them says
    `points_by_weight`. So a host that comes or goes moves the keys that it gets or had, and no others. What the
    ring holds depends on the hosts and their weights alone and not on how they came about.

    All is made at once in the beginning, and when more than a quarter of the hosts changed. Other changes are
    worked in bit by bit, so that no call takes long; hosts that left are passed over at once.

    Attributes:
        nodes: those of the last update.
        behind: whether changes are left to be worked in by `catch_up`.
    """

    __slots__ = ("_addresses", "_arcs", "_free", "_hosts", "_owners", "_pending", "_points", "behind", "nodes")

    def __init__(self, points: int) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.behind = False
        self._points = points
        self._arcs: list[_Arc] = []
        self._hosts: dict[str, _Host] = {}
        # By the number of a host: its node, None if that left; its address; and the numbers nobody has.
        self._owners: list[Node | None] = []
        self._addresses: list[str] = []
        self._free: list[int] = []
        # Hosts whose points are not all where they should be; the values mean nothing.
        self._pending: dict[_Host, None] = {}

    def __deepcopy__(self, _: object) -> Ring:
        # The next update makes the same, and faster.
        return Ring(self._points)

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set as it is."""
        self.nodes = nodes
        hosts, owners, pending = self._hosts, self._owners, self._pending
        for node, count in zip(nodes, points_by_weight(nodes, self._points), strict=True):
            host = hosts.get(node.address)
            if host is None:
                host = hosts[node.address] = self._number(node.address)
            owners[host.number] = node
            if host.wanted != count:
                host.wanted = count
                pending[host] = None
        if len(hosts) > len(nodes):
            for address in hosts.keys() - {node.address for node in nodes}:
                host = hosts[address]
                owners[host.number] = None
                host.wanted = 0
                pending[host] = None
        changes = sum(abs(host.wanted - host.placed) for host in pending)
        many = changes > _POINTS_PER_PICK and 4 * changes > sum(host.placed for host in hosts.values())
        if many or not self._arcs:
            self._build()
        else:
            self.catch_up()

    def catch_up(self) -> None:
        """Work in the next of the changes."""
        most = _POINTS_PER_PICK
        while self._pending and most > 0:
            host = next(iter(self._pending))
            most -= self._place(host, most)
            if host.placed == host.wanted:
                del self._pending[host]
                if self._owners[host.number] is None:
                    self._forget(host)
        self.behind = bool(self._pending)

    def find(self, point: int) -> Node | None:
        """The node of the first host at or after the point; None if that one left."""
        index = point >> _SHIFT
        arc = self._arcs[index]
        if not arc.in_order:
            arc.sort(self._addresses)
        at = bisect_left(arc.points, point)
        while at == len(arc.points):
            index = (index + 1) % _ARCS
            arc = self._arcs[index]
            at = 0
        if not arc.in_order:
            arc.sort(self._addresses)
        return self._owners[arc.numbers[at]]

    def walk(self, point: int) -> Iterator[Node]:
        """The nodes at and after the point, in turn and once around; most of them come up many times."""
        index = point >> _SHIFT
        for step in range(_ARCS + 1):
            arc = self._arcs[(index + step) % _ARCS]
            if not arc.in_order:
                arc.sort(self._addresses)
            for number in arc.numbers[bisect_left(arc.points, point) :]:
                if (node := self._owners[number]) is not None:
                    yield node
            point = 0

    def _build(self) -> None:
        self._arcs = arcs = [_EMPTY] * _ARCS
        for host in self._pending:
            if self._owners[host.number] is None:
                self._forget(host)
        for host in self._hosts.values():
            for point in host.points(0, host.wanted):
                index = point >> _SHIFT
                arc = arcs[index]
                if arc is _EMPTY:
                    arc = arcs[index] = _Arc()
                    # Sorted where and when it is needed: that takes longer than all of this.
                    arc.in_order = False
                arc.points.append(point)
                arc.numbers.append(host.number)
            host.placed = host.wanted
        self._pending = {}
        self.behind = False

    def _place(self, host: _Host, most: int) -> int:
        """Add or remove points until the host has as many as it should; returns how many were changed."""
        first, last = sorted((host.placed, host.wanted))
        if host.placed < host.wanted:
            last = min(last, first + most)
            for point in host.points(first, last):
                self._arc(point).add(point, host.number, self._addresses)
            host.placed = last
        else:
            first = max(first, last - most)
            for point in host.points(first, last):
                self._arc(point).remove(point, host.number)
            host.placed = first
        return last - first

    def _number(self, address: str) -> _Host:
        if not self._free:
            self._free.append(len(self._owners))
            self._owners.append(None)
            self._addresses.append("")
        host = _Host(address, self._free.pop())
        self._addresses[host.number] = address
        return host

    def _forget(self, host: _Host) -> None:
        del self._hosts[host.address]
        self._free.append(host.number)

    def _arc(self, point: int) -> _Arc:
        index = point >> _SHIFT
        if self._arcs[index] is _EMPTY:
            self._arcs[index] = _Arc()
        return self._arcs[index]


class _Host:
    """An address on the ring.

    Attributes:
        number: what stands for it at its points.
        placed: how many points it has on the ring; wanted: how many it should have.
    """

    __slots__ = ("address", "number", "placed", "wanted")

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self.number = number
        self.placed = 0
        self.wanted = 0

    def points(self, first: int, last: int) -> Iterable[int]:
        prefix = f"{self.address}_".encode()
        return map(xxh64_intdigest, [prefix + b"%d" % index for index in range(first, last)])


class _Arc:
    """A stretch of the ring: points in ascending order if `in_order`, and the number of the host at each of them.

    Of two hosts at the same point the one with the smaller address is first, whichever came first.
    """

    __slots__ = ("in_order", "numbers", "points")

    def __init__(self) -> None:
        # A million objects would take four times the memory, and the garbage collector would look at each.
        self.points = array("Q")
        self.numbers = array("I")
        self.in_order = True

    def add(self, point: int, number: int, addresses: Sequence[str]) -> None:
        points, numbers = self.points, self.numbers
        at = len(points)
        if self.in_order:
            at = bisect_left(points, point)
            while at < len(points) and points[at] == point and addresses[numbers[at]] < addresses[number]:
                at += 1
        points.insert(at, point)
        numbers.insert(at, number)

    def remove(self, point: int, number: int) -> None:
        at = bisect_left(self.points, point) if self.in_order else self.points.index(point)
        while self.numbers[at] != number:
            at = self.points.index(point, at + 1)
        del self.points[at]
        del self.numbers[at]

    def sort(self, addresses: Sequence[str]) -> None:
        pairs = sorted(zip(self.points, self.numbers, strict=True))
        if len(set(self.points)) < len(pairs):
            pairs.sort(key=lambda pair: (pair[0], addresses[pair[1]]))
        self.points = array("Q", [point for point, _ in pairs])
        self.numbers = array("I", [number for _, number in pairs])
        self.in_order = True


# Stands for stretches without a point, which are most of them with a few hosts; never changed.
_EMPTY = _Arc()


def points_by_weight(nodes: Sequence[Node], points: int) -> list[int]:
    """How many points each node has: `points` for each unit of weight, and at least one.

    The unit is the power of two that is nearest to the median of the weights. The median hardly knows of one
    host, and the power of two stays what it is while the median does not go a long way; so a host whose weight
    changes gets or loses points of its own, and those of all others stay. Weights that are 1 everywhere and
    weights that are 100 everywhere make rings of about the same size. In the rare case that the unit does change
    it doubles or halves: every host keeps half of its points, or keeps all and gets as many again.

    Where a few hosts have nearly all of the weight the unit is larger, so that the ring has no more than 2.8 times
    `points` for each host, or 23 000 points. A host whose weight is below a unit's `points`-th part gets one
    point, which is more than its share. Weights that are zero everywhere count as equal, and a single zero has
    no point.
    """
    weights = [node.weight for node in nodes]
    heaviest = max(weights)
    if heaviest == 0:
        return [points] * len(weights)
    # Scaled so that no sum is infinite; a power of two changes nothing else. Few weights are all different.
    exponent = -frexp(heaviest)[1]
    tally = sorted((weight, ldexp(weight, exponent), count) for weight, count in Counter(weights).items())
    median = ldexp(sorted(weights)[(len(weights) - 1) // 2], exponent)
    total = sum(scaled * count for _, scaled, count in tally)
    afforded = max(2 * points * len(weights), _ALWAYS_AFFORDED)
    per_unit = points / _nearest_power(max(median, total * points / afforded))
    counts = {weight: max(1, round(scaled * per_unit)) if weight else 0 for weight, scaled, _ in tally}
    return [counts[weight] for weight in weights]


def _nearest_power(number: float) -> float:
    return ldexp(1.0, round(log2(number)))
