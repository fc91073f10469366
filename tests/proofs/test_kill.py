"""`kill -9` of one of six servers under load: what fails, and how often the dead one is asked."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_rig import FaultServer
from proof_rig import (
    HEALTHY,
    WHOLE,
    Load,
    connects_counted,
    milliseconds,
    posts_processed_twice,
    quantile,
    report,
    tries_of,
    working,
)
from rig import node_of, until

from discovery import Memory
from lbclient import BalancedSession, Ejection

KILLS = 12 if WHOLE else 3
# Three in a row take a node out.
IN_A_ROW = 3
BASE = 0.4
# Seconds that a dead server is listed: a health check of a registry would need longer.
DEAD = 1.0
# The kernel closes the connections of a killed process at once; a busy loop hears of it at its next turn.
UNHEARD = 0.05


class Toll:
    """What the kills cost."""

    def __init__(self) -> None:
        self.read = self.unread = self.attempts = self.connects = self.allowed = 0


def busy_with_a_post(server: FaultServer) -> bool:
    """Whether it has read a POST that it has not answered."""
    traces = server.report.requests.values()
    return any(trace.methods[-1] == "POST" and trace.processed > trace.answered for trace in traces)


@pytest.mark.timeout(120)
async def test_a_killed_server_costs_only_the_posts_that_it_had_read() -> None:
    toll = Toll()
    async with working(6) as servers:
        memory = Memory(server.address for server in servers)
        ejection = Ejection(base=BASE, cap=BASE)
        async with BalancedSession(memory, ejection=ejection) as session:
            await session.ready(5)
            load = Load(session)
            async with load.running():
                for number in range(KILLS):
                    await kill(servers[number % 6], memory, load, toll)
        report(
            f"kill -9 of 1 of 6, {KILLS} times",
            [
                ("requests", len(load.sent)),
                ("failed GETs", sum(sent.method == "GET" for sent in load.failed)),
                ("failed POSTs", sum(sent.method == "POST" for sent in load.failed)),
                ("  that the server had read", toll.read),
                ("  that were written, and not read any more", toll.unread),
                ("attempts", len(tries_of(load.sent))),
                ("  at the dead one", toll.attempts),
                ("connections tried to the dead one", toll.connects),
                ("  allowed: three, in flight, probes", toll.allowed),
                ("p50", milliseconds(quantile(load.sent, 0.5))),
                ("p99", milliseconds(quantile(load.sent, 0.99))),
            ],
        )
        assert [str(sent) for sent in load.failed if sent.method != "POST"] == []
        assert posts_processed_twice(load, servers) == []
        # The kernel may have taken a request that the process did not come to read; nobody can tell those apart.
        assert toll.read + toll.unread == len(load.failed)
        assert toll.read > 0
        assert toll.unread <= KILLS


async def kill(victim: FaultServer, memory: Memory, load: Load, toll: Toll) -> None:
    """Kill it while it works on a POST, look on for a while, and have it come back as a deployment would."""
    session = load.session
    await until(lambda: busy_with_a_post(victim))
    before, busy = {sent.id for sent in load.failed}, node_of(session, victim.address)["in_flight"]
    with connects_counted() as connects:
        killed_at = time.monotonic()
        await victim.kill()
        await asyncio.sleep(DEAD)
    tries = [each for each in tries_of(load.sent) if each.endpoint.address == victim.address]
    asked = sum(each.started_at >= killed_at for each in tries)
    allowed = IN_A_ROW + busy + int(DEAD / BASE)
    toll.attempts += asked
    toll.connects += connects[victim.address]
    toll.allowed += allowed
    assert connects[victim.address] <= allowed
    # Besides, requests may be written into connections of which the loop has not heard yet that they are closed.
    unheard = sum(each.sent and 0 <= each.started_at - killed_at < UNHEARD for each in tries)
    assert asked <= allowed + unheard
    for sent in load.failed:
        if sent.id in before:
            continue
        last = sent.tries[-1]
        assert last.sent, str(sent)
        assert last.endpoint.address == victim.address, str(sent)
        read = victim.trace(sent.id).processed
        toll.read += read
        toll.unread += 1 - read
    # The registry notices, and a new instance comes.
    memory.remove(victim.address)
    await victim.restart(*HEALTHY)
    heads = victim.report.heads
    memory.add(victim.address)
    await until(lambda: victim.report.heads > heads)
