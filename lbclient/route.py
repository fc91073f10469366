"""`Route`: nodes that are chosen among in one go, and the policy that does it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lbclient.call import Call
from lbclient.node import Group, Node
from lbclient.policies import Policy
from lbclient.routing import Pace, Portion, WarmUp

__all__ = ["Route"]

# How often another node is looked for instead of one that is being warmed up. With half of the nodes new, one in
# a thousand requests is refused this often.
_DRAWS = 8


class Route(Group):
    """A portion of the nodes with the policy that chooses among them.

    Attributes:
        policy: its own.
        name, share, panic: as in `Portion`.
        pace: of those of its nodes that are being warmed up; None before one was looked at.
    """

    __slots__ = ("pace", "panic", "policy", "share")

    def __init__(self, portion: Portion, nodes: tuple[Node, ...], policy: Policy) -> None:
        super().__init__(nodes, portion.name)
        self.policy = policy
        self.share = portion.share
        self.panic = portion.panic
        self.pace: Pace | None = None

    def pick_another(self, call: Call, tried: tuple[Node, ...], limit: float, warm_up: WarmUp) -> Node | None:
        """A node that was not tried and is not full, where some are that or new; None if there is none."""
        excluded: Collection[Node] = tried
        spared: list[Node] = []
        full = False
        call.in_flight = self.in_flight
        pace = self._pace(call.now, warm_up)
        while len(excluded) < len(self.nodes):
            call.excluded = excluded
            node = self.policy.pick(self.nodes, call)
            if node.in_flight >= limit:
                # One full node is seldom the only one; the second time all are looked for.
                others = (n for n in self.nodes if full and n.in_flight >= limit)
                excluded = {*excluded, node, *others}
                full = True
            elif pace is None or len(spared) >= _DRAWS or warm_up.admits(node, pace, call.now):
                return node
            else:
                spared.append(node)
                excluded = {*excluded, node}
        # Better one that is new than none.
        return spared[0] if spared else None

    def _pace(self, now: float, warm_up: WarmUp) -> Pace | None:
        """How fast new nodes earn requests, with this one counted; None if there is no new one."""
        if now >= warm_up.until:
            return None
        if self.pace is None:
            self.pace = warm_up.pace(self.nodes)
        self.pace.picks += 1
        return self.pace

    def as_dict(self) -> dict[str, Any]:
        """The live state as plain data; `share` is 0 for nodes that only help out."""
        return {"name": self.name, "share": self.share, "nodes": len(self.nodes), "panic": self.panic}
