"""`Hashing`: what hashing policies have in common, from the key of a request to a node."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import of_type
from lbclient.policies.bounded_load import BoundedLoad
from lbclient.policies.keys import Key, hashed

__all__ = ["Hashing", "Layout"]

# So many nodes are looked at in the order of the key. A key that has overflowed that many has no home any more.
_STEPS = 64
_NO_KEY = (
    "has no key to hash: give the policy a key=, which is header('X-User'), cookie('session'), path_part(1) or a "
    "function of the request, or give the request its own with lb_key="
)


class Layout(Protocol):
    """Which node a point stands for: `Ring` and `Table`. Points are whole numbers below 2**64.

    Attributes:
        nodes: those of the last update.
        behind: whether work is left for `catch_up`.
    """

    nodes: tuple[Node, ...]
    behind: bool

    def update(self, nodes: tuple[Node, ...]) -> None:
        """Take the new set; its nodes are the only ones that are returned from now on."""

    def catch_up(self) -> None:
        """Do the next piece of the work, in a few milliseconds."""

    def find(self, point: int) -> Node | None:
        """The node at the point; None if that one left."""

    def walk(self, point: int) -> Iterator[Node]:
        """The nodes that the point may stand for, the preferred ones first, with repetitions."""


class Hashing:
    """Sends the same key to the same node; the keys of a node that must not be picked are spread over all others.

    Args:
        layout: where the nodes are.
        key: takes the key out of a request to which the caller gave none. Requests without a key go to nodes at
            random.
        bounded_load: how many times its fair share of the attempts under way a node may have; None for any
            number. What is above goes to the next nodes with room.
        rng: the source of randomness.
    """

    def __init__(
        self, layout: Layout, key: Key | None, bounded_load: float | None, rng: random.Random | None
    ) -> None:
        if key is not None and not callable(key):
            raise TypeError(f"key must be a function of the request, such as header('X-User'), not {key!r}")
        of_type("rng", rng, random.Random)
        self.key = key
        self._layout = layout
        self._bound = None if bounded_load is None else BoundedLoad(bounded_load)
        self._rng = rng or random.Random()
        self._position = self._rng.randrange(1 << 30)

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The node of the key.

        Raises:
            ValueError: if there is no key, and no way to get one was given.
        """
        layout, bound = self._layout, self._bound
        if nodes is not layout.nodes:
            layout.update(nodes)
            if bound is not None:
                bound.update(nodes)
        elif layout.behind:
            layout.catch_up()
        if call.key is not None:
            point = hashed(call.key)
        elif self.key is not None:
            point = self._rng.getrandbits(64)
        else:
            raise ValueError(f"{type(self).__name__} {_NO_KEY}")
        node = layout.find(point)
        if node is None or node in call.excluded or (bound is not None and not bound.has_room(node, call)):
            return self._pick_another(point, call)
        return node

    def _pick_another(self, point: int, call: Call) -> Node:
        """The first one with room in the order of the key; the next in turn if there is none nearby."""
        bound, excluded = self._bound, call.excluded
        for node in islice(self._layout.walk(point), _STEPS):
            if node not in excluded and (bound is None or bound.has_room(node, call)):
                return node
        nodes = self._layout.nodes
        for _ in nodes:
            # Where the last one stopped: those before it are full, too, and need not be asked again each time.
            self._position = position = (self._position + 1) % len(nodes)
            node = nodes[position]
            if node not in excluded and (bound is None or bound.has_room(node, call)):
                return node
        assert bound is not None  # noqa: S101 - for the type checker: without a bound the loop found one
        return bound.least_loaded(node for node in nodes if node not in excluded)
