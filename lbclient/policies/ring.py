"""`Ring`: hosts at many points of a circle, for consistent hashing."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
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

    __slots__ = ("_arcs", "_hosts", "_pending", "_points", "behind", "nodes")

    def __init__(self, points: int) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.behind = False
        self._points = points
        self._arcs: list[_Arc] = []
        self._hosts: dict[str, _Host] = {}
        # Hosts whose points are not all where they should be; the values mean nothing.
        self._pending: dict[_Host, None] = {}

    def __deepcopy__(self, _: object) -> Ring:
        # The next update makes the same, and faster.
        return Ring(self._points)

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set as it is."""
        self.nodes = nodes
        hosts, pending = self._hosts, self._pending
        for node, count in zip(nodes, points_by_weight(nodes, self._points), strict=True):
            host = hosts.get(node.address)
            if host is None:
                host = hosts[node.address] = _Host(node.address)
            host.node = node
            if host.wanted != count:
                host.wanted = count
                pending[host] = None
        if len(hosts) > len(nodes):
            for address in hosts.keys() - {node.address for node in nodes}:
                host = hosts[address]
                host.node = None
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
                if host.node is None:
                    del self._hosts[host.address]
        self.behind = bool(self._pending)

    def find(self, point: int) -> Node | None:
        """The node of the first host at or after the point; None if that one left."""
        index = point >> _SHIFT
        arc = self._arcs[index]
        if not arc.in_order:
            arc.sort()
        at = bisect_left(arc.points, point)
        while at == len(arc.hosts):
            index = (index + 1) % _ARCS
            arc = self._arcs[index]
            at = 0
        if not arc.in_order:
            arc.sort()
        return arc.hosts[at].node

    def walk(self, point: int) -> Iterator[Node]:
        """The nodes at and after the point, in turn and once around; most of them come up many times."""
        index = point >> _SHIFT
        first = self._arcs[index].hosts_from(point)
        arcs = self._arcs[index + 1 :] + self._arcs[: index + 1]
        for hosts in chain((first,), (arc.hosts_from(0) for arc in arcs)):
            for host in hosts:
                if host.node is not None:
                    yield host.node

    def _build(self) -> None:
        self._arcs = arcs = [_EMPTY] * _ARCS
        self._hosts = {address: host for address, host in self._hosts.items() if host.node is not None}
        for host in self._hosts.values():
            for point in host.points(0, host.wanted):
                index = point >> _SHIFT
                arc = arcs[index]
                if arc is _EMPTY:
                    arc = arcs[index] = _Arc()
                    # Sorted where and when it is needed: that takes longer than all of this.
                    arc.in_order = False
                arc.points.append(point)
                arc.hosts.append(host)
            host.placed = host.wanted
        self._pending = {}
        self.behind = False

    def _place(self, host: _Host, most: int) -> int:
        """Add or remove points until the host has as many as it should; returns how many were changed."""
        first, last = sorted((host.placed, host.wanted))
        if host.placed < host.wanted:
            last = min(last, first + most)
            for point in host.points(first, last):
                self._arc(point).add(point, host)
            host.placed = last
        else:
            first = max(first, last - most)
            for point in host.points(first, last):
                self._arc(point).remove(point, host)
            host.placed = first
        return last - first

    def _arc(self, point: int) -> _Arc:
        index = point >> _SHIFT
        if self._arcs[index] is _EMPTY:
            self._arcs[index] = _Arc()
        return self._arcs[index]


class _Host:
    """An address on the ring.

    Attributes:
        node: the one that has the address now; None if it left.
        placed: how many points it has on the ring; wanted: how many it should have.
    """

    __slots__ = ("address", "node", "placed", "wanted")

    def __init__(self, address: str) -> None:
        self.address = address
        self.node: Node | None = None
        self.placed = 0
        self.wanted = 0

    def __lt__(self, other: _Host) -> bool:
        # Of two hosts at the same point, the same one is first whichever came first.
        return self.address < other.address

    def points(self, first: int, last: int) -> Iterable[int]:
        prefix = f"{self.address}_".encode()
        return map(xxh64_intdigest, [prefix + b"%d" % index for index in range(first, last)])


class _Arc:
    """A stretch of the ring: points in ascending order if `in_order`, and the host at each of them."""

    __slots__ = ("hosts", "in_order", "points")

    def __init__(self) -> None:
        # A list of a million integers would take four times the memory.
        self.points = array("Q")
        self.hosts: list[_Host] = []
        self.in_order = True

    def hosts_from(self, point: int) -> list[_Host]:
        """The hosts at and after a point."""
        if not self.in_order:
            self.sort()
        return self.hosts[bisect_left(self.points, point) :]

    def add(self, point: int, host: _Host) -> None:
        at = len(self.points)
        if self.in_order:
            at = bisect_left(self.points, point)
            while at < len(self.points) and self.points[at] == point and self.hosts[at] < host:
                at += 1
        self.points.insert(at, point)
        self.hosts.insert(at, host)

    def remove(self, point: int, host: _Host) -> None:
        at = bisect_left(self.points, point) if self.in_order else self.points.index(point)
        while self.hosts[at] is not host:
            at = self.points.index(point, at + 1)
        del self.points[at]
        del self.hosts[at]

    def sort(self) -> None:
        pairs = sorted(zip(self.points, self.hosts, strict=True))
        self.points = array("Q", [point for point, _ in pairs])
        self.hosts = [host for _, host in pairs]
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
    # So that no sum is infinite; a power of two changes nothing else.
    exponent = frexp(heaviest)[1]
    if weights.count(heaviest) == len(weights):
        weight = ldexp(heaviest, -exponent)
        return [max(1, round(points * weight / _nearest_power(weight)))] * len(weights)
    scaled = [ldexp(weight, -exponent) for weight in weights]
    median = sorted(scaled)[(len(scaled) - 1) // 2]
    afforded = max(2 * points * len(scaled), _ALWAYS_AFFORDED)
    per_unit = points / _nearest_power(max(median, sum(scaled) * points / afforded))
    counts = [max(1, round(weight * per_unit)) for weight in scaled]
    return [count if weight else 0 for weight, count in zip(weights, counts, strict=True)]


def _nearest_power(number: float) -> float:
    return ldexp(1.0, round(log2(number)))
