"""`Routing`: from all endpoints of a service to the portions that policies choose among."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, get_args

from discovery import Endpoint
from lbclient.node import Node
from lbclient.routing.portion import Portion
from lbclient.routing.priorities import Level, can_stand_in, levels_of, loads
from lbclient.routing.subset import Subset
from lbclient.routing.where import Condition, Where
from lbclient.routing.zones import Zoned

__all__ = ["Routing"]

Fallback = Literal["any", "none"]
Panic = Literal["all", "fail", "wait"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which nodes are chosen among: filter, subset, priorities, zones and panic, applied in this order.

    Attributes:
        where: metadata that an endpoint must have, such as `{"version": "v2"}` or `{"version": ["v1", "v2"]}`, or
            a function of the endpoint; None for all. See `Where`.
        fallback: what is used when no endpoint matches: `any` for all, `none` for none.
        subset: how many of the endpoints this client uses, as a `Subset` or a number; None for all.
        zone: where this client stands, as in `Endpoint.zone`, compared exactly; empty for no preference. Requests
            stay there as long as the zone's share of the capacity (the weights of usable nodes) is not below its
            share of the clients; else it gets the quotient of the two, and the rest goes to zones that have more
            than their own clients need (Envoy's zone-aware routing).
        zone_share: share of all clients that stand in this zone, above 0 to 1; None if they are spread evenly over
            the zones that have servers.
        min_zone_nodes: with fewer usable nodes no zone is preferred (Envoy: 6).
        overprovisioning: how many times the average load servers can take: with 1.4 a priority passes requests on
            to the next one when less than 1/1.4 = 71 % of its nodes are usable (Envoy: 1.4).
        panic_threshold: share of usable nodes, 0 to 1, below which a priority panics, as long as the other
            priorities cannot stand in either. With 0 that is only when no node is usable at all; a threshold is
            for ejection and health checks that may be wrong about many nodes at once (Envoy: 0.5).
        panic: what a panic is. `all`: all nodes of the priority are used, ejected and unhealthy ones as well,
            since some of them may work; `fail`: requests fail at once with `NoEndpoints`; `wait`: they wait until
            a node is usable, or their deadline is over. With `fail` and `wait` it needs all priorities to panic; a
            priority that does so alone goes on with what is usable of it. Nodes of weight 0 that are in, and after
            them nodes that are about to stop but well, are used before there is a panic because no node is
            usable. Ejected nodes are probed in any case (Envoy: all).

    Raises:
        ValueError, TypeError: an option makes no sense; the message says which ones do.
    """

    where: Condition | None = field(default=None, hash=False)
    fallback: Fallback = "any"
    subset: Subset | int | None = None
    zone: str = ""
    zone_share: float | None = None
    min_zone_nodes: int = 6
    overprovisioning: float = 1.4
    panic_threshold: float = 0.0
    panic: Panic = "all"
    _where: Where | None = field(init=False, repr=False, compare=False)
    _subset: Subset | None = field(init=False, repr=False, compare=False)
    _zoned: Zoned | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fallback not in get_args(Fallback):
            raise ValueError(f"fallback must be one of {', '.join(get_args(Fallback))}, not {self.fallback!r}")
        if not isinstance(self.zone, str):
            raise TypeError(f"zone must be a text, not {self.zone!r}")
        if self.zone_share is not None and not (_is_number(self.zone_share) and 0 < self.zone_share <= 1):
            raise ValueError(f"zone_share must be a number above 0, at most 1, or None, not {self.zone_share!r}")
        least = self.min_zone_nodes
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise ValueError(f"min_zone_nodes must be a whole number, 0 or more, not {least!r}")
        factor = self.overprovisioning
        if not (_is_number(factor) and isfinite(factor) and factor >= 1):
            raise ValueError(f"overprovisioning must be a number, 1 or more, not {factor!r}")
        if not (_is_number(self.panic_threshold) and 0 <= self.panic_threshold <= 1):
            raise ValueError(f"panic_threshold must be a number from 0 to 1, not {self.panic_threshold!r}")
        if self.panic not in get_args(Panic):
            raise ValueError(f"panic must be one of {', '.join(get_args(Panic))}, not {self.panic!r}")
        set_ = object.__setattr__
        set_(self, "_where", None if self.where is None else Where(self.where))
        set_(self, "_subset", _as_subset(self.subset))
        set_(self, "_zoned", Zoned(self.zone, self.zone_share, least) if self.zone else None)

    def narrow(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """The endpoints that this client uses at all."""
        if self._where is not None:
            matching = self._where.select(endpoints)
            endpoints = endpoints if not matching and self.fallback == "any" else matching
        return endpoints if self._subset is None else self._subset.select(endpoints)

    def split(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        """The portions, preferred ones first; none if there is no node, or in a panic that is to `fail` or `wait`.

        Usable are nodes that are not out and have a weight above 0. If there are none, those that are not out;
        then those that are about to stop but are neither ejected nor unhealthy; then it is a panic.
        """
        levels = levels_of(nodes)
        if not any(level.usable for level in levels):
            return self._last_resort(nodes)
        found: list[Portion] = []
        counts = [(len(level.usable), len(level.nodes)) for level in levels]
        shared = loads(counts, overprovisioning=self.overprovisioning, panic_threshold=self.panic_threshold)
        if self.panic != "all" and all(load.panic for load in shared):
            return ()
        for level, load in zip(levels, shared, strict=True):
            name = f"priority {level.priority}" if len(levels) > 1 else ""
            if load.panic and self.panic == "all":
                found.append(Portion(name, level.nodes, load.share, panic=True))
            elif level.usable:
                found += self._zones_in(level, name, load.share)
        return tuple(found)

    def can_spare(self, node: Node, nodes: Collection[Node]) -> bool:
        """Whether the others can do without the node, one of these."""
        priority = node.endpoint.priority
        # Almost always the first look finds one.
        if any(
            not other.out and other.weight > 0 and other.endpoint.priority == priority
            for other in nodes
            if other is not node
        ):
            return True
        others = [level for level in levels_of(nodes) if level.priority != priority]
        counts = [(len(level.usable), len(level.nodes)) for level in others]
        return can_stand_in(counts, overprovisioning=self.overprovisioning)

    def _zones_in(self, level: Level, name: str, share: float) -> Iterable[Portion]:
        if self._zoned is None:
            return (Portion(name, level.usable, share),)
        zones = {node.endpoint.zone for node in level.nodes}
        return (
            Portion(", ".join(filter(None, (name, part.name))), part.nodes, part.share * share)
            for part in self._zoned.split(level.usable, zones)
        )

    def _last_resort(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        """The portions when none can be used: what weight 0 takes out, what is about to stop, and what fails."""
        inside = tuple(node for node in nodes if not node.out)
        if inside:
            return (Portion("", inside, 1.0),)
        capable = tuple(node for node in nodes if node.weight > 0) or tuple(nodes)
        stopping = tuple(node for node in capable if node.healthy and node.ejected_at is None)
        if stopping:
            return (Portion("", stopping, 1.0),)
        return (Portion("", capable, 1.0, panic=True),) if capable and self.panic == "all" else ()


def _as_subset(value: object) -> Subset | None:
    if value is None or isinstance(value, Subset):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return Subset(size=value)
    raise ValueError(f"subset must be a whole number, 1 or more, a Subset, or None, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
