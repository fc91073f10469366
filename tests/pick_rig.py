"""Nodes, and what a policy makes of them, for tests without sockets and without a clock."""

from __future__ import annotations

from collections import Counter

from discovery import Endpoint
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import Policy


def nodes(*weights: float) -> tuple[Node, ...]:
    """Nodes with these weights: 10.0.0.0, 10.0.0.1 and so on."""
    hosts = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(len(weights)))
    return tuple(Node(Endpoint(host=host, port=80, weight=w)) for host, w in zip(hosts, weights, strict=True))


def copied(among: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same nodes in another tuple, as after an update."""
    return tuple(node for node in among)


def picks(policy: Policy, among: tuple[Node, ...], count: int) -> list[int]:
    """Which nodes are picked, by their place in the tuple; nothing is under way."""
    place = {node: number for number, node in enumerate(among)}
    call = Call()
    return [place[policy.pick(among, call)] for _ in range(count)]


def counts(policy: Policy, among: tuple[Node, ...], count: int) -> list[int]:
    """How often each node is picked."""
    found = Counter(picks(policy, among, count))
    return [found[place] for place in range(len(among))]


def shares(policy: Policy, among: tuple[Node, ...], count: int = 20_000) -> list[float]:
    """The share of the picks that each node gets."""
    return [found / count for found in counts(policy, among, count)]


def pick_but(policy: Policy, among: tuple[Node, ...], *excluded: int) -> int:
    """Which node is picked if those at these places must not be."""
    call = Call()
    call.excluded = tuple(among[place] for place in excluded)
    return among.index(policy.pick(among, call))
