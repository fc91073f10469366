"""`Plan`: everything that happens in a simulation, except what the policy decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple

from lbclient.routing import SlowStart

__all__ = ["MEAN_WORK", "Phase", "Plan", "ServerPlan", "Size", "log_normal"]

# Mean service time in seconds, as in the testbed of the Prequal paper (NSDI'24, section 5).
MEAN_WORK = 0.09
# Sigma of a log-normal distribution whose standard deviation is its mean, as that of an exponential one is.
_SIGMA = log(2) ** 0.5


class Size(NamedTuple):
    """How many clients and servers there are."""

    clients: int
    servers: int

    def __str__(self) -> str:
        return f"{self.clients}x{self.servers}"


class Phase(NamedTuple):
    """A stretch of time that has a table of its own, in seconds; requests count where they start."""

    label: str
    begin: float
    end: float


def log_normal(rng: random.Random) -> float:
    """A service time in seconds with a tail: the mean and the standard deviation are `MEAN_WORK`."""
    return rng.lognormvariate(log(MEAN_WORK) - _SIGMA**2 / 2, _SIGMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """One server.

    Attributes:
        weight: what is registered for it.
        workers: requests that it works on at the same time; others wait, first come, first served.
        speeds: `(since, speed)`, the first since 0: a service time is divided by the speed at its beginning.
        failing: answers everything with a 500 at once.
    """

    weight: float = 1.0
    workers: int = 4
    speeds: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    failing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One simulation.

    Attributes:
        seconds: requests arrive until then; those under way are waited for.
        clients: how many; each has a balancer of its own and knows nothing of the others.
        rates: `(since, requests per second)` over all clients, the first since 0; arrivals are Poisson's.
        listings: `(since, numbers of the servers)` that the registry lists, the first since 0; empty for all.
        lag: an update reaches each client after a time between 0 and this many seconds.
        slow_start: of the balancers.
        draw_work: draws the service time of a request in seconds, at speed 1.
        draw_keys: draws as many keys as there are requests, where the policy wants keys.
        delay: seconds that a message is under way, in each direction.
        deadline: seconds after which a client gives up. A server drops what it did not begin until then.
        phases: what there are tables of.
        groups: the numbers of servers whose share is of interest, by a name.
        recovery_at: when the group `slow` is as fast as the others again; None for never.
    """

    seconds: float
    clients: int
    servers: tuple[ServerPlan, ...]
    rates: tuple[tuple[float, float], ...]
    listings: tuple[tuple[float, tuple[int, ...]], ...] = ()
    lag: float = 0.2
    slow_start: SlowStart | None = None
    draw_work: Callable[[random.Random], float] = log_normal
    delay: float = 0.0005
    deadline: float = 5.0
    phases: tuple[Phase, ...]
    groups: Mapping[str, frozenset[int]] = field(default_factory=dict)
    recovery_at: float | None = None
