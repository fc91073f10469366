"""How to choose: a policy picks one node of a tuple."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lbclient.call import Call
from lbclient.node import Node

__all__ = ["Policy"]


@runtime_checkable
class Policy(Protocol):
    """Chooses a node. Called for every attempt, so it takes no lock and never awaits.

    Each group of usable nodes (a priority, a zone) has a policy object of its own.
    """

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """One of the nodes that is not among `call.excluded`; there is at least one such.

        The tuple is the same object until the nodes or their weights change: tables are made anew when it is
        another one, and only then. What was learned and where the turn was are to survive that.
        """
        ...
