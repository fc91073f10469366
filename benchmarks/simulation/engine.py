"""`simulate()`: clients with production balancers and simulated servers, event by event in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from heapq import heappop, heappush
from math import inf, nan
from typing import Any

from discovery import Endpoint
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.policies import Policy, Prequal
from lbclient.route import Route
from simulation.plan import Plan
from simulation.server import Server

__all__ = ["SAMPLES", "DrawKeys", "Ending", "MakePolicy", "Record", "simulate"]

# How often the loads of all servers are looked at.
SAMPLES = 200

MakePolicy = Callable[[random.Random], Policy]
# Draws as many keys as there are requests.
DrawKeys = Callable[[random.Random, int], list[str]]


class Ending(IntEnum):
    """How a request ended."""

    UNDER_WAY = 0
    ANSWERED = 1
    FAILED = 2
    EXPIRED = 3


@dataclass(frozen=True, slots=True)
class Record:
    """What happened. The first four have an entry for each request, in the order of the arrivals.

    Attributes:
        starts: when it was sent, in seconds.
        latencies: seconds until its end as the client sees it.
        chosen: the number of the server that it went to.
        endings: an `Ending` each.
        loads: (when, the load of each server), from time to time.
        connections: pairs of a client and a server that it used.
    """

    starts: list[float]
    latencies: list[float]
    chosen: list[int]
    endings: bytearray
    loads: list[tuple[float, list[int]]]
    connections: int


def simulate(
    plan: Plan,
    make_policy: MakePolicy,
    seed: str,
    *,
    draw_keys: DrawKeys | None = None,
    reports: bool = False,
) -> Record:
    """Run the plan to its end. With the same seed, every policy gets the same arrivals and the same work.

    With `reports` the servers tell a policy that wants to know of their load with each answer, too.
    """
    return _Simulation(plan, make_policy, seed, draw_keys, reports=reports).run()


class _Simulation:
    def __init__(
        self, plan: Plan, make_policy: MakePolicy, seed: str, draw_keys: DrawKeys | None, *, reports: bool
    ) -> None:
        self._plan = plan
        self._reports = reports
        self._probing = False
        rng = random.Random(f"{seed} requests")
        self._starts = _arrivals(plan, rng)
        count = len(self._starts)
        self._work = [plan.draw_work(rng) for _ in range(count)]
        self._senders = [rng.randrange(plan.clients) for _ in range(count)]
        self._keys = draw_keys(rng, count) if draw_keys else None
        self._latencies = [nan] * count
        self._chosen = [-1] * count
        self._endings = bytearray(count)
        self._servers = [Server(number, server) for number, server in enumerate(plan.servers)]
        self._endpoints = [
            Endpoint(host=f"10.0.{number // 256}.{number % 256}", port=80, weight=server.weight)
            for number, server in enumerate(plan.servers)
        ]
        self._at_address = {e.address: s for e, s in zip(self._endpoints, self._servers, strict=True)}
        self._pairs = bytearray(plan.clients * len(self._servers))
        self._loads: list[tuple[float, list[int]]] = []
        # (when, number, action, its arguments): the number keeps the order of what happens at the same moment.
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._now = 0.0
        self._balancers = [
            self._balancer(make_policy, random.Random(f"{seed} client {n}")) for n in range(plan.clients)
        ]
        self._schedule_updates(random.Random(f"{seed} updates"))
        for number in range(SAMPLES):
            self._at((number + 0.5) / SAMPLES * plan.seconds, self._sample)

    def run(self) -> Record:
        events = self._events
        for number, start in enumerate(self._starts):
            while events and events[0][0] <= start:
                self._now, _, action, arguments = heappop(events)
                action(*arguments)
            self._now = start
            self._send(number)
        while events:
            self._now, _, action, arguments = heappop(events)
            action(*arguments)
        return Record(
            self._starts, self._latencies, self._chosen, self._endings, self._loads, self._pairs.count(1)
        )

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self._scheduled += 1
        heappush(self._events, (when, self._scheduled, action, arguments))

    def _balancer(self, make_policy: MakePolicy, rng: random.Random) -> Balancer:
        def new_policy() -> Policy:
            policy = make_policy(rng)
            if isinstance(policy, Prequal):
                self._probing = True
                policy.probe = partial(self._probe, policy)
            return policy

        return Balancer("simulated", new_policy, slow_start=self._plan.slow_start, rng=rng)

    def _schedule_updates(self, rng: random.Random) -> None:
        everything = tuple(range(len(self._servers)))
        for since, numbers in self._plan.listings or ((0.0, everything),):
            listed = tuple(self._endpoints[number] for number in numbers)
            for balancer in self._balancers:
                if since == 0:
                    balancer.update(listed, 0.0)
                else:
                    self._at(since + rng.uniform(0, self._plan.lag), self._update, balancer, listed)

    def _update(self, balancer: Balancer, listed: tuple[Endpoint, ...]) -> None:
        balancer.update(listed, self._now)

    def _send(self, number: int) -> None:
        """Begin a request as the transport does. There is one attempt: an answer with a 500 is not tried again."""
        now, plan = self._now, self._plan
        client = self._senders[number]
        balancer = self._balancers[client]
        call = Call(self._keys[number] if self._keys else None, now)
        node = balancer.pick(call)
        assert node is not None  # noqa: S101 - there are nodes, and no limits
        attempt = Attempt(node, "", _nothing, now)
        server = self._at_address[node.address]
        self._chosen[number] = server.number
        self._pairs[client * len(self._servers) + server.number] = 1
        rif = server.load
        server.load += 1
        deadline = now + plan.deadline
        through = server.serve(now + plan.delay, self._work[number], deadline)
        if through + plan.delay <= deadline:
            self._at(through + plan.delay, self._answer, number, balancer, attempt, server, rif)
        else:
            self._at(deadline, self._expire, number, balancer, attempt)
            self._at(deadline if through == inf else through, self._leave, server)

    def _answer(self, number: int, balancer: Balancer, attempt: Attempt, server: Server, rif: int) -> None:
        server.load -= 1
        if server.failing:
            self._end(number, balancer, attempt, Outcome.ERROR, Ending.FAILED)
            return
        self._end(number, balancer, attempt, Outcome.SUCCESS, Ending.ANSWERED)
        if self._probing:
            server.latency.add(rif, attempt.elapsed, self._now)
            if self._reports and isinstance(attempt.node.group, Route):
                self._learn(attempt.node.group.policy, attempt.node, *server.report(self._now))

    def _expire(self, number: int, balancer: Balancer, attempt: Attempt) -> None:
        # The deadline of the whole request is the caller's: it says nothing about the server.
        self._end(number, balancer, attempt, Outcome.OURS, Ending.EXPIRED)

    def _end(self, number: int, balancer: Balancer, attempt: Attempt, outcome: Outcome, ending: Ending) -> None:
        now = self._now
        attempt.outcome = outcome
        attempt.elapsed = self._latencies[number] = now - attempt.started_at
        balancer.observe(attempt, outcome, now)
        attempt.land()
        if self._endings[number]:
            raise RuntimeError(f"request {number} ended twice")
        self._endings[number] = ending

    def _leave(self, server: Server) -> None:
        server.load -= 1

    def _sample(self) -> None:
        self._loads.append((self._now, [server.load for server in self._servers]))

    def _probe(self, policy: Prequal, node: Node) -> None:
        """Ask a server how busy it is; both messages take their time."""
        self._at(self._now + self._plan.delay, self._report, policy, node)

    def _report(self, policy: Prequal, node: Node) -> None:
        report = self._at_address[node.address].report(self._now)
        self._at(self._now + self._plan.delay, self._learn, policy, node, *report)

    def _learn(self, policy: Policy, node: Node, rif: float, latency: float | None) -> None:
        if isinstance(policy, Prequal):
            policy.learn(node, rif, latency, self._now)


def _arrivals(plan: Plan, rng: random.Random) -> list[float]:
    """The moments of a Poisson process whose rate changes from time to time."""
    starts = []
    ends = [since for since, _ in plan.rates[1:]] + [plan.seconds]
    for (since, rate), end in zip(plan.rates, ends, strict=True):
        now = since + rng.expovariate(rate)
        while now < end:
            starts.append(now)
            now += rng.expovariate(rate)
    return starts


def _nothing() -> None:
    pass
