"""Zones: requests stay in the client's own one as far as it has the capacity, by Envoy's formulas.

https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/zone_aware
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from lbclient.node import Node
from lbclient.routing.portion import Portion

__all__ = ["Zoned", "shares_of_zones"]


class Zoned(NamedTuple):
    """Which zone is preferred, and when.

    Attributes:
        zone: the client's own.
        clients: share of all clients that stand in it, above 0; None if they are spread evenly over the zones.
        least: with fewer usable nodes no zone is preferred.
    """

    zone: str
    clients: float | None
    least: int

    def split(self, nodes: tuple[Node, ...], zones: Collection[str]) -> tuple[Portion, ...]:
        """The nodes as one portion, or as one for the own zone, one for each that helps, and one for the rest.

        Args:
            nodes: the usable ones.
            zones: all that have servers, usable or not, and so clients.
        """
        members: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            members[node.endpoint.zone].append(node)
        if self.zone not in members or len(members) == 1 or len(nodes) < self.least:
            return (Portion("", nodes, 1.0),)
        # Parts of the heaviest: the sum of registered weights may be infinite, and a fraction of one zero.
        heaviest = max(node.weight for node in nodes)
        capacities = {zone: sum(node.weight / heaviest for node in inside) for zone, inside in members.items()}
        clients = 1 / len(zones) if self.clients is None else self.clients
        shares = shares_of_zones(self.zone, capacities, clients, len(zones))
        helping = sorted(zone for zone, share in shares.items() if share > 0 and zone != self.zone)
        others = tuple(node for node in nodes if shares[node.endpoint.zone] <= 0)
        found = [Portion(_name(zone), tuple(members[zone]), shares[zone]) for zone in (self.zone, *helping)]
        return (*found, Portion("other zones", others, 0.0)) if others else tuple(found)


def shares_of_zones(own: str, capacities: Mapping[str, float], clients: float, zones: int) -> dict[str, float]:
    """The share of this client's requests that each zone gets.

    Args:
        own: the client's zone.
        capacities: of the usable servers in each zone, in any unit.
        clients: share of all clients that stand in the own zone; the others stand evenly in the other zones.
        zones: how many zones have clients.
    """
    whole = sum(capacities.values())
    to_own = min(1.0, capacities[own] / whole / clients)
    elsewhere = (1 - clients) / (zones - 1) if zones > 1 else 0.0
    # What a zone has beyond the needs of its own clients.
    others = ((zone, capacity) for zone, capacity in capacities.items() if zone != own)
    residual = {zone: max(0.0, capacity / whole - elsewhere) for zone, capacity in others}
    spare = sum(residual.values())
    if spare <= 0:
        return {own: 1.0, **dict.fromkeys(residual, 0.0)}
    return {own: to_own, **{zone: (1 - to_own) * left / spare for zone, left in residual.items()}}


def _name(zone: str) -> str:
    return f"zone {zone}" if zone else "no zone"
