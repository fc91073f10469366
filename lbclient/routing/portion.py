"""`Portion`: nodes that are alike to the balancer, and their share of the requests."""

from __future__ import annotations

from typing import NamedTuple

from lbclient.node import Node

__all__ = ["Portion"]


class Portion(NamedTuple):
    """Nodes that are chosen among in one go.

    Attributes:
        name: what they have in common, such as `zone a` or `priority 1`; empty where there is only one portion. It
            tells portions apart from one update to the next: policies keep their position by it.
        nodes: at least one.
        share: of the requests, 0 to 1; 0 for those that only help out when all others were tried or are full.
        panic: too few nodes are usable, so that all are taken, out or not.
    """

    name: str
    nodes: tuple[Node, ...]
    share: float
    panic: bool = False
