"""What the contract suite is made of: nodes, clients in virtual time, traffic, and bounds that chance keeps to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, cycle
from math import comb, log, sqrt
from typing import Any, ClassVar

from contract_rows import Row

from discovery import Endpoint
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.ejection import Ejection
from lbclient.node import Node
from lbclient.outcome import Outcome

__all__ = [
    "Caller",
    "Client",
    "Touched",
    "TouchedTuple",
    "Traffic",
    "busy",
    "crowd",
    "deviation",
    "endpoints",
    "nodes",
]

# How often a bound below is broken by chance: once in this many checks. Seeds are fixed, so a test that passed
# passes; this is for those who change a policy, and with it what its seed gives.
_ODDS = 1e9


def endpoints(weights: Sequence[float], first: int = 1) -> list[Endpoint]:
    """Endpoints of these weights, numbered from the first on."""
    return [Endpoint(host=f"s{number}", port=80, weight=weight) for number, weight in enumerate(weights, first)]


def nodes(*weights: float, first: int = 1, of: type[Node] = Node) -> tuple[Node, ...]:
    """Idle nodes of these weights."""
    return tuple(of(endpoint) for endpoint in endpoints(weights, first))


def busy(among: tuple[Node, ...], in_flight: Sequence[int]) -> int:
    """Give the nodes so many attempts under way, in turn; returns how many in all."""
    for node, attempts in zip(among, cycle(in_flight)):
        node.in_flight = attempts
    return sum(node.in_flight for node in among)


def deviation(picks: int, share: float, grain: float = 0.0) -> float:
    """How far the picks of a node may be from `picks * share`, for independent picks (Bernstein's inequality).

    P(|X - np| >= t) <= 2 exp(-t² / (2np(1-p) + 2t/3)), solved for t. The grain of a hashing policy's table adds to
    the variance; a table is made of many points, so that the bound for sums holds for it as well.
    """
    variance = picks * share * (1 - share) + (picks * share * grain) ** 2
    exponent = log(2 * _ODDS)
    return exponent / 3 + sqrt((exponent / 3) ** 2 + 2 * exponent * variance)


def crowd(balls: int, bins: int, share: float) -> int:
    """How many of the balls the fullest bin may hold if each falls into any one bin with at most this probability.

    The sum of the binomial's tail, over all bins (union bound).
    """
    tail = 0.0
    for most in range(balls, 0, -1):
        tail += comb(balls, most) * share**most * (1 - share) ** (balls - most)
        if tail * bins * _ODDS > 1:
            return most
    return 0


class Caller:
    """A policy of its own, and calls with a new key each time if it hashes them."""

    def __init__(self, row: Row, seed: int = 1) -> None:
        self.row = row
        self.policy = row.make(random.Random(seed))
        self.now = 1000.0
        self._keys = random.Random(f"keys {seed}")

    def call(self, excluded: Collection[Node] = (), in_flight: int = 0) -> Call:
        call = Call(f"user-{self._keys.getrandbits(40)}" if self.row.needs_key else None, self.now)
        call.excluded = excluded
        call.in_flight = in_flight
        return call

    def pick(self, among: tuple[Node, ...], excluded: Collection[Node] = (), in_flight: int = 0) -> Node:
        return self.policy.pick(among, self.call(excluded, in_flight))

    def picks(self, among: tuple[Node, ...], times: int) -> Counter[Node]:
        return Counter(self.pick(among) for _ in range(times))


class Client:
    """A balancer of its own, a clock that only the test moves, and attempts that end when the test says so."""

    def __init__(self, row: Row, found: list[Endpoint], seed: int = 1, **options: Any) -> None:
        self.row = row
        self.now = 1000.0
        self._rng = random.Random(f"client {seed}")
        # A key for each request; `key` stands for them all where a client is one user.
        self.key: str | None = None
        options.setdefault("ejection", Ejection(jitter=0))
        self.balancer = Balancer("users", self._policy, rng=random.Random(self._rng.getrandbits(64)), **options)
        self.update(found)

    def _policy(self) -> Any:
        return self.row.make(random.Random(self._rng.getrandbits(64)))

    def update(self, found: list[Endpoint]) -> list[Node]:
        return self.balancer.update(found, self.now)

    def node(self, number: int) -> Node:
        return self.balancer.nodes[f"s{number}:80"]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self.balancer.nodes.values())

    def call(self, tried: tuple[Node, ...] = ()) -> Call:
        key = self.key or (f"user-{self._rng.getrandbits(40)}" if self.row.needs_key else None)
        call = Call(key, self.now)
        call.tried = tried
        return call

    def pick(self, *tried: Node) -> Node | None:
        return self.balancer.pick(self.call(tried))

    def picked(self) -> Node:
        """The node for a request that finds one."""
        node = self.pick()
        assert node is not None
        return node

    def picked_for(self, key: str) -> Node:
        """The node for a request with this key, and for those that follow."""
        self.key = key
        return self.picked()

    def picks(self, times: int, *tried: Node) -> Counter[Node | None]:
        return Counter(self.pick(*tried) for _ in range(times))

    def begin(self, node: Node) -> Attempt:
        return Attempt(node, "test", lambda: None, self.now)

    def end(self, attempt: Attempt, outcome: Outcome, elapsed: float | None = None) -> None:
        attempt.land()
        attempt.elapsed = self.now - attempt.started_at if elapsed is None else elapsed
        self.balancer.observe(attempt, outcome, self.now)

    def see(self, node: Node, *outcomes: Outcome, elapsed: float = 0.01) -> None:
        """Attempts at the node one after the other, all at this moment."""
        for outcome in outcomes:
            self.end(self.begin(node), outcome, elapsed)

    def eject(self, node: Node) -> None:
        """Take the node out as three failed connections in a row do."""
        self.see(node, *[Outcome.CONNECT] * 3)


class Traffic:
    """Requests that arrive at random at a steady rate, each under way for as long as its node takes.

    Args:
        client: whose requests they are.
        rate: requests a second.
        serve: what a request at a node comes to, and after how many seconds.
    """

    def __init__(self, client: Client, rate: float, serve: Callable[[Node], tuple[Outcome, float]]) -> None:
        self.client = client
        self.rate = rate
        self.serve = serve
        self._rng = random.Random("traffic")
        self._numbers = count()
        self._under_way: list[tuple[float, int, Attempt, Outcome]] = []

    def run(self, seconds: float) -> Iterator[Attempt]:
        """Each attempt as it begins."""
        client = self.client
        until = client.now + seconds
        while (at := client.now + self._rng.expovariate(self.rate)) < until:
            self._end(at)
            client.now = at
            node = client.picked()
            attempt = client.begin(node)
            outcome, takes = self.serve(node)
            heappush(self._under_way, (at + takes, next(self._numbers), attempt, outcome))
            yield attempt
        self._end(until)
        client.now = until

    def requests(self, seconds: float) -> Counter[Node]:
        """How many requests each node got."""
        return Counter(attempt.node for attempt in self.run(seconds))

    def _end(self, until: float) -> None:
        while self._under_way and self._under_way[0][0] <= until:
            self.client.now, _, attempt, outcome = heappop(self._under_way)
            self.client.end(attempt, outcome)


class TouchedTuple(tuple[Node, ...]):
    """A tuple of nodes that counts the nodes taken out of it, in `Touched.times`."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        Touched.times += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[Node]:
        Touched.times += len(self)
        return super().__iter__()


class Touched(Node):
    """A node that counts how often anybody looks at any one of them."""

    __slots__ = ()
    times: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        Touched.times += 1
        return super().__getattribute__(name)
