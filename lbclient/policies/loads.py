"""Loads: how busy a node is, as a plain function of the node and the time. Lower is better.

A server that fails at once is always idle and always fast. So each of them leaves a node alone for a while after a
failure: see `avoided`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from lbclient.node import MEMORY, Node

__all__ = ["Load", "avoided", "in_flight", "least_request", "peak_ewma"]

Load = Callable[[Node, float], float]

# Longer than any answer takes, in seconds: what a node costs of which nothing is known, once a request is on its
# way to it. So a new node is asked once and then left alone until its first answer (Finagle's Peak EWMA).
_PENALTY = 1e9
# Seconds for which a node that always fails is left alone: of 10 requests a second to 10 nodes it gets 0.7 % in
# the first minute, and it has its share again within half a minute after it works.
_PAUSE = 25.0
# A node that fails more often than that is asked with one request at a time; for so many seconds after a failure,
# since what is under way may be a websocket that stays for days.
_MOSTLY = 0.5
_TRIAL = 50.0
# A silent node is tried once more after 1 s, 2 s, 4 s, ... 32 s, and then every 32 s.
_DOUBLINGS = 7
_LONGEST = 32.0
# More than any load.
_AVOIDED = 1e18


def in_flight(node: Node, now: float) -> float:
    """Attempts under way, whatever the node's weight."""
    load = node.in_flight + 1.0
    return _avert(load, node, now) if node.failing else load


def least_request(node: Node, now: float) -> float:
    """Attempts under way by weight.

    Idle nodes are equal whatever their weights: those decide how often a node is drawn, and would count twice with
    Envoy's (in flight + 1) / weight, so that of two idle servers the lighter one would never get a request.
    """
    load = 1.0 + node.in_flight / (node.weight or 1e-9)
    return _avert(load, node, now) if node.failing else load


def peak_ewma(node: Node, now: float) -> float:
    """The latency to be expected, times the attempts under way by weight (Finagle's and Linkerd's Peak EWMA).

    The latency decays while nothing is heard, so that a node that was slow is asked again after a while.
    """
    latency = node.latency
    if latency is None:
        # Just being asked for the first time: not to be taken for a fast one.
        load = _PENALTY * node.in_flight
    else:
        latency *= exp((node.learned_at - now) / MEMORY)
        if node.unanswered:
            # What is waited for takes at least so long: a stopped server would look faster and faster.
            silence = now - node.silent_since
            if latency < silence < _patience(node.unanswered):
                latency = silence
        load = latency * (1.0 + node.in_flight / (node.weight or 1e-9))
    return _avert(load, node, now) if node.failing else load


def _patience(unanswered: int) -> float:
    """Seconds of silence after which a node is tried once more: one long request says little of others."""
    return 2.0 ** (unanswered - 1) if unanswered < _DOUBLINGS else _LONGEST * (unanswered - _DOUBLINGS + 2)


def avoided(node: Node, now: float) -> bool:
    """Whether the node failed just now, and is to be left alone while there are others.

    The pause after a failure grows with the square of the share of failures: 25 s for a node that always fails,
    then one request finds out whether it works again. At 1 % it is too short to matter. A factor on the load that
    fades would not do: among idle nodes any factor above 1 keeps a node away altogether, until it has faded to
    nothing, and among busy ones no factor is large enough.
    """
    failing = node.failing
    since = now - node.failed_at
    if since < _PAUSE * failing * failing:
        return True
    return failing > _MOSTLY and node.in_flight > 0 and since < _TRIAL


def _avert(load: float, node: Node, now: float) -> float:
    # Where all fail, the one that fails least is best.
    return _AVOIDED * node.failing * (1.0 + load) if avoided(node, now) else load
