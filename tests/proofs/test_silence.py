"""SIGSTOP of one of six servers: alive for the kernel, which goes on to accept connections, and silent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fault_rig import FaultServer
from proof_rig import (
    WHOLE,
    Load,
    Sent,
    milliseconds,
    posts_processed_twice,
    processed,
    quantile,
    report,
    tries_of,
    working,
)
from rig import expire_ejection, node_of, until

from discovery import Memory
from lbclient import BalancedSession, Hedge

NORMAL = 5.0 if WHOLE else 1.5
# Within these seconds all is normal again.
SETTLED = 2.0
SILENT = 10.0 if WHOLE else 3.5
# By default some requests hang as long as the server is silent; with either of the others no GET does.
OPTIONS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "attempt_timeout": {"attempt_timeout": 0.25},
    "hedge": {"hedge": Hedge(after=0.1)},
}
# Seconds that a machine may stand still which does other things as well.
STALL = 1.0
# Of the requests that were started while the server was silent, so many may wait for as long as it is, by default:
# those on their way to it when it stopped, and those sent after its load has decayed.
HANG = 0.02
# With neither hedges nor five failures in a row yet, the server is tried again every second or so, a few requests
# each time: more than 1 % of one and a half seconds may be among them, and fewer of ten.
FOUND_OUT = 0.01 if WHOLE else 0.03


@pytest.mark.timeout(180)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
async def test_a_silent_server_is_left_alone_until_it_answers_again(options: dict[str, Any]) -> None:
    async with working(6) as servers:
        victim, *_ = servers
        memory = Memory(server.address for server in servers)
        async with BalancedSession(memory, **options) as session:
            load = Load(session, timeout=30)
            async with load.running():
                await until(lambda: all(server.report.heads for server in servers))
                normal_at = time.monotonic()
                await asyncio.sleep(NORMAL)
                silent_at = time.monotonic()
                await victim.pause()
                await asyncio.sleep(SILENT)
                await victim.resume()
                speaks_at = time.monotonic()
                back = await traffic_again(victim, session)
        normal = load.between(normal_at, silent_at)
        silent, settled = load.between(silent_at, speaks_at), load.between(silent_at + SETTLED, speaks_at)
        waited = [sent for sent in silent if sent.elapsed > 1]
        failed = Counts(load.failed)
        extra = sum(processed(servers).values()) - len(load.sent)
        title = next(name for name, chosen in OPTIONS.items() if chosen is options)
        report(
            f"SIGSTOP of 1 of 6 for {SILENT:g} s, {title}",
            [
                ("requests", len(load.sent)),
                ("failed GETs", failed.gets),
                ("failed POSTs", failed.posts),
                ("p50 / p99 before", both(normal)),
                ("p50 / p99 in the first second", both(load.between(silent_at, silent_at + 1))),
                (f"p50 / p99 after {SETTLED:g} s", both(settled)),
                ("requests that took longer than 1 s", len(waited)),
                ("  the longest", milliseconds(max((sent.elapsed for sent in waited), default=0.0))),
                ("attempts beyond one for each request", len(tries_of(load.sent)) - len(load.sent)),
                ("  read by servers", extra),
                ("traffic again after", back),
            ],
        )
        assert posts_processed_twice(load, servers) == []
        # Less than 1 % is not in the p99. The short form runs beside other tests, whose stalls are no waiting.
        at_victim = sum(any(each.endpoint.address == victim.address for each in sent.tries) for sent in settled)
        assert at_victim < (0.01 if "hedge" in options else FOUND_OUT) * len(settled)
        assert quantile(settled, 0.99) < (2 * quantile(normal, 0.99) if WHOLE else STALL)
        assert extra <= 0.2 * len(silent)
        assert failed.gets == 0
        assert all(sent.tries[-1].endpoint.address == victim.address for sent in load.failed)
        # A POST may have been read, so that nothing else can be done than to wait, or to give up.
        suffering = [sent for sent in waited if sent.method == "GET"] if options else waited
        assert len(suffering) <= (0 if options else HANG * len(silent))


class Counts:
    """How many failed."""

    def __init__(self, failed: list[Sent]) -> None:
        self.gets = sum(sent.method == "GET" for sent in failed)
        self.posts = len(failed) - self.gets


def both(sent: list[Sent]) -> str:
    return f"{milliseconds(quantile(sent, 0.5))} / {milliseconds(quantile(sent, 0.99))}"


async def traffic_again(victim: FaultServer, session: BalancedSession) -> str:
    """Wait until it gets requests; how long that took."""
    began_at = time.monotonic()
    before = node_of(session, victim.address)["requests"]
    if not WHOLE:
        # What was learned of it fades within a minute, and so long is it out at most; here the minute has passed.
        node = session._balancing._services["service"].balancer.nodes[victim.address]
        await until(lambda: node.in_flight == 0)
        node.learned_at -= 60
        node.failed_at -= 60
        if node.ejected_at is not None:
            expire_ejection(session, victim.address)
    await until(lambda: node_of(session, victim.address)["requests"] > before + 5, 90)
    return f"{time.monotonic() - began_at:.1f} s"
