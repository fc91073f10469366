"""`Balancer`: the nodes of one service; update, pick, observe. It never awaits and needs no socket."""

from __future__ import annotations

import logging
import math
import random
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from xxhash import xxh64_intdigest

from discovery import Endpoint
from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.ejection import Ejection
from lbclient.node import NOWHERE, Node
from lbclient.outcome import ANSWERS, FAILURES, Outcome
from lbclient.policies import Policy
from lbclient.route import Route
from lbclient.routing import Announcer, Pace, Portion, Routing, SlowStart, WarmUp

__all__ = ["Balancer"]

log = logging.getLogger(__name__)

# How often another node is looked for instead of one that is being warmed up. With half of the nodes new, one in
# a thousand requests is refused this often.
_DRAWS = 8
# Portions that are gone whose policies are remembered; a registry may come up with ever new zones.
_POLICIES_KEPT = 100
# Hashing policies hash the same key with 0: a route must not get one stretch of their rings only.
_SEED = 1


class Balancer:
    """Keeps one `Node` per address and chooses among the usable ones: see `Routing.split`.

    A balancer with nodes always has a usable one.

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
        self.routes: tuple[Route, ...] = ()
        self.policy = new_policy()
        # It goes to the first portion.
        self._unused: Policy | None = self.policy
        self._new_policy = new_policy
        self._has_holders = hasattr(self.policy, "holder")
        # The policy of each portion by its name; they outlive the portions, which come and go with the health.
        self._policies: dict[str, Policy] = {}
        # Upper bounds of the routes' shares; None where all requests take the first one.
        self._bounds: list[float] | None = None
        self._ejection = ejection or Ejection()
        self._limit = limit_per_node or math.inf
        self._routing = routing or Routing()
        rng = rng or random.Random()
        self._random = rng.random
        self._warm_up = None if slow_start is None else WarmUp(slow_start, rng)
        self._announcer = Announcer(name)
        # The first moment at which an ejected node is due for a probe: one comparison per pick.
        self._probe_at = math.inf
        self._ejected: list[Node] = []
        # While several changes come together: whether the routes have to be made anew after them.
        self._stale: bool | None = None

    @property
    def usable(self) -> tuple[Node, ...]:
        """All nodes that are chosen among."""
        return tuple(node for route in self.routes for node in route.nodes)

    def update(self, endpoints: Iterable[Endpoint], now: float) -> list[Node]:
        """Take the new set as it is; returns the nodes that left. What was learned about the others stays."""
        old, self.nodes = self.nodes, {}
        # What is there from the beginning was not started just now.
        warm_up = self._warm_up if old else None
        reweighted = False
        for endpoint in self._routing.narrow(tuple(endpoints)):
            node = old.pop(endpoint.address, None)
            if node is None:
                node = Node(endpoint)
                if warm_up is not None:
                    warm_up.begin(node, now)
            elif node.endpoint is not endpoint and node.endpoint != endpoint:
                reweighted = reweighted or node.weight != endpoint.weight
                node.describe_as(endpoint)
            self.nodes[node.address] = node
        for node in old.values():
            node.left = True
            node.group = NOWHERE
            if self._warm_up is not None:
                self._warm_up.forget(node)
        self._regroup(reweighted=reweighted)
        return list(old.values())

    def pick(self, call: Call) -> Node | None:
        """A node, and one that was not tried if there is such; None if all of those are at their limit.

        There must be a node.
        """
        if self._has_holders and call.session is not None and (node := self._holder(call)) is not None:
            return node
        if call.now >= self._probe_at and (node := self._due(call)) is not None:
            return node
        route = self.routes[0] if self._bounds is None else self._choose(call)
        if not call.tried and (self._warm_up is None or not self._warm_up.is_on(call.now)):
            call.excluded = ()
            call.in_flight = route.in_flight
            node = route.policy.pick(route.nodes, call)
            if node.in_flight < self._limit:
                return node
        return self._pick_another(route, call)

    def _holder(self, call: Call) -> Node | None:
        """The node that a policy keeps for the session, in whatever route it is now."""
        # Neither shares, nor probes, nor a slow start may break up a session that goes well.
        for route in self.routes:
            policy: Any = route.policy
            node: Node | None = policy.holder(route.nodes, call.session)
            if node is not None and node not in call.tried and node.in_flight < self._limit:
                return node
        return None

    def _choose(self, call: Call) -> Route:
        assert self._bounds is not None  # noqa: S101 - for the type checker
        # A key goes to the same route each time, and at all clients that see the same shares.
        if call.key is None:
            point = self._random()
        else:
            point = xxh64_intdigest(call.key.encode("utf-8", "surrogatepass"), _SEED) / 2**64
        return self.routes[min(bisect(self._bounds, point), len(self.routes) - 1)]

    def _pick_another(self, preferred: Route, call: Call) -> Node | None:
        """The way of the few: requests that were tried before, full nodes, and new ones that are warmed up."""
        full = False
        for route in (preferred, *(route for route in self.routes if route is not preferred)):
            tried = tuple(node for node in call.tried if node.group is route)
            if len(tried) < len(route.nodes):
                if (node := self._pick_from(route, call, tried)) is not None:
                    return node
                full = True
        if full:
            return None
        # All that are usable were tried. One that is ejected may work again; else one for the second time.
        rest = [node for node in self.nodes.values() if _is_open(node) and node not in call.tried] or self.usable
        rest = [node for node in rest if node.in_flight < self._limit]
        return min(rest, key=lambda node: (node.in_flight, self._random())) if rest else None

    def _pick_from(self, route: Route, call: Call, tried: tuple[Node, ...]) -> Node | None:
        """A node of the route that was not tried and is not full."""
        excluded: Collection[Node] = tried
        spared: list[Node] = []
        full = False
        call.in_flight = route.in_flight
        pace = self._pace(route, call.now)
        while len(excluded) < len(route.nodes):
            call.excluded = excluded
            node = route.policy.pick(route.nodes, call)
            if node.in_flight >= self._limit:
                # One full node is seldom the only one; the second time all are looked for.
                others = (n for n in route.nodes if full and n.in_flight >= self._limit)
                excluded = {*excluded, node, *others}
                full = True
            elif pace is None or len(spared) >= _DRAWS or self._admits(node, pace, call.now):
                return node
            else:
                spared.append(node)
                excluded = {*excluded, node}
        # Better one that is new than none.
        return spared[0] if spared else None

    def _pace(self, route: Route, now: float) -> Pace | None:
        """How fast new nodes of the route earn requests, with this one counted; None if there is no new one."""
        if self._warm_up is None or not self._warm_up.is_on(now):
            return None
        if route.pace is None:
            route.pace = self._warm_up.pace(route.nodes)
        route.pace.picks += 1
        return route.pace

    def _admits(self, node: Node, pace: Pace, now: float) -> bool:
        return self._warm_up is None or self._warm_up.admits(node, pace, now)

    def exhausted(self, tried: tuple[Node, ...]) -> bool:
        """Whether every node was tried that may be."""
        return all(node in tried for node in self.nodes.values() if _is_open(node))

    def has_fresh(self, tried: tuple[Node, ...]) -> bool:
        """Whether there is a usable node that was not tried and to which the last connection did not fail."""
        return any(
            not node.connect_failures and node not in tried for route in self.routes for node in route.nodes
        )

    def observe(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Learn from an attempt that came to its end, or to the head of its response."""
        node = attempt.node
        # Connecting is not what the server is slow at: with TLS a first request would make it look so for long.
        waited = attempt.elapsed if attempt.sent_at is None else now - attempt.sent_at
        if outcome not in (Outcome.OURS, Outcome.LEFT):
            failed = outcome in FAILURES
            node.failures += failed
            if outcome is not Outcome.CONNECT:
                # Those are the ejection's business: after three in a row it knows, if they are not kept from it.
                node.learn(waited, now, failed=failed)
        elif outcome is Outcome.OURS:
            node.learn_at_least(waited, now)
        failing = self._ejection.fails(node, outcome)
        if node.left:
            return
        if node.ejected_at is None:
            if failing:
                self._eject(node, attempt, now)
        elif attempt.started_at >= node.ejected_at:
            self._observe_probe(node, attempt, outcome, now)

    def set_health(self, node: Node, *, healthy: bool, now: float) -> None:  # noqa: ARG002 - for what comes back
        """Take a node out, or back in, that active health checks found ill or well."""
        if node.healthy is not healthy and not node.left:
            node.healthy = healthy
            self._regroup()

    def set_leaving(self, node: Node, *, leaving: bool, now: float) -> None:  # noqa: ARG002 - the same
        """Take a node out that said that it is about to stop, or back in since it says so no longer."""
        if node.leaving is not leaving and not node.left:
            node.leaving = leaving
            self._regroup()

    def health_confirmed(self, node: Node, now: float) -> None:
        """Let a node back in that was ejected since connections failed: active health checks find it well."""
        if node.ejected_at is not None and not node.left:
            self._ejection.restore(node, now)
            if self._warm_up is not None:
                self._warm_up.begin(node, now)
            self._regroup()

    @contextmanager
    def together(self, now: float) -> Iterator[None]:  # noqa: ARG002 - as in the others
        """Several changes at once: the routes are made anew after all of them, once."""
        self._stale = False
        try:
            yield
        finally:
            stale, self._stale = self._stale, None
            if stale:
                self._regroup()

    def _observe_probe(self, node: Node, attempt: Attempt, outcome: Outcome, now: float) -> None:
        # Attempts that began before the ejection say nothing new. Later ones are probes, or went there
        # because nothing else was left; they decide equally.
        if outcome in ANSWERS:
            self._ejection.restore(node, now)
            if self._warm_up is not None:
                self._warm_up.begin(node, now)
            self._regroup()
        elif node.probing and outcome in (Outcome.OURS, Outcome.LEFT):
            node.probing = False
            self._regroup()
        elif node.probing:
            self._eject(node, attempt, now)

    def _eject(self, node: Node, attempt: Attempt, now: float) -> None:
        others = any(not n.out and n.weight > 0 for n in self.nodes.values() if n is not node)
        if not others and node.ejected_at is None:
            return
        log.warning("%s: %s fails: %s", self.name, node.address, attempt.error)
        self._ejection.eject(node, now)
        if self._warm_up is not None:
            self._warm_up.forget(node)
        self._regroup()

    def _due(self, call: Call) -> Node | None:
        for node in self._ejected:
            due = _awaits_probe(node) and call.now >= (node.ejected_until or 0)
            if due and node not in call.tried and node.in_flight < self._limit:
                node.probing = True
                self._regroup()
                return node
        return None

    def _regroup(self, *, reweighted: bool = False) -> None:
        """Make the routes anew after nodes came, went, were ejected or let back in."""
        if self._stale is not None:
            self._stale = True
            return
        nodes = self.nodes.values()
        portions = self._routing.split(nodes)
        known = {} if reweighted else {route.name: route for route in self.routes}
        for node in nodes:
            node.group = NOWHERE
        self.routes = tuple(self._route(portion, known.get(portion.name)) for portion in portions)
        shares = [portion.share for portion in portions]
        self._announcer.note(portions)
        self._bounds = None if len(shares) <= 1 or shares[0] >= 1 else list(accumulate(shares))
        self._ejected = [node for node in nodes if node.ejected_until is not None]
        due = (node.ejected_until or 0 for node in self._ejected if _awaits_probe(node))
        self._probe_at = min(due, default=math.inf)
        if len(self._policies) > len(portions) + _POLICIES_KEPT:
            self._policies = {route.name: route.policy for route in self.routes}

    def _route(self, portion: Portion, before: Route | None) -> Route:
        # The same tuple as before, if it has the same nodes: policies keep their tables then.
        same = before is not None and before.nodes == portion.nodes
        nodes = before.nodes if before is not None and same else portion.nodes
        policy = self._policies.get(portion.name)
        if policy is None:
            policy, self._unused = self._unused or self._new_policy(), None
            self._policies[portion.name] = policy
        return Route(portion, nodes, policy)

    def as_dict(self, now: float) -> dict[str, Any]:
        """The live state as plain data."""
        return {
            "policy": type(self.policy).__name__,
            "usable": sum(len(route.nodes) for route in self.routes),
            "portions": [route.as_dict() for route in self.routes],
            "nodes": [node.as_dict(now) for node in self.nodes.values()],
        }


def _awaits_probe(node: Node) -> bool:
    # Weight 0 means no new traffic, and a probe is a request like any other.
    return node.ejected_until is not None and not node.probing and node.weight > 0


def _is_open(node: Node) -> bool:
    # Weight 0 means no new traffic, and another attempt is that as well; unless there are no other nodes.
    return node.weight > 0 or node.group is not NOWHERE
