"""`CANDIDATES`: the policies that are compared, one row each."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import Any

from lbclient import BalancedSession
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import POLICIES, Policy, in_flight
from simulation.engine import DrawKeys
from simulation.plan import Size

__all__ = ["BASELINE", "CANDIDATES", "BoundWatch", "Candidate", "default_name"]

# What the others are compared with.
BASELINE = "round_robin"
_KEYS = 10_000
# The most popular of the keys has 3 % of the requests.
_ZIPF = 0.8
_BOUND = 1.25
# Where policies that hash are looked at: they heed nothing but the registry, and a hundred clients that make their
# tables anew at each change take minutes.
_HASHED = ("equal", "slow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One policy with its options.

    Attributes:
        name: in tables and at the command line.
        policy: its name in `POLICIES`.
        options: of the policy.
        draw_keys: the keys of the requests, for policies that hash.
        reports: the servers report their load with each answer.
        bound: how many times the mean load of a client's servers none of them may exceed; None for no bound.
        largest: the most servers that it is simulated with.
        scenarios: those that it is simulated in; empty for all.
    """

    name: str
    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    draw_keys: DrawKeys | None = None
    reports: bool = False
    bound: float | None = None
    largest: int = 1_000
    scenarios: tuple[str, ...] = ()

    def make(self, rng: random.Random) -> Policy:
        """A policy for one client."""
        return POLICIES[self.policy](**self.options, rng=rng)  # type: ignore[call-arg]

    def simulated(self, scenario: str, size: Size) -> bool:
        """Whether there is something to learn."""
        return size.servers <= self.largest and scenario in (self.scenarios or (scenario,))


class BoundWatch:
    """A policy that picks as another one does, and watches whether the bound holds.

    Attributes:
        excess: by how many requests a node was above the bound at most.
    """

    def __init__(self, policy: Policy, bound: float) -> None:
        self._policy = policy
        self._bound = bound
        self.excess = -inf

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """What the other one picks."""
        node = self._policy.pick(nodes, call)
        mean = (call.in_flight + 1) / len(nodes)
        self.excess = max(self.excess, node.in_flight + 1 - self._bound * mean)
        return node


def uniform_keys(rng: random.Random, count: int) -> list[str]:
    """Keys that are all as popular."""
    return [f"user-{rng.randrange(_KEYS)}" for _ in range(count)]


def zipf_keys(rng: random.Random, count: int) -> list[str]:
    """Keys of which a few are very popular (Zipf's law)."""
    shares = list(accumulate((rank + 1) ** -_ZIPF for rank in range(_KEYS)))
    return [f"user-{rank}" for rank in rng.choices(range(_KEYS), cum_weights=shares, k=count)]


def _hashing(name: str, policy: str, draw_keys: DrawKeys, bound: float | None = None) -> Candidate:
    options = {} if bound is None else {"bounded_load": bound}
    return Candidate(
        name=name, policy=policy, options=options, draw_keys=draw_keys, bound=bound, scenarios=_HASHED
    )


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate(name="round_robin", policy="round_robin"),
        Candidate(name="weighted_round_robin", policy="weighted_round_robin"),
        Candidate(name="random", policy="random"),
        # It looks at every node for each pick.
        Candidate(name="least_request", policy="least_request", largest=100),
        Candidate(name="power_of_two", policy="power_of_two"),
        # Where all weights are the same, it is the same.
        Candidate(
            name="p2c_in_flight", policy="power_of_two", options={"load": in_flight}, scenarios=("weighted",)
        ),
        Candidate(name="peak_ewma", policy="peak_ewma"),
        Candidate(name="prequal", policy="prequal"),
        # As its documentation recommends for servers that report with their answers.
        Candidate(name="prequal_reports", policy="prequal", options={"probes": 0.3, "remove": 0.1}, reports=True),
        _hashing("ring_hash", "ring_hash", uniform_keys),
        _hashing("ring_hash_zipf", "ring_hash", zipf_keys),
        _hashing("ring_hash_bounded", "ring_hash", zipf_keys, _BOUND),
        _hashing("maglev", "maglev", uniform_keys),
        _hashing("maglev_bounded", "maglev", zipf_keys, _BOUND),
    )
}


def default_name() -> str:
    """The candidate that is `BalancedSession`'s default."""
    default = inspect.signature(BalancedSession).parameters["policy"].default
    return next(name for name, made in POLICIES.items() if default in (name, made) and name in CANDIDATES)
