"""`Prober`: asks nodes how busy they are, for policies that want to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from lbclient.load_report import HEADER
from lbclient.node import Node
from lbclient.policies import Policy, Prequal, Sticky
from lbclient.side_requests import SideRequests

__all__ = ["Prober", "prequal_in"]

log = logging.getLogger(__name__)

# Probes under way at once, to all nodes of a service: beyond it they would be late anyway.
_AT_ONCE = 100
_MULTIPLE_CHOICES = 300
# Servers can tell probes from users' requests by it.
_AGENT = "lbclient probe"


def prequal_in(policy: Policy) -> Prequal | None:
    """The policy that wants to probe: this one, or the one inside of it; None if there is no such."""
    while isinstance(policy, Sticky):
        policy = policy.policy
    return policy if isinstance(policy, Prequal) else None


class Prober:
    """Sends the probes that the `Prequal` policies of one service ask for, and hands them the answers.

    There is one to a node at a time; one to a node that leaves is cancelled.

    Args:
        side: sends them as the service's requests are sent.

    Attributes:
        counts: probes `sent`, those that brought a report (`answered`) and those that did not (`missed`).
    """

    def __init__(self, side: SideRequests) -> None:
        self.counts = {"sent": 0, "answered": 0, "missed": 0}
        self._side = side
        self._under_way: dict[Node, asyncio.Task[None]] = {}

    def equip(self, new_policy: Callable[[], Policy]) -> Policy:
        """Make a policy; if it, or one inside of it, wants to probe, it does so here."""
        policy = new_policy()
        if (prequal := prequal_in(policy)) is not None:
            prequal.probe = partial(self.send, prequal)
        return policy

    def send(self, policy: Prequal, node: Node) -> None:
        """Begin a probe for the policy, unless one is under way or there are too many."""
        if node.left or node in self._under_way or len(self._under_way) >= _AT_ONCE:
            return
        if not self._side.ready:
            return
        self.counts["sent"] += 1
        task = asyncio.get_running_loop().create_task(self._probe(policy, node))
        self._under_way[node] = task
        # Not every task gets as far as its first line.
        task.add_done_callback(partial(self._ended, node))

    def forget(self, left: Iterable[Node]) -> None:
        """Cancel the probes to nodes that left."""
        for node in left:
            if (task := self._under_way.get(node)) is not None:
                task.cancel()

    async def close(self) -> None:
        """Cancel all probes."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, node: Node, task: asyncio.Task[None]) -> None:
        if self._under_way.get(node) is task:
            del self._under_way[node]

    async def _probe(self, policy: Prequal, node: Node) -> None:
        if not self._side.ready:
            return
        try:
            read = await self._ask(policy, node)
        except Exception as error:  # noqa: BLE001 - nobody waits for a probe, and so nobody would see what it raises
            log.debug("%s: probe failed: %s: %s", node.address, type(error).__name__, error)
            read = False
        # Whoever sees the counts may send the next one at once.
        self._under_way.pop(node, None)
        self.counts["answered" if read else "missed"] += 1
        if not read:
            policy.missed(node, time.monotonic())

    async def _ask(self, policy: Prequal, node: Node) -> bool:
        async with self._side.get(node, policy.path, timeout=policy.timeout, agent=_AGENT) as response:
            header = response.headers.get(HEADER)
            if response.status >= _MULTIPLE_CHOICES or header is None:
                log.debug("%s: no load report, but status %d", node.address, response.status)
                return False
            return policy.read(node, header, time.monotonic())
