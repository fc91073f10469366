"""`Inquiries`: what nodes of a service are asked beside its requests, which is probes and health checks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from aiohttp import ClientRequest, ClientResponse, ClientSession
from yarl import URL

from lbclient.balancer import Balancer
from lbclient.health.checker import Checker
from lbclient.health.health_check import HealthCheck
from lbclient.node import Node
from lbclient.options import service_host
from lbclient.policies import Policy
from lbclient.probing import Prober, prequal_in
from lbclient.side_requests import SideRequests

__all__ = ["Inquiries"]


class Inquiries:
    """Probes for policies that want them, and health checks where they are configured; of one service.

    Args:
        name: the service's name.
        check: how nodes are checked; None for not at all.

    Attributes:
        any: whether there are some at all; if not, nothing but `equip` and `close` needs to be called.
        drained_by: a header of answers that has to be looked for; None for none.
    """

    def __init__(self, name: str, check: HealthCheck | None) -> None:
        self.any = False
        self.drained_by = None if check is None else check.draining_header
        self._name = name
        self._check = check
        self._side = SideRequests(service_host(name))
        self._equipping = Prober(self._side)
        self._prober: Prober | None = None
        self._checker: Checker | None = None

    def equip(self, new_policy: Callable[[], Policy]) -> Policy:
        """Make a policy that may probe."""
        return self._equipping.equip(new_policy)

    def begin(self, balancer: Balancer, on_health_change: Callable[[], None]) -> None:
        """The balancer, to which the checks tell what they find."""
        if prequal_in(balancer.policy) is not None:
            self._prober = self._equipping
        if self._check is not None:
            self._checker = Checker(self._name, self._check, balancer, self._side, on_health_change)
        self.any = self._prober is not None or self._checker is not None

    def adopt(self, session: ClientSession, base_url: URL | None) -> None:
        """The session through which requests will come."""
        if self._checker is not None:
            self._side.adopt(session, base_url)
            self._checker.resume()

    def imitate(self, req: ClientRequest) -> None:
        """Ask in the way that this request takes."""
        self._side.imitate(req)
        if self._checker is not None:
            self._checker.resume()

    def update(self, nodes: Collection[Node], left: Collection[Node]) -> None:
        """Ask these nodes, and those that left no longer."""
        if self._prober is not None:
            self._prober.forget(left)
        if self._checker is not None:
            self._checker.update(nodes, left)

    def answered(self, node: Node, response: ClientResponse) -> None:
        """See whether the node says by an answer to a request that it is about to stop."""
        if self._checker is not None and self.drained_by is not None and self.drained_by in response.headers:
            self._checker.draining(node)

    def stop(self) -> None:
        """Begin no further checks, whatever becomes of the coroutine that closes this."""
        if self._checker is not None:
            self._checker.stop()

    async def close(self) -> None:
        """End those that are under way, and begin no others."""
        if self._prober is not None:
            await self._prober.close()
        if self._checker is not None:
            await self._checker.close()
        await self._side.close()

    def describe_in(self, state: dict[str, Any]) -> None:
        """Add to a description of the service what they showed."""
        if self._prober is not None:
            state["probes"] = dict(self._prober.counts)
        if self._checker is not None:
            self._checker.describe_in(state)
