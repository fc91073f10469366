"""`Routing`: from all endpoints of a service to the portions that policies choose among."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from discovery import Endpoint
from lbclient.node import Node
from lbclient.routing.portion import Portion

__all__ = ["Routing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which nodes are chosen among."""

    def narrow(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """The endpoints that this client uses at all."""
        return endpoints

    def split(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        """The portions, preferred ones first; none if there is no node.

        Usable are nodes that are not ejected and have a weight above 0; if there are none, those that are not
        ejected; if there are none either, all.
        """
        inside = tuple(node for node in nodes if node.ejected_at is None)
        usable = tuple(node for node in inside if node.weight > 0) or inside or tuple(nodes)
        return (Portion("", usable, 1.0),) if usable else ()
