"""`Table`: Maglev's lookup table, made anew in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapreplace
from itertools import cycle, islice
from math import ceil
from typing import Generic, TypeVar

from xxhash import xxh64_intdigest

from lbclient.node import Node

__all__ = ["Filling", "Table"]

T = TypeVar("T")

# What one pick fills of the slots that are still free. Who searches tries 1/(free share) slots for each that it
# gets, so that equal parts of what is free take equal time: about 19 000 tries for a quarter of 65 537 slots.
_PART = 0.25
# And no more than this, since turns by weight take longer: five milliseconds.
_MOST = 4096
# How often a point is hashed again.
_DRAWS = 64


class Table:
    """Which host has each slot of a table of prime size (Maglev, NSDI 2016, section 3.4).

    The hosts take turns in the order of their addresses; `Filling` says how. The permutation of a host is made of
    XXH64 of its address with the seeds 0 and 1, as in Envoy. What the table holds depends on the hosts and their
    weights alone.

    A table is made at once in the beginning, and when more than half of the hosts left. After other changes one is
    made bit by bit, and the old one is used meanwhile, but for hosts that left. If there is another change in
    between, a further one is begun when it is done: however many changes there are, each is heeded.

    Attributes:
        nodes: those of the last update.
        behind: whether the table is not theirs yet.
    """

    __slots__ = ("_filling", "_hosts", "_made_for", "_made_next", "_size", "_slots", "_wanted", "behind", "nodes")

    def __init__(self, size: int) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.behind = False
        self._size = size
        self._hosts: dict[str, _Host] = {}
        self._slots: list[_Host] = []
        self._filling: Filling[_Host] | None = None
        # Weights by address: what the table was made for, what the next one is being made for, and the newest.
        self._made_for: dict[str, float] = {}
        self._made_next: dict[str, float] = {}
        self._wanted: dict[str, float] = {}

    def __deepcopy__(self, _: object) -> Table:
        # The next update makes the same.
        return Table(self._size)

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set as it is."""
        self.nodes = nodes
        self._wanted = wanted = {node.address: node.weight for node in nodes}
        hosts = self._hosts
        for address in hosts.keys() - wanted.keys():
            hosts[address].node = None
        for node in nodes:
            host = hosts.get(node.address)
            if host is None:
                host = hosts[node.address] = _Host(node.address, self._size)
            host.node = node
        self.behind = wanted != self._made_for
        if not self.behind:
            self._filling = None
        left = len(self._made_for.keys() - wanted.keys())
        if 2 * left >= len(self._made_for):
            self._filling = None
            while self.behind:
                self.catch_up()

    def catch_up(self) -> None:
        """Begin a table, fill the next part of it, or put it in the place of the old one."""
        if self._filling is None:
            self._begin()
            return
        self._filling.fill(min(ceil(self._filling.free * _PART), _MOST))
        if self._filling.free == 0:
            self._slots = self._filling.slots
            self._made_for = self._made_next
            self._filling = None
            self.behind = self._wanted != self._made_for
            used = self._made_for.keys() | self._wanted.keys()
            self._hosts = {address: host for address, host in self._hosts.items() if address in used}

    def find(self, point: int) -> Node | None:
        """The node that has the point's slot; None if it left."""
        return self._slots[point % self._size].node

    def walk(self, point: int) -> Iterator[Node]:
        """The nodes of the point's slot, of the slot of its hash, of the hash of that, and so on."""
        for _ in range(_DRAWS):
            node = self._slots[point % self._size].node
            if node is not None:
                yield node
            point = xxh64_intdigest(point.to_bytes(8, "little"))

    def _begin(self) -> None:
        self._made_next = self._wanted
        hosts = [self._hosts[address] for address in sorted(self._made_next)]
        weights = [self._made_next[host.address] for host in hosts]
        self._filling = Filling(hosts, [host.permutation for host in hosts], weights, self._size)


class _Host:
    """An address; its node is None if it left."""

    __slots__ = ("address", "node", "permutation")

    def __init__(self, address: str, size: int) -> None:
        self.address = address
        self.node: Node | None = None
        name = address.encode()
        self.permutation = xxh64_intdigest(name, 0) % size, xxh64_intdigest(name, 1) % (size - 1) + 1


class Filling(Generic[T]):
    """A table that is being filled, as in the paper's section 3.4.

    Each host has a permutation of all slots: `offset`, `offset + skip`, `offset + 2 * skip`, ... modulo the prime
    `size`. Whose turn it is claims the first slot of its permutation that is still free. With equal weights all
    take turns in their order; else a host takes its turn number k (0, 1, 2, ...) at the time (k + 1/2) / weight,
    but its first one in the beginning, so that nobody who has a weight is left without a slot.

    Args:
        hosts: what is put into the slots.
        permutations: offset and skip of each host.
        weights: of each host. Zero takes no turn, unless all are zero.
        size: the number of slots, a prime.

    Attributes:
        slots: the host of each slot; complete when `free` is 0.
        free: how many slots are free.
    """

    __slots__ = ("_at", "_hosts", "_skips", "_turns", "free", "slots")

    def __init__(
        self, hosts: Sequence[T], permutations: Sequence[tuple[int, int]], weights: Sequence[float], size: int
    ) -> None:
        self.slots: list[T] = [None] * size  # type: ignore[list-item]
        self.free = size
        self._hosts = hosts
        self._at = [offset for offset, _ in permutations]
        self._skips = [skip for _, skip in permutations]
        self._turns = _turns(weights)

    def fill(self, count: int) -> None:
        """Let hosts claim so many of the free slots."""
        slots, hosts, positions, skips = self.slots, self._hosts, self._at, self._skips
        size = len(slots)
        for turn in islice(self._turns, count):
            at, skip = positions[turn], skips[turn]
            while slots[at] is not None:
                at += skip
                if at >= size:
                    at -= size
            slots[at] = hosts[turn]
            positions[turn] = at
        self.free -= count


def _turns(weights: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, by index."""
    heaviest = max(weights)
    if heaviest == 0 or weights.count(heaviest) == len(weights):
        return cycle(range(len(weights)))
    return _weighted_turns(weights)


def _weighted_turns(weights: Sequence[float]) -> Iterator[int]:
    heaviest = max(weights)
    # Turns a unit of time; the least is above zero, since parts of the heaviest may round to it.
    pace = [max(weight / heaviest, 5e-324) for weight in weights]
    due = [(0.0, index, 1.5) for index, weight in enumerate(weights) if weight]
    while True:
        _, index, turn = due[0]
        yield index
        heapreplace(due, (turn / pace[index], index, turn + 1.0))
