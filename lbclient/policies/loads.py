"""Loads: how busy a node is, as a plain function of the node and the time. Lower is better.

All of them carry a failure term, since a server that fails at once is always idle and always fast.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from lbclient.node import MEMORY, Node

__all__ = ["Load", "in_flight", "least_request", "peak_ewma"]

Load = Callable[[Node, float], float]

# Longer than any answer takes, in seconds: what a node costs of which nothing is known, once a request is on its
# way to it. So a new node is asked once and then left alone until its first answer (Finagle's Peak EWMA).
_PENALTY = 1e9
# The share of failures above which a node costs no more; it must stay below 1.
_WORST = 0.99


def in_flight(node: Node, now: float) -> float:
    """Attempts under way, whatever the node's weight."""
    load = node.in_flight + 1.0
    return load * _aversion(node, now) if node.failing else load


def least_request(node: Node, now: float) -> float:
    """Attempts under way by weight.

    Idle nodes are equal whatever their weights: those decide how often a node is drawn, and would count twice with
    Envoy's (in flight + 1) / weight, so that of two idle servers the lighter one would never get a request.
    """
    load = 1.0 + node.in_flight / (node.weight or 1e-9)
    return load * _aversion(node, now) if node.failing else load


def peak_ewma(node: Node, now: float) -> float:
    """The latency to be expected, times the attempts under way by weight (Finagle's and Linkerd's Peak EWMA).

    The latency decays while nothing is heard, so that a node that was slow is asked again after a while.
    """
    latency = node.latency
    if latency is None:
        # Known for failures only, or just being asked for the first time: not to be taken for a fast one.
        load = _PENALTY * (1.0 + node.in_flight) if node.in_flight or node.failing else 0.0
    else:
        load = latency * exp((node.learned_at - now) / MEMORY) * (1.0 + node.in_flight / (node.weight or 1e-9))
    return load * _aversion(node, now) if node.failing else load


def _aversion(node: Node, now: float) -> float:
    """How many times as busy a node counts for the share of its attempts that failed; decays with time.

    Kratos divides by the success rate; its square keeps a node away for as long as it fails.
    """
    failing = node.failing * exp((node.failed_at - now) / MEMORY)
    return (1.0 - min(failing, _WORST)) ** -2
