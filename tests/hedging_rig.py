"""What the tests of hedging share: a session that prefers a slow server, and what its losers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from rig import Prefer, until

from discovery import Static
from lbclient import BalancedSession, Hedge
from lbclient.balancer import Balancer
from lbclient.hedging import Hedging
from lbclient.outcome import Outcome

SOON = Hedge(after=0.01, linger=5)


def hedging_of(session: BalancedSession) -> Hedging:
    hedging = session._balancing._services["service"].hedging
    assert hedging is not None
    return hedging


def counts(session: BalancedSession) -> tuple[int, int, int]:
    """Hedges sent, won, and refused by the budget."""
    state = hedging_of(session).as_dict()
    return state["sent"], state["won"], state["refused"]


async def no_losers(session: BalancedSession) -> None:
    """Wait until the last loser has ended."""
    await until(lambda: hedging_of(session).as_dict()["lingering"] == 0)


@asynccontextmanager
async def preferring(*addresses: str, **options: Any) -> AsyncIterator[BalancedSession]:
    """A session that goes to the first of these, and hedges soon at the next."""
    options = {"policy": Prefer(*addresses), "hedge": SOON, **options}
    async with BalancedSession(Static(addresses), **options) as session:
        yield session


@asynccontextmanager
async def when(condition: Callable[[], bool], action: Callable[[], None]) -> AsyncIterator[None]:
    """Do something as soon as the condition holds, beside what is done here."""

    async def wait() -> None:
        await until(condition)
        action()

    async with asyncio.TaskGroup() as group:
        group.create_task(wait())
        yield


def once(condition: Callable[[], bool], answer: Any) -> Any:
    """Answer when the condition holds: what was not sent when the other one wins is not answered."""

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        await until(condition)
        response: web.StreamResponse = await answer(request)
        return response

    return late


class Observed:
    """What the balancer was told, in order, as pairs of address and outcome."""

    def __init__(self, session: BalancedSession) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        balancer = session._balancing._services["service"].balancer
        self._observe = balancer.observe
        balancer.observe = self  # type: ignore[method-assign, assignment]

    def __call__(self, attempt: Any, outcome: Outcome, now: float) -> None:
        self.outcomes.append((attempt.node.address, outcome))
        self._observe(attempt, outcome, now)

    def of(self, address: str) -> list[Outcome]:
        return [outcome for at, outcome in self.outcomes if at == address]


def balancer_of(session: BalancedSession) -> Balancer:
    return session._balancing._services["service"].balancer


class Script:
    """Answers in this order, the last one for all further requests."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        response: web.StreamResponse = await answer(request)
        return response


class Status:
    """Answers with a status; if it is given a gate, not before that is open."""

    def __init__(self, status: int, gate: asyncio.Event | None = None, headers: Iterable[Any] = ()) -> None:
        self._status = status
        self._gate = gate
        self._headers = tuple(headers)

    async def __call__(self, _: web.BaseRequest) -> web.StreamResponse:
        if self._gate is not None:
            await self._gate.wait()
        return web.Response(status=self._status, text=str(self._status), headers=self._headers)
