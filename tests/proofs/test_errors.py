"""One of ten servers answers 500 at once, faster than the others work: who gets the requests, and who sees it."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_rig import Fault
from proof_rig import WHOLE, Load, milliseconds, posts_processed_twice, quantile, report, tries_of, working

from discovery import Memory
from lbclient import BalancedSession, Retry

# After these seconds the failing server gets less than 1 % of the requests; the shorter time is the stricter one.
LEARNED = 5.0 if WHOLE else 2.0
LOOKED_AT = 30.0 if WHOLE else 1.5
INCLUDING_500 = Retry(statuses={429, 500, 502, 503, 504})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("retry", [Retry(), INCLUDING_500], ids=["the defaults", "500 is retried"])
async def test_a_server_that_only_fails_is_left_alone(retry: Retry) -> None:
    async with working(10) as servers:
        bad, *_ = servers
        memory = Memory(server.address for server in servers)
        async with BalancedSession(memory, retry=retry) as session:
            load = Load(session)
            async with load.running():
                await asyncio.sleep(0.5)
                await bad.play(Fault(status=500))
                failing_at = time.monotonic()
                await asyncio.sleep(LEARNED)
                learned_at = time.monotonic()
                await asyncio.sleep(LOOKED_AT)
        early, late = load.between(failing_at, learned_at), load.between(learned_at)
        asked = [
            sum(since <= at < till for at in bad.report.heads_at)
            for since, till in ((failing_at, learned_at), (learned_at, float("inf")))
        ]
        gets = [sent for sent in load.sent if sent.method == "GET"]
        late_gets = [sent for sent in late if sent.method == "GET"]
        report(
            f"1 of 10 answers 500 at once, {'500 is retried' if retry is INCLUDING_500 else 'the defaults'}",
            [
                (f"requests in the first {LEARNED:g} s", len(early)),
                ("  read by the failing one", asked[0]),
                (f"requests in the {LOOKED_AT:g} s after that", len(late)),
                ("  read by the failing one", f"{asked[1]} ({100 * asked[1] / len(late):.2f} %)"),
                ("GETs failed, of all", f"{sum(sent.failed for sent in gets)} of {len(gets)}"),
                ("GETs failed, later on", f"{sum(sent.failed for sent in late_gets)} of {len(late_gets)}"),
                ("POSTs failed, of all", sum(sent.failed for sent in load.sent if sent.method == "POST")),
                ("attempts for each request", f"{len(tries_of(load.sent)) / len(load.sent):.3f}"),
                ("p50", milliseconds(quantile(load.sent, 0.5))),
                ("p99", milliseconds(quantile(load.sent, 0.99))),
            ],
        )
        assert posts_processed_twice(load, servers) == []
        assert asked[1] < 0.01 * len(late)
        if retry is INCLUDING_500:
            assert [str(sent) for sent in gets if sent.failed] == []
