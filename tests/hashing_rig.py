"""What the tests of hashing policies share: nodes, and who has which key."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable

from discovery import Endpoint
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies.hashing import Hashing


def node(number: int, weight: float = 1.0) -> Node:
    return Node(Endpoint(host=f"10.0.{number // 200}.{number % 200 + 1}", port=8080, weight=weight))


def nodes(*weights: float) -> tuple[Node, ...]:
    return tuple(node(number, weight) for number, weight in enumerate(weights))


def keys(count: int) -> list[str]:
    return [f"user-{number}" for number in range(count)]


def call(key: str | None, excluded: Collection[Node] = (), in_flight: int = 0) -> Call:
    call = Call(key)
    call.excluded = excluded
    call.in_flight = in_flight
    return call


def settle(policy: Hashing, among: tuple[Node, ...]) -> int:
    """Pick until all changes are worked in; returns how many picks it took."""
    policy.pick(among, call("any"))
    picks = 1
    while policy._layout.behind:
        policy.pick(among, call("any"))
        picks += 1
    return picks


def owners(policy: Hashing, among: tuple[Node, ...], which: Iterable[str]) -> dict[str, str]:
    """The address of the node of each key, once all changes are worked in."""
    settle(policy, among)
    return {key: policy.pick(among, call(key)).address for key in which}


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The keys that changed their node."""
    return {key for key, address in before.items() if after[key] != address}


def shares(policy: Hashing, among: tuple[Node, ...], points: int = 40_000) -> dict[str, float]:
    """The part of all keys that each node has, by points drawn at random."""
    settle(policy, among)
    rng = random.Random(1)
    found = Counter(policy._layout.find(rng.getrandbits(64)) for _ in range(points))
    return {node.address: found[node] / points for node in among}
