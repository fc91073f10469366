"""`Routes`: the nodes of a service in portions, and which of those a request takes."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection
from itertools import accumulate

from lbclient.call import Call
from lbclient.node import NOWHERE, Node
from lbclient.policies import Policy, hashed
from lbclient.route import Route
from lbclient.routing import Announcer, Portion, Routing

__all__ = ["Routes"]

# Portions that are gone whose policies are remembered; a registry may come up with ever new zones.
_POLICIES_KEPT = 100
# Hashing policies hash the same key with 0: a route must not get one stretch of their rings only.
_SEED = 1


class Routes:
    """The portions that `Routing` makes, each with a policy of its own that outlives it.

    Args:
        name: the service's name, for log lines.
        routing: makes the portions.
        new_policy: makes a policy for one.
        draw: a random number from 0 to below 1.

    Attributes:
        all: the preferred ones first.
        policy: that of the first portion there was.
        only: the route that all requests take; None if they are shared among several, or there is none.
    """

    def __init__(
        self, name: str, routing: Routing, new_policy: Callable[[], Policy], draw: Callable[[], float]
    ) -> None:
        self.policy = new_policy()
        self.only: Route | None = None
        self.all: tuple[Route, ...] = ()
        # Upper bounds of the routes' shares.
        self._bounds: list[float] = []
        self._routing = routing
        self._new_policy = new_policy
        self._draw = draw
        self._announcer = Announcer(name, routing.panic)
        # It goes to the first portion.
        self._unused: Policy | None = self.policy
        # The policy of each portion by its name; they outlive the portions, which come and go with the health.
        self._policies: dict[str, Policy] = {}

    def choose(self, call: Call) -> Route | None:
        """The route for a request; None if there is none."""
        if self.only is not None or not self.all:
            return self.only
        # A key goes to the same route each time, and at all clients that see the same shares.
        point = self._draw() if call.key is None else hashed(call.key, _SEED) / 2**64
        return self.all[min(bisect(self._bounds, point), len(self.all) - 1)]

    def regroup(self, nodes: Collection[Node], now: float, *, reweighted: bool) -> None:
        """Make the routes anew after nodes came, went, were taken out or let back in."""
        portions = self._routing.split(nodes)
        known = {} if reweighted else {route.name: route for route in self.all}
        for node in nodes:
            node.group = NOWHERE
        self.all = tuple(self._route(portion, known.get(portion.name)) for portion in portions)
        self._announcer.note(portions, len(nodes), now)
        shares = [portion.share for portion in portions]
        self._bounds = list(accumulate(shares))
        self.only = self.all[0] if len(shares) == 1 or (shares and shares[0] >= 1) else None
        if len(self._policies) > len(portions) + _POLICIES_KEPT:
            self._policies = {route.name: route.policy for route in self.all}

    def _route(self, portion: Portion, before: Route | None) -> Route:
        # The same tuple as before, if it has the same nodes: policies keep their tables then.
        same = before is not None and before.nodes == portion.nodes
        nodes = before.nodes if before is not None and same else portion.nodes
        policy = self._policies.get(portion.name)
        if policy is None:
            policy, self._unused = self._unused or self._new_policy(), None
            self._policies[portion.name] = policy
        return Route(portion, nodes, policy)
