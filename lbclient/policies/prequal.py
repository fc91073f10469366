"""`Prequal`: a few servers are asked how busy they are for each request, and the best answers are used."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from lbclient.call import Call
from lbclient.load_report import HEADER, LoadReport
from lbclient.node import Node
from lbclient.options import above_zero, at_least, finite, of_type, url_path, whole, within
from lbclient.policies.drawing import Draw
from lbclient.policies.loads import least_request, peak_ewma
from lbclient.policies.probe_pool import Probe, ProbePool
from lbclient.policies.sampling import PowerOfTwo

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["Prequal"]

log = logging.getLogger(__name__)

# By how many answers the pool shall grow with each request while it is not full (the paper's delta).
_GROWTH = 1.0
# Of one answer. Not in the paper: see `Prequal`.
_MOST_USES = 2.0
# Probes in a row that bring nothing, after which a node is taken for one that offers no reports.
_MISSES = 3
# Seconds for which such a node is not asked: at first, doubled with each further miss, and at most.
_PAUSE = 10.0
_LONGEST_PAUSE = 300.0
# Draws for each probe that is wanted: with very unequal weights the same node is drawn again and again.
_DRAWS = 8
# How fast the typical latency follows the answers.
_NEWEST = 0.1
# An answer to a request with this status or above says nothing good of the server, whatever its header says.
_SERVER_ERROR = 500


class Prequal:
    """The best of those that said lately how busy they are.

    For each request a few nodes, drawn at random, are asked for their requests in flight and their latency. Nobody
    waits for the answers: they go to a small pool, and requests are sent to the best node in it. Answers with more
    requests in flight than most seen lately are *hot*: among those that are not the one with the lowest latency
    is chosen, and if all are hot the one with the least in flight (Wydrowski et al., "Load is not what you should
    balance: introducing Prequal", NSDI 2024). Other than in the paper:

    - With fewer than two answers in the pool, as after a pause or in a burst of requests, the choice is
      `PowerOfTwo(load=peak_ewma)`'s by what the client itself saw, not a random one. It costs little more, and is
      far better where servers offer no reports.
    - Nodes that offer none get their share by weight, unless they have more under way than the best of the pool.
    - An answer is used twice at most, also where the paper's formula gives more (few nodes, few probes) or no
      number at all: in simulations more uses sent bursts to one node, with a higher median and tail.
    - A node that fails comes after all others for a while, as with all loads: see `policies.loads.avoided`.

    A server offers reports with `LoadReporter`, or with any other answer to `GET path` that has a header such as
    `endpoint-load-metrics: TEXT named_metrics.rif=3,named_metrics.latency=0.0123` (ORCA); the header is understood
    in answers to ordinary requests as well. Without requests there are no probes.

    Load counts by weight, and nodes are asked by weight. Each probe is a small HTTP request: three for each
    request double the CPU that it costs the client. Where servers report with their answers, too (the default of
    `LoadReporter`), `probes=0.3, remove=0.1` does as well in simulations.

    Args:
        probes: nodes asked for each request; with 0.5 one for every second request on average (Prequal:
            3).
        pool: answers that are kept at most (Prequal: 16).
        max_age: seconds for which an answer is believed (Prequal: 1 s).
        q_rif: the quantile (0 to 1) of the requests in flight above which a node is hot. 0 looks at them only, 1
            only at the latency (Prequal: 2**-0.25).
        remove: answers removed for each request, the oldest and the worst in turn; at most 2 (Prequal: 1).
        path: where servers are asked.
        timeout: seconds that an answer may take.
        rng: the source of randomness.

    Attributes:
        probe: called with each node that is to be asked; it must not block. As long as it is None nothing is
            asked. Each call is followed by `learn` or `missed`, or by neither if the node could not be asked.
        unreadable: reports that made no sense.

    Raises:
        ValueError, TypeError: for an option with a wrong value.
    """

    def __init__(
        self,
        *,
        probes: float = 3,
        pool: int = 16,
        max_age: float = 1.0,
        q_rif: float = 2**-0.25,
        remove: float = 1,
        path: str = "/-/load",
        timeout: float = 1.0,
        rng: random.Random | None = None,
    ) -> None:
        at_least("probes", probes, 0)
        finite("probes", probes)
        whole("pool", pool, 2)
        above_zero("max_age", max_age)
        within("q_rif", q_rif, 0, 1)
        within("remove", remove, 0, 2)
        url_path("path", path)
        above_zero("timeout", timeout)
        finite("timeout", timeout)
        of_type("rng", rng, random.Random)
        self.probe: Callable[[Node], None] | None = None
        self.path = path
        self.timeout = timeout
        self.unreadable = 0
        self._probes = probes
        self._size = pool
        self._max_age = max_age
        self._q_rif = q_rif
        self._remove = remove
        self._rng = rng or random.Random()
        self._random = self._rng.random
        self._pool = ProbePool(pool, max_age, q_rif)
        self._otherwise = PowerOfTwo(load=peak_ewma, rng=self._rng)
        self._nodes: tuple[Node, ...] = ()
        self._members: frozenset[Node] = frozenset()
        self._draw: Draw | None = None
        # The attempt that the last pick was for, and the answer that was used for it.
        self._attempt: tuple[Call, float, int] | None = None
        self._used: Probe | None = None
        self._uses = _MOST_USES
        self._oldest_next = True
        # Of servers that answer without saying it: neither the best nor the worst is to be believed of them.
        self._typical = 0.0
        self._misses: dict[Node, int] = {}
        # Nodes that offer no reports, and when they are asked again.
        self._mute: dict[Node, float] = {}
        # Nodes whose nonsense was logged.
        self._told: set[Node] = set()
        self._told_of_mute = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """One with the same options that knows no nodes yet, and whose probes nobody sends yet."""
        fresh = Prequal(
            probes=self._probes,
            pool=self._size,
            max_age=self._max_age,
            q_rif=self._q_rif,
            remove=self._remove,
            path=self.path,
            timeout=self.timeout,
            rng=copy.deepcopy(self._rng, memo),
        )
        # A subclass may have another constructor, and attributes of its own.
        twin = memo[id(self)] = object.__new__(type(self))
        own = {name: value for name, value in vars(self).items() if name not in vars(fresh)}
        vars(twin).update(vars(fresh), **copy.deepcopy(own, memo))
        return twin

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The best of the pool, and requests for new answers.

        If the node is full or being warmed up, the same attempt asks again at the same time: then the answer that
        was used before is given back, nobody is asked, and nothing is removed.
        """
        if nodes is not self._nodes:
            self._renew(nodes)
        if len(nodes) == 1:
            return nodes[0]
        now, pool, used = call.now, self._pool, self._used
        attempt = (call, now, len(call.tried))
        again = attempt == self._attempt
        self._attempt = attempt
        self._used = None
        if again and used is not None:
            pool.take_back(used)
        pool.expire(now)
        extremes = pool.extremes(call.excluded, now)
        if extremes is None:
            node = self._otherwise.pick(nodes, call)
            pool.raise_load(node)
        elif self._mute and (mute := self._mute_instead_of(extremes[0].node, call)) is not None:
            node = mute
        else:
            best, worst = extremes
            node = best.node
            if not again:
                self._shrink(worst)
            pool.use(best)
            self._used = best
        if self.probe is not None and not again:
            self._ask(self.probe, now)
        return node

    def learn(self, node: Node, rif: float, latency: float | None, now: float) -> None:
        """Take in a server's answer: its requests in flight, and the seconds that one takes; None if unknown."""
        if self._nodes and node not in self._members:
            return
        self._misses.pop(node, None)
        self._mute.pop(node, None)
        if latency is None:
            latency = self._typical
        else:
            self._typical += (latency - self._typical) * (_NEWEST if self._typical else 1.0)
        uses = int(self._uses + self._random())
        self._pool.add(Probe(node, rif / (node.weight or 1e-9), latency, now, uses))

    def read(self, node: Node, header: str, now: float) -> bool:
        """Learn from the text of a report; False if there is no load in it. What makes no sense is ignored."""
        try:
            report = LoadReport.parse(header)
        except ValueError as error:
            self.unreadable += 1
            if node not in self._told:
                self._told.add(node)
                log.warning("%s: load report ignored: %s", node.address, error)
            return False
        if report is not None:
            self.learn(node, report.rif, report.latency, now)
        return report is not None

    def answered(self, node: Node, response: ClientResponse, call: Call) -> None:
        """Learn from the report in an answer, if there is one."""
        header = response.headers.get(HEADER)
        if header is not None and response.status < _SERVER_ERROR:
            self.read(node, header, call.now)

    def missed(self, node: Node, now: float) -> None:
        """A probe brought no report. After a few such the node is left in peace for a while."""
        if self._nodes and node not in self._members:
            return
        misses = self._misses[node] = self._misses.get(node, 0) + 1
        if misses >= _MISSES:
            if not self._told_of_mute:
                self._told_of_mute = True
                log.info("%s: no load report at %s; such nodes are asked less and less", node.address, self.path)
            self._mute[node] = now + min(_LONGEST_PAUSE, _PAUSE * 2 ** min(misses - _MISSES, 32))

    def _renew(self, nodes: tuple[Node, ...]) -> None:
        self._nodes = nodes
        self._members = members = frozenset(nodes)
        self._draw = Draw(nodes, self._rng)
        self._pool.keep(members)
        self._used = None
        self._misses = {node: misses for node, misses in self._misses.items() if node in members}
        self._mute = {node: until for node, until in self._mute.items() if node in members}
        self._told &= members
        # The paper's equation 1: only answers of nodes that are not in the pool yet make it larger.
        surplus = (1.0 - self._size / len(nodes)) * self._probes - self._remove
        self._uses = min(_MOST_USES, max(1.0, (1.0 + _GROWTH) / surplus)) if surplus > 0 else _MOST_USES

    def _mute_instead_of(self, best: Node, call: Call) -> Node | None:
        assert self._draw is not None  # noqa: S101 - for the type checker
        node = self._draw.one()
        if node not in self._mute or node in call.excluded:
            return None
        return node if least_request(node, call.now) <= least_request(best, call.now) else None

    def _shrink(self, worst: Probe) -> None:
        for _ in range(int(self._remove + self._random())):
            if self._oldest_next:
                self._pool.remove_oldest()
            else:
                self._pool.remove(worst)
            self._oldest_next = not self._oldest_next

    def _ask(self, probe: Callable[[Node], None], now: float) -> None:
        count = int(self._probes + self._random())
        asked = self._drawn(count) if count < len(self._nodes) else self._all()
        if self._mute:
            asked = [node for node in asked if self._mute.get(node, now) <= now]
        for node in asked:
            probe(node)

    def _all(self) -> Sequence[Node]:
        # Of equal answers the first one is chosen: that must not be the same node's at all clients.
        start = int(self._random() * len(self._nodes))
        return self._nodes[start:] + self._nodes[:start]

    def _drawn(self, count: int) -> Sequence[Node]:
        """Different nodes by weight."""
        assert self._draw is not None  # noqa: S101 - for the type checker
        nodes: list[Node] = []
        draw = self._draw.one
        for _ in range(count * _DRAWS):
            if len(nodes) == count:
                break
            if (node := draw()) not in nodes:
                nodes.append(node)
        return nodes
