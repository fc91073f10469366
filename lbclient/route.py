"""`Route`: nodes that are chosen among in one go, and the policy that does it."""

from __future__ import annotations

from typing import Any

from lbclient.node import Group, Node
from lbclient.policies import Policy
from lbclient.routing import Pace, Portion

__all__ = ["Route"]


class Route(Group):
    """A portion of the nodes with the policy that chooses among them.

    Attributes:
        policy: its own.
        name, share, panic: as in `Portion`.
        pace: of those of its nodes that are being warmed up; None before one was looked at.
    """

    __slots__ = ("name", "pace", "panic", "policy", "share")

    def __init__(self, portion: Portion, nodes: tuple[Node, ...], policy: Policy) -> None:
        super().__init__(nodes)
        self.policy = policy
        self.name = portion.name
        self.share = portion.share
        self.panic = portion.panic
        self.pace: Pace | None = None

    def as_dict(self) -> dict[str, Any]:
        """The live state as plain data; `share` is 0 for nodes that only help out."""
        return {"name": self.name, "share": self.share, "nodes": len(self.nodes), "panic": self.panic}
