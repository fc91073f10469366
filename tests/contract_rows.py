"""The policies under contract: one row each. A new policy is a new row, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from lbclient import (
    LeastRequest,
    Maglev,
    PowerOfTwo,
    Prequal,
    Random,
    RingHash,
    RoundRobin,
    Sticky,
    WeightedRoundRobin,
    in_flight,
    peak_ewma,
)
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import Policy

__all__ = ["ROWS", "Row", "rows"]


class _Answered(Prequal):
    """All servers that it asks answer at once, and say what is true."""

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        self.probe = lambda node: self.learn(node, node.in_flight, 0.05, call.now)
        return super().pick(nodes, call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A policy and what it promises beyond what all of them promise.

    Attributes:
        name: as in `POLICIES` if it is there.
        make: makes one from its source of randomness.
        weighted: idle nodes are picked in proportion to their weights; else evenly.
        exact: a whole round gives each node its share to the pick: no luck is involved.
        needs_key: hashes `call.key`; the same key gets the same node.
        grain: relative standard deviation of the share that a node has in a hashing policy's table.
        contenders: nodes that are drawn to be compared; one that is the best of all is picked this many times as
            often as by chance.
        looks_at_load: the busiest of all nodes is never picked.
        looks_at_latency: nor is the slowest.
        load_by_weight: of two nodes one of which has three times the weight, it has three times the attempts.
        full_scan: looks at every node, and says so.
        correlated: picks follow from earlier ones, so that the bounds of independent draws do not hold.
        lag: picks after an update by a table that was made before it.
    """

    name: str
    make: Callable[[random.Random], Policy]
    weighted: bool = False
    exact: bool = False
    needs_key: bool = False
    grain: float = 0.0
    contenders: int = 1
    looks_at_load: bool = False
    looks_at_latency: bool = False
    load_by_weight: bool = False
    full_scan: bool = False
    correlated: bool = False
    lag: int = 0

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The share of the picks that idle nodes of these weights are to get."""
        greatest = max(weights)
        if not self.weighted or not greatest:
            return [1 / len(weights)] * len(weights)
        # The sum of great weights is beyond any float.
        whole = sum(weight / greatest for weight in weights)
        return [weight / greatest / whole for weight in weights]


ROWS = (
    Row(name="round_robin", make=RoundRobin, exact=True),
    Row(name="weighted_round_robin", make=WeightedRoundRobin, weighted=True, exact=True),
    Row(name="random", make=Random, weighted=True),
    Row(
        name="least_request",
        make=lambda rng: LeastRequest(rng=rng),
        weighted=True,
        exact=True,
        looks_at_load=True,
        load_by_weight=True,
        full_scan=True,
    ),
    Row(
        name="power_of_two",
        make=lambda rng: PowerOfTwo(rng=rng),
        weighted=True,
        contenders=2,
        looks_at_load=True,
        load_by_weight=True,
    ),
    Row(
        name="power_of_two, in_flight",
        make=lambda rng: PowerOfTwo(load=in_flight, rng=rng),
        weighted=True,
        contenders=2,
        looks_at_load=True,
    ),
    Row(
        name="peak_ewma",
        make=lambda rng: PowerOfTwo(load=peak_ewma, rng=rng),
        weighted=True,
        contenders=2,
        looks_at_load=True,
        looks_at_latency=True,
        load_by_weight=True,
    ),
    # Small rings and tables: they are made by the thousand here.
    Row(
        name="ring_hash", make=lambda rng: RingHash(points=24, rng=rng), weighted=True, needs_key=True, grain=0.21
    ),
    Row(
        name="ring_hash, bounded",
        make=lambda rng: RingHash(points=24, bounded_load=1.25, rng=rng),
        weighted=True,
        needs_key=True,
        grain=0.21,
        looks_at_load=True,
    ),
    Row(
        name="maglev",
        make=lambda rng: Maglev(table_size=1009, rng=rng),
        weighted=True,
        needs_key=True,
        grain=0.01,
        lag=60,
    ),
    Row(
        name="maglev, bounded",
        make=lambda rng: Maglev(table_size=1009, bounded_load=1.25, rng=rng),
        weighted=True,
        needs_key=True,
        grain=0.01,
        lag=60,
        looks_at_load=True,
    ),
    Row(
        name="sticky",
        make=lambda rng: Sticky(rng=rng),
        weighted=True,
        contenders=2,
        looks_at_load=True,
        load_by_weight=True,
    ),
    Row(
        name="prequal",
        make=lambda rng: Prequal(rng=rng),
        weighted=True,
        contenders=2,
        looks_at_load=True,
        load_by_weight=True,
    ),
    Row(name="prequal, answered", make=lambda rng: _Answered(rng=rng), correlated=True),
)


def rows(*traits: str, without: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """The test runs for each policy that has these traits and none of those."""
    chosen = [
        row for row in ROWS if all(getattr(row, t) for t in traits) and not any(getattr(row, t) for t in without)
    ]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: row.name)
