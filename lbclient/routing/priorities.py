"""Priorities and panic: how the requests are shared among levels of nodes, by Envoy's formulas.

https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/panic_threshold
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lbclient.node import Node

__all__ = ["Level", "Load", "can_stand_in", "levels_of", "loads"]


class Level(NamedTuple):
    """The nodes of one priority that may take traffic at all: their weight is above 0.

    Attributes:
        priority: lower ones are preferred.
        nodes: all of them.
        usable: those that are not out.
    """

    priority: int
    nodes: tuple[Node, ...]
    usable: tuple[Node, ...]


class Load(NamedTuple):
    """What a level gets.

    Attributes:
        share: of the requests, 0 to 1.
        panic: too few of its nodes are usable, and the other levels cannot stand in.
    """

    share: float
    panic: bool


def levels_of(nodes: Collection[Node]) -> list[Level]:
    """The levels with nodes that may take traffic, the preferred one first."""
    capable = tuple(node for node in nodes if node.weight > 0)
    priorities = sorted({node.endpoint.priority for node in capable})
    if len(priorities) == 1:
        return [_level(priorities[0], capable)]
    # Not a pass over all nodes for each: a registry may give each of thousands its own.
    found: dict[int, list[Node]] = {priority: [] for priority in priorities}
    for node in capable:
        found[node.endpoint.priority].append(node)
    return [_level(priority, tuple(members)) for priority, members in found.items()]


def _level(priority: int, nodes: tuple[Node, ...]) -> Level:
    return Level(priority, nodes, tuple(node for node in nodes if not node.out))


def loads(counts: Sequence[tuple[int, int]], *, overprovisioning: float, panic_threshold: float) -> list[Load]:
    """The load of each level, given how many of its nodes are usable and how many there are.

    All shares are 0 if no node is usable and no level panics.
    """
    healths = [_health(usable, total, overprovisioning) for usable, total in counts]
    whole = min(100, sum(healths))
    panics = [whole < 100 and usable / total < panic_threshold for usable, total in counts]  # noqa: PLR2004 - percent
    if all(panics):
        # Nobody knows which of them work: each node gets as much as any other.
        everything = sum(total for _, total in counts)
        return [Load(total / everything, panic=True) for _, total in counts]
    found: list[Load] = []
    left = 1.0
    for health, panic in zip(healths, panics, strict=True):
        share = min(left, health / whole) if whole else 0.0
        found.append(Load(share, panic))
        left = max(0.0, left - share)
    return found


def can_stand_in(counts: Sequence[tuple[int, int]], *, overprovisioning: float) -> bool:
    """Whether these levels, as in `loads`, can take all requests."""
    return sum(_health(usable, total, overprovisioning) for usable, total in counts) >= 100  # noqa: PLR2004 - percent


def _health(usable: int, total: int, overprovisioning: float) -> int:
    """Percent of the whole traffic that the level can take; at least 1 if a node is usable (Envoy: 0)."""
    # The small addition keeps floats from turning 70 into 69.
    percent = min(100, int(overprovisioning * 100 * usable / total + 1e-9))
    # If that were 0 everywhere no level would get anything.
    return max(1, percent) if usable else 0
