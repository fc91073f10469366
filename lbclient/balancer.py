"""`Balancer`: the nodes of one service; update, pick, observe. It never awaits and needs no socket."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from discovery import Endpoint
from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.ejection import Ejection, OutlierDetector
from lbclient.node import NOWHERE, Node
from lbclient.outcome import FAILURES, Outcome
from lbclient.policies import Policy
from lbclient.route import Route
from lbclient.routes import Routes
from lbclient.routing import Routing, SlowStart, WarmUp

__all__ = ["Balancer"]

# Looked up for each request.
_SUCCESS = Outcome.SUCCESS
# Seconds for which a node may be due for its probe until even a request whose session goes well is that.
_OVERDUE = 10.0
# Seconds after which to look again for a node that is due already: whoever waits has tried it, or it is full.
_SOONEST = 0.05
# To make the routes anew costs up to 1 µs for each node. Where nodes are taken out or come back by the thousand it
# is done after so many seconds for each node, else it would be all that is done.
_PAUSE_PER_NODE = 1e-5
_MANY = 1000


class Balancer:
    """Keeps one `Node` per address and chooses among the usable ones: see `Routing.split` and `Ejection`.

    A balancer with nodes always has a usable one, unless `Routing.panic` says otherwise. With 1000 nodes or more
    those that are taken out or let in shortly after others are so 10 µs for each node later, all together.

    Args:
        name: the service's name, for log lines.
        new_policy: makes the policy for a portion of the nodes.
        ejection: takes failing nodes out.
        limit_per_node: attempts under way at one node at the same time; 0 for no limit.
        routing: which nodes are chosen among.
        slow_start: how new nodes get their share; None for the whole share at once.
        rng: the source of randomness for what is not the policy's to choose.
    """

    def __init__(
        self,
        name: str,
        new_policy: Callable[[], Policy],
        *,
        ejection: Ejection | None = None,
        limit_per_node: int = 0,
        routing: Routing | None = None,
        slow_start: SlowStart | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        rng = rng or random.Random()
        self._random = rng.random
        self._routing = routing or Routing()
        self._routes = Routes(name, self._routing, new_policy, rng.random)
        self.policy = self._routes.policy
        self._has_holders = hasattr(self.policy, "holder")
        ejection = ejection or Ejection()
        self._detector = OutlierDetector(name, ejection, self._routing, rng)
        self._probes = self._detector.probes
        # The latency of a node that nobody can connect to fades, so that it would be preferred to all others.
        self._keeps_unreachable = not (ejection.enforce and ejection.connect_failures)
        self._limit = limit_per_node or math.inf
        self._warm_up = WarmUp(rng)
        self._slow_start = slow_start
        longer = [each for each in (ejection.slow_start, slow_start) if each is not None]
        self._return = max(longer, key=lambda each: each.window, default=None)
        # Nodes that were taken out or let in since the routes were made, and when those may be made anew.
        self._moved: list[Node] = []
        self._rests_until = -math.inf
        self._together = False

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is chosen among; none without nodes, and in some kinds of panic."""
        return self._routes.all

    @property
    def fails_fast(self) -> bool:
        """Whether a request for which there is no node is to fail at once."""
        return self._routing.panic == "fail" and not self.routes

    def due_in(self, now: float) -> float | None:
        """Seconds until a node may be due, for requests that wait for one; None if none will be."""
        if self._moved:
            return _SOONEST
        if math.isinf(self._probes.next_at):
            return None
        return max(_SOONEST, self._probes.next_at - now)

    @property
    def usable(self) -> tuple[Node, ...]:
        """All nodes that are chosen among."""
        return tuple(node for route in self.routes for node in route.nodes)

    def update(self, endpoints: Iterable[Endpoint], now: float) -> list[Node]:
        """Take the new set as it is; returns the nodes that left. What was learned about the others stays."""
        old, self.nodes = self.nodes, {}
        # What is there from the beginning was not started just now.
        slow_start = self._slow_start if old else None
        reweighted = False
        for endpoint in self._routing.narrow(tuple(endpoints)):
            node = old.pop(endpoint.address, None)
            if node is None:
                node = Node(endpoint)
                if slow_start is not None:
                    self._warm_up.begin(node, now, slow_start)
            elif node.endpoint is not endpoint and node.endpoint != endpoint:
                reweighted = reweighted or node.weight != endpoint.weight
                node.describe_as(endpoint)
            self.nodes[node.address] = node
        for node in old.values():
            node.left = True
            node.group = NOWHERE
            self._warm_up.forget(node)
        self._regroup(now, reweighted=reweighted)
        return list(old.values())

    def pick(self, call: Call) -> Node | None:
        """A node, and one that was not tried if there is such.

        None if all of those are at their limit, or in a panic that is to `fail` or `wait`. There must be a node.
        """
        if self._moved and call.now >= self._rests_until:
            self._regroup(call.now)
        held = self._holder(call) if self._has_holders and call.session is not None else None
        if held is not None and call.now < self._probes.next_at + _OVERDUE:
            return held
        if call.now >= self._probes.next_at and (not call.tried or self._is_hopeless()):
            node = self._probes.take(call, self._limit)
            if node is not None:
                return node
        if held is not None:
            return held
        route = self._routes.only or self._routes.choose(call)
        if route is None:
            return None
        if not call.tried and call.now >= self._warm_up.until:
            call.excluded = ()
            call.in_flight = route.in_flight
            node = route.policy.pick(route.nodes, call)
            if node.in_flight < self._limit:
                return node
        return self._pick_another(route, call)

    def _is_hopeless(self) -> bool:
        """Whether the nodes that are due are no worse than all others.

        If not, a request probes with its first attempt only. Else one could spend all of them on nodes that fail,
        and where requests are rare, so that all of those are due each time, none would come through.
        """
        return self._detector.outage and all(route.panic for route in self.routes)

    def _holder(self, call: Call) -> Node | None:
        """The node that a policy keeps for the session, in whatever route it is now."""
        # Neither shares, nor probes, nor a slow start may break up a session that goes well.
        for route in self.routes:
            policy: Any = route.policy
            node: Node | None = policy.holder(route.nodes, call.session)
            if node is not None and node not in call.tried and node.in_flight < self._limit:
                return node
        return None

    def _pick_another(self, preferred: Route, call: Call) -> Node | None:
        """The way of the few: requests that were tried before, full nodes, and new ones that are warmed up."""
        full = False
        for route in (preferred, *(route for route in self.routes if route is not preferred)):
            tried = tuple(node for node in call.tried if node.group is route)
            if len(tried) < len(route.nodes):
                if (node := route.pick_another(call, tried, self._limit, self._warm_up)) is not None:
                    return node
                full = True
        if full:
            return None
        # All that are usable were tried. One that is ejected may work again; else one for the second time.
        if call.now >= self._probes.next_at and (due := self._probes.take(call, self._limit)) is not None:
            return due
        rest = [node for node in self.nodes.values() if _is_open(node) and node not in call.tried] or self.usable
        rest = [node for node in rest if node.in_flight < self._limit]
        return min(rest, key=lambda node: (node.in_flight, self._random())) if rest else None

    def exhausted(self, tried: tuple[Node, ...]) -> bool:
        """Whether every node was tried that may be."""
        return all(node in tried for node in self.nodes.values() if _is_open(node))

    def has_fresh(self, tried: tuple[Node, ...]) -> bool:
        """Whether there is a usable node that was not tried and to which the last connection did not fail."""
        return any(
            not node.connect_failures and node not in tried for route in self.routes for node in route.nodes
        )

    def observe(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Learn from an attempt that came to its end, or to the head of its response.

        May be called a second time when the body breaks off after the head of an answer.
        """
        node, before = attempt.node, attempt.observed
        # Connecting is not what the server is slow at: with TLS a first request would make it look so for long.
        waited = attempt.elapsed if attempt.sent_at is None else now - attempt.sent_at
        if before is not None:
            # What the head showed of the latency is known already.
            if before is Outcome.SUCCESS and outcome in FAILURES:
                self._observe_body(attempt, outcome, waited, now)
            return
        attempt.observed = outcome
        if outcome is _SUCCESS:
            node.unanswered = 0
            node.learn(waited, now, failed=False)
        elif outcome is Outcome.OURS:
            node.learn_at_least(waited, now)
        else:
            node.unanswered = 0
            if outcome in FAILURES:
                node.failures += 1
                if outcome is not Outcome.CONNECT or self._keeps_unreachable:
                    # Those are the ejection's business, as long as it acts on them: after three in a row it knows.
                    node.learn(waited, now, failed=True)
        if not node.left and (changed := self._detector.observe(attempt, outcome, now)):
            self._move(changed, now)

    def _observe_body(self, attempt: Attempt, outcome: Outcome, waited: float, now: float) -> None:
        node = attempt.node
        attempt.observed = outcome
        node.failures += 1
        node.learn(waited, now, failed=True)
        if not node.left and (changed := self._detector.observe_body(attempt, now)):
            self._move(changed, now)

    def set_health(self, node: Node, *, healthy: bool, now: float) -> None:
        """Take a node out, or back in, that active health checks found ill or well."""
        if node.healthy is not healthy and not node.left:
            node.mark(healthy=healthy)
            self._move((node,), now)

    def set_leaving(self, node: Node, *, leaving: bool, now: float) -> None:
        """Take a node out that said that it is about to stop, or back in since it says so no longer."""
        if node.leaving is not leaving and not node.left:
            node.mark(leaving=leaving)
            self._move((node,), now)

    def health_confirmed(self, node: Node, now: float) -> None:
        """An active health check succeeded as often as it must: the node can be reached.

        That ends an ejection for failed connections. One for failing answers it does not: the check may lie.
        """
        if node.left:
            return
        node.connect_failures = 0
        if node.unreachable:
            self._move(self._detector.restore(node, None, now), now)

    @contextmanager
    def together(self, now: float) -> Iterator[None]:
        """Several changes of health at once: the routes are made anew after all of them, once."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            if self._moved:
                self._regroup(now)

    def _move(self, nodes: Collection[Node], now: float) -> None:
        """Nodes were taken out, or let back in."""
        self._moved += nodes
        if not self._together and now >= self._rests_until:
            self._regroup(now)

    def _regroup(self, now: float, *, reweighted: bool = False) -> None:
        moved, self._moved = self._moved, []
        for node in moved:
            if node.out or node.left:
                self._warm_up.forget(node)
            else:
                # What was kept out before its first request is just new.
                self._warm_up.begin(node, now, self._return if node.requests else self._slow_start)
        self._routes.regroup(self.nodes.values(), now, reweighted=reweighted)
        self._detector.settle(self.nodes, now, halted=not self.routes)
        many = len(self.nodes) >= _MANY
        self._rests_until = now + len(self.nodes) * _PAUSE_PER_NODE if many else -math.inf

    def as_dict(self, now: float) -> dict[str, Any]:
        """The live state as plain data."""
        if self._moved:
            self._regroup(now)
        return {
            "policy": type(self.policy).__name__,
            "usable": sum(len(route.nodes) for route in self.routes),
            "portions": [route.as_dict() for route in self.routes],
            "counts": self._detector.as_dict(),
            "nodes": [self._node_as_dict(node, now) for node in self.nodes.values()],
        }

    def _node_as_dict(self, node: Node, now: float) -> dict[str, Any]:
        """As the node says, and why it gets no requests or few: None for the portion of those not chosen among."""
        portion = node.group.name if isinstance(node.group, Route) else None
        return {**node.as_dict(now), "portion": portion, "slow_start": self._warm_up.factor(node, now)}


def _is_open(node: Node) -> bool:
    # Weight 0 means no new traffic, and another attempt is that as well; unless there are no other nodes.
    return node.weight > 0 or node.group is not NOWHERE
