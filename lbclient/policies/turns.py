"""What policies that count turns share: weights as whole numbers, and the unit in which waiting is measured."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

from lbclient.node import Node

__all__ = ["TURN", "whole_weights"]

# Parts of a turn: how fine the random offsets of the nodes are.
TURN = 1 << 16

# Bits of the largest weight: Python's integers are fastest up to here, and one pick in 10⁹ is all that is lost.
_BITS = 30


def whole_weights(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], list[int]]:
    """The nodes with a weight above 0 and their weights as whole numbers; all nodes, and ones, if there is none.

    Exact if the weights are multiples of some number that go up to 2³⁰ of it, as whole numbers and short binary
    fractions are (1, 2.5, 0.75). Others are rounded to 2⁻³⁰ of the largest, and none of them down to 0.
    """
    weights = [node.weight for node in nodes]
    if weights.count(weights[0]) == len(weights):
        return nodes, [1] * len(weights)
    if min(weights) > 0:
        return nodes, _whole(weights)
    weighted = tuple([node for node in nodes if node.weight > 0])
    return weighted, _whole([node.weight for node in weighted])


def _whole(weights: list[float]) -> list[int]:
    whole = [int(weight) for weight in weights]
    if whole != weights:
        ratios = [weight.as_integer_ratio() for weight in weights]
        # Powers of two: the largest is a multiple of all.
        unit = max(below for _, below in ratios)
        whole = [above * (unit // below) for above, below in ratios]
    whole = _divide(whole, gcd(*whole))
    excess = max(whole).bit_length() - _BITS
    if excess <= 0:
        return whole
    rounded = [max(1, (weight + (1 << excess - 1)) >> excess) for weight in whole]
    return _divide(rounded, gcd(*rounded))


def _divide(weights: Iterable[int], by: int) -> list[int]:
    return list(weights) if by == 1 else [weight // by for weight in weights]
