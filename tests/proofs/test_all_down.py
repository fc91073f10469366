"""All of six servers down, and one of them up again: no storm of retries, and found at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from fault_rig import FaultServer
from proof_rig import (
    HEALTHY,
    WHOLE,
    Load,
    Sent,
    connects_counted,
    milliseconds,
    posts_processed_twice,
    processed,
    quantile,
    report,
    tries_of,
    working,
)
from rig import until

from discovery import Memory
from lbclient import BalancedSession, Ejection, Retry
from lbclient.outcome import Outcome
from lbclient.retrying import Budget

OUTAGE = 12.0 if WHOLE else 1.0
WITHIN = 1.0
OK = 200


@dataclass(frozen=True)
class Case:
    """What the client is told."""

    name: str
    ejection: Ejection = field(default_factory=Ejection)
    budget: Budget = field(default_factory=Budget)

    def allowed(self, requests: int, seconds: float) -> float:
        """Attempts that the budget allows for so many requests in so many seconds, after a quiet start."""
        budget = self.budget
        return requests + budget.share * requests + budget.per_second * (budget.window + seconds)


CASES = [
    # The one that is back first may be the one that was never taken out, or one that is out for long.
    Case("the defaults"),
    Case("longer than the ejection", ejection=Ejection(base=0.3, cap=0.6)),
    # After some seconds of an outage there is nothing left of it, so that only first attempts can find a server.
    Case("the budget is used up", budget=Budget(share=0.0, per_second=1.0)),
]


def first_success(load: Load, since: float) -> float:
    """Seconds until a request that was started since then was answered."""
    ends = [sent.started_at + sent.elapsed for sent in load.between(since) if sent.status == OK]
    return min(ends) - since


def all_refused_at(sent: list[Sent], servers: int) -> float:
    """When each of the servers had refused a connection."""
    first: dict[str, float] = {}
    for attempt in tries_of(sent):
        if attempt.outcome is Outcome.CONNECT:
            ended_at = attempt.started_at + attempt.elapsed
            first[attempt.endpoint.address] = min(ended_at, first.get(attempt.endpoint.address, ended_at))
    assert len(first) == servers
    return max(first.values())


async def down(servers: list[FaultServer]) -> None:
    """Kill -9, all at once."""
    await asyncio.gather(*(server.kill() for server in servers))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_all_down_and_up_again(case: Case) -> None:
    async with working(6) as servers:
        memory = Memory(server.address for server in servers)
        async with BalancedSession(memory, ejection=case.ejection, retry=Retry(budget=case.budget)) as session:
            load = Load(session)
            rows: list[tuple[str, object]] = []
            with connects_counted() as connects:
                async with load.running():
                    await until(lambda: all(server.report.heads > 5 for server in servers))
                    worst = excess = 0.0
                    for first in servers[:2] if WHOLE else servers[:1]:
                        await down(servers)
                        down_at = time.monotonic()
                        # Some of them are in no attempt, but in the pause before one.
                        under_way = sum(not sent.over for sent in load.sent)
                        connects.clear()
                        await asyncio.sleep(OUTAGE)
                        await first.restart(*HEALTHY)
                        back_at = time.monotonic()
                        meanwhile = load.between(down_at, back_at)
                        tries, connected = len(tries_of(meanwhile)), sum(connects.values())
                        await until(lambda since=back_at: any_success(load, since), 10)
                        success = first_success(load, back_at)
                        worst = max(worst, success)
                        # Those that were cut off try again as well; and until a connection to each of the servers
                        # has failed, retries after failed connections are free: two for each request of then.
                        early = load.between(down_at, all_refused_at(meanwhile, len(servers)))
                        most = case.allowed(len(meanwhile) + under_way, back_at - down_at)
                        most += 2 * (under_way + len(early))
                        rows += [
                            (f"{first.name} back first: requests while all were down", len(meanwhile)),
                            ("  attempts", tries),
                            ("  connections tried", connected),
                            ("  allowed", f"{most:.0f}"),
                            ("    of them to find out that all are down", 2 * (under_way + len(early))),
                            ("  first success after", milliseconds(success)),
                        ]
                        excess = max(excess, tries - most, connected - most)
                        await asyncio.gather(
                            *(server.restart(*HEALTHY) for server in servers if server is not first)
                        )
                        since = time.monotonic()
                        await until(lambda since=since: settled(load.between(since), 100), 20)
            rows += [
                ("requests in all", len(load.sent)),
                ("p99 of the failures", milliseconds(quantile(load.failed, 0.99))),
            ]
            report(f"all of 6 down for {OUTAGE:g} s, {case.name}", rows)
            assert excess <= 0
            assert worst < WITHIN
            assert posts_processed_twice(load, servers) == []
            # No server ever read more than one in five twice: the rest of the attempts were not even connected.
            assert sum(processed(servers).values()) <= case.allowed(len(load.sent), 0)


def any_success(load: Load, since: float) -> bool:
    return any(sent.status == OK for sent in load.between(since))


def settled(sent: list[Sent], count: int) -> bool:
    """Whether the newest so many requests that ended did well."""
    over = [each for each in sent if each.over]
    return len(over) >= count and not any(each.failed for each in over[-count:])
