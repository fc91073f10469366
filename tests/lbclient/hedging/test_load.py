"""How many requests the servers get when all of them are slow at once, counted at the servers."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import web
from hedging_rig import Script, Status, counts, hedging_of, no_losers, preferring
from rig import Local, hang, in_flight, local, until

from discovery import Static
from lbclient import BalancedSession, Budget, Hedge, Retry, attempts


class Slow:
    """Answers at once until it is told to wait for the event."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, _: web.BaseRequest) -> web.StreamResponse:
        await self.gate.wait()
        return web.Response(text="ok")


async def ask(session: BalancedSession, path: str) -> None:
    async with session.get(path) as response:
        assert response.status == 200
        await response.read()


def seen(*servers: Local) -> int:
    return sum(len(server.seen) for server in servers)


async def test_all_slow_at_once_cost_no_more_than_the_budgets_share() -> None:
    """Two hundred requests, all of them far beyond the delay; a fifth may be hedged, and ten more."""
    slow = Slow()
    retry = Retry(budget=Budget(share=0.2, per_second=1.0, window=10.0))
    async with local(slow) as a, local(slow) as b, local(slow) as c:
        nodes = Static([a.address, b.address, c.address])
        hedge = Hedge(after=0.02, linger=5)
        async with BalancedSession(nodes, retry=retry, hedge=hedge) as session:
            slow.gate.clear()
            tasks = [asyncio.create_task(ask(session, f"/{n}")) for n in range(200)]
            await until(lambda: sum(counts(session)[::2]) == 200)
            await asyncio.sleep(0.1)
            slow.gate.set()
            await asyncio.gather(*tasks)
            await no_losers(session)
            sent, _, refused = counts(session)
            assert sent == 50
            assert refused == 150
            assert seen(a, b, c) == 200 + sent
            assert in_flight(session) == 0
            # Nobody got a request more than twice, and never the same server.
            per_path = Counter(s.target for server in (a, b, c) for s in server.seen)
            assert max(per_path.values()) == 2
            assert all(len({s.target for s in server.seen}) == len(server.seen) for server in (a, b, c))


async def test_a_percentile_follows_servers_that_got_slow_so_that_hedges_get_few_again() -> None:
    slow = False

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        if slow:
            await asyncio.sleep(0.5)
        return web.Response(text="ok")

    retry = Retry(budget=Budget(share=0.2, per_second=0.0, window=10.0))
    async with (
        local(answer) as a,
        local(answer) as b,
        BalancedSession(
            Static([a.address, b.address]), retry=retry, hedge=Hedge(percentile=0.95, linger=5)
        ) as session,
    ):
        # Few at the same time: should a busy machine stop them all, that is below the percentile.
        for _ in range(40):
            await asyncio.gather(*(ask(session, "/fast") for _ in range(5)))
        await no_losers(session)
        before, requests = counts(session)[0], seen(a, b)
        slow = True
        for _ in range(5):
            await asyncio.gather(*(ask(session, "/slow") for _ in range(100)))
        await no_losers(session)
        during = counts(session)[0] - before
        assert during > 0
        assert seen(a, b) - requests == 500 + during
        assert counts(session)[0] <= 0.2 * 700
        delay = hedging_of(session).delay
        assert delay is not None
        assert delay > 0.5


async def test_hedges_and_retries_share_one_budget() -> None:
    """There is enough for one of them: it is the hedge, and the next failure is returned as it is."""
    retry = Retry(budget=Budget(share=0.0, per_second=0.1, window=10.0), backoff=0.001)
    async with local(Script(hang, Status(503))) as bad, local() as good:
        async with preferring(bad.address, good.address, retry=retry) as session:
            await ask(session, "/hedged")
            assert counts(session) == (1, 1, 0)
            async with session.get("/x") as response:
                assert response.status == 503
                assert len(attempts(response)) == 1
        assert (len(bad.seen), len(good.seen)) == (2, 1)
