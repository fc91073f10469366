"""`Hedging`: races two attempts of one request."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from aiohttp import BytesPayload, ClientRequest, ClientResponse
from yarl import URL

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.hedging.entrant import Entrant
from lbclient.hedging.hedge import Hedge
from lbclient.hedging.latencies import Latencies
from lbclient.hedging.raced import Raced, RacedService
from lbclient.outcome import Outcome, classify_answer
from lbclient.passage import timer
from lbclient.retrying import Retry
from lbclient.tried import in_words

__all__ = ["Hedging"]

# A loser's body above this is not waited for: a new connection costs less. It is what aiohttp takes in unread.
_LARGEST = 65_536
_LOST = "the other attempt was answered first"

log = logging.getLogger(__name__)


class Hedging:
    """The hedged attempts of one service.

    It owns the losers until they have answered or their time is over.

    Args:
        hedge: when.
        retry: what may be sent twice, how often, and which answers are of no use.

    Attributes:
        sent: hedges that began, ever; won: those that had the first useful answer.
        refused: those that the budget did not allow.
    """

    def __init__(self, hedge: Hedge, retry: Retry) -> None:
        self._hedge = hedge
        self._retry = retry
        self._latencies = Latencies(hedge.percentile) if hedge.after is None else None
        self._losers: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.sent = 0
        self.won = 0
        self.refused = 0

    @property
    def delay(self) -> float | None:
        """Seconds after which a hedge is sent; None while too few latencies are known."""
        return self._hedge.after if self._latencies is None else self._latencies.value

    def suits(self, req: ClientRequest) -> bool:
        """Whether the request may be sent twice at the same time."""
        body = req.body
        return (
            self._retry.attempts > 1
            and (not body or isinstance(body, BytesPayload))
            # A protocol is not switched to twice, and what tracks an upload can follow one only.
            and "Upgrade" not in req.headers
            and getattr(req, "_upload_tracker", None) is None
            and self._retry.may_repeat(req)
        )

    async def race(self, exchange: Raced) -> ClientResponse:
        """Send the exchange's attempt, and perhaps a second one.

        In the end `exchange.attempt` is the one whose result this is, and nothing was recorded of it yet. What the
        other one showed is recorded here.
        """
        first, delay = exchange.attempt, self.delay
        if delay is None or not self._has_choice(exchange):
            return await self._send(exchange, self._latencies, first, exchange.req)
        racing = [Entrant(first, exchange.req, partial(self._send, exchange, self._latencies))]
        try:
            # As without a race: who waits for the answer has the deadline of the whole request.
            with timer(exchange.req):
                await asyncio.wait((racing[0].task,), timeout=delay)
                if not racing[0].task.done() and (hedge := self._begin(exchange, delay)) is not None:
                    racing.append(Entrant(hedge, exchange.req, partial(self._send, exchange, None)))
                winner = await self._decide(exchange, racing)
        except BaseException:
            for entrant in racing:
                self._drop(entrant)
                if entrant.attempt is not exchange.attempt:
                    self._lose(exchange, entrant, Outcome.OURS)
            raise
        try:
            return winner.task.result()
        finally:
            # An error refers to this frame by its traceback: it must not refer to the task that has the error.
            del winner, racing

    async def close(self) -> None:
        """Cut the losers that are still under way."""
        self._closed = True
        while self._losers:
            for task in self._losers:
                task.cancel()
            await asyncio.wait(tuple(self._losers))

    def as_dict(self) -> dict[str, Any]:
        """Counts since the start, losers that are under way, and the delay in seconds (None: not known yet)."""
        return {
            "sent": self.sent,
            "won": self.won,
            "refused": self.refused,
            "lingering": len(self._losers),
            "delay": self.delay,
        }

    def _has_choice(self, exchange: Raced) -> bool:
        if not exchange.may_race:
            return False
        made = sum(attempt.outcome is not Outcome.LEFT for attempt in exchange.tries)
        tried = (*exchange.call.tried, exchange.attempt.node)
        return made < self._retry.attempts and exchange.service.balancer.has_fresh(tried)

    def _begin(self, exchange: Raced, delay: float) -> Attempt | None:
        """A second attempt, if there may be one now."""
        service, call = exchange.service, exchange.call
        if self._closed or not self._has_choice(exchange):
            return None
        call.now = time.monotonic()
        if not service.ledger.withdraw(call.now):
            self.refused += 1
            return None
        tried = call.tried
        call.tried = (*tried, exchange.attempt.node)
        hedge = None
        try:
            hedge = service.begin(call)
        except Exception:
            # Whatever a policy or a limit raises: the request is under way already.
            log.debug("%s: no hedge", exchange.attempt.node.address, exc_info=True)
        finally:
            call.tried = tried
        if hedge is not None and (hedge.node is exchange.attempt.node or hedge.node in tried):
            # Only a policy that picks what is excluded gets here.
            hedge.land()
            service.observe(hedge, Outcome.OURS)
            hedge = None
        if hedge is None:
            # Without room there is no hedge, and what was not sent costs nothing.
            service.ledger.refund()
            return None
        self.sent += 1
        hedge.picked = f"hedge after {round(delay * 1000, 1):g} ms, {hedge.picked}"
        exchange.join(hedge)
        return hedge

    async def _send(
        self, exchange: Raced, latencies: Latencies | None, attempt: Attempt, req: ClientRequest
    ) -> ClientResponse:
        try:
            response = await exchange.send(attempt, req)
        except BaseException:
            if latencies is not None:
                latencies.record_at_least(time.monotonic() - attempt.started_at)
            # The writer of the body ends before this does, so that it has an owner.
            await req.close()
            raise
        if latencies is not None:
            # How fast a server fails says nothing about how long its answers take.
            answered = classify_answer(response) is Outcome.SUCCESS
            record = latencies.record if answered else latencies.record_at_least
            record(time.monotonic() - attempt.started_at)
        return response

    async def _decide(self, exchange: Raced, racing: list[Entrant]) -> Entrant:
        """The first useful answer, or the last failure. Whose end is not known yet stays in the list."""
        first = racing[0]
        while True:
            entrant = next((entrant for entrant in racing if entrant.task.done()), None)
            if entrant is None:
                await asyncio.wait([entrant.task for entrant in racing], return_when=asyncio.FIRST_COMPLETED)
                continue
            others = [other for other in racing if other is not entrant]
            if not others and entrant is first:
                return entrant
            useless = self._useless(exchange, entrant)
            racing.remove(entrant)
            if others and useless is not None:
                exchange.attempt = others[0].attempt
                self._fail(exchange, entrant, useless)
                continue
            self.won += useless is None and entrant is not first
            exchange.attempt, exchange.said = entrant.attempt, entrant.said
            for loser in others:
                self._see_off(exchange, loser)
            return entrant

    def _useless(self, exchange: Raced, entrant: Entrant) -> Outcome | None:
        """What a result shows that does not decide while the other attempt may succeed; None if it decides."""
        response = entrant.response
        try:
            outcome, said = exchange.service.judge(response or entrant.error)
        except Exception:  # noqa: BLE001 - a function of the user's: the exchange asks it again, and ends with that
            return None
        entrant.said = (outcome if said else None,)
        if response is None:
            return outcome
        repeats = self._retry.repeats_answer
        useful = outcome is Outcome.SUCCESS or not repeats(outcome, response.status, exchange.req, said=said)
        return None if useful else outcome

    def _fail(self, exchange: Raced, entrant: Entrant, outcome: Outcome) -> None:
        """Record a failure that does not decide, since the other attempt may still succeed."""
        attempt, response = entrant.attempt, entrant.response
        if response is not None:
            attempt.error = f"status {response.status}"
        else:
            attempt.error = in_words(entrant.error, exchange.url)
            attempt.land()
        self._lose(exchange, entrant, outcome)
        if response is None:
            # The other server was asked already; after it there may be none.
            exchange.trusts_others(attempt, entrant.error)
        else:
            # The connection is kept if the whole body is there already.
            response.release()
            attempt.land()
            exchange.service.answered(attempt, response, exchange.call)

    def _lose(self, exchange: Raced, entrant: Entrant, outcome: Outcome) -> None:
        exchange.service.observe(entrant.attempt, outcome)
        exchange.call.tried = (*exchange.call.tried, entrant.attempt.node)

    def _see_off(self, exchange: Raced, loser: Entrant) -> None:
        """Have a loser end soon, with as little waste as possible."""
        attempt = loser.attempt
        loser.hush()
        if not attempt.sent or self._closed or not self._hedge.linger:
            attempt.error = _LOST
            self._drop(loser)
            self._lose(exchange, loser, Outcome.OURS)
            return
        # What is to be seen now; what it showed is recorded when it has ended.
        attempt.outcome = Outcome.OURS
        attempt.error = _LOST
        attempt.elapsed = time.monotonic() - attempt.started_at
        task = asyncio.create_task(self._linger(exchange.service, loser, exchange.url, exchange.call))
        # No `finally` in the coroutine: a task that is cancelled before its first step has none.
        task.add_done_callback(lambda _: self._part(exchange.service, loser))
        self._own(task)

    async def _linger(self, service: RacedService, loser: Entrant, url: URL, call: Call) -> None:
        """Let a loser answer: what its head says of its node counts, and its connection is free again."""
        attempt = loser.attempt
        try:
            async with asyncio.timeout(self._hedge.linger):
                response = await loser.task
                outcome, _ = service.judge(response)
                loser.told = True
                attempt.error = "" if outcome is Outcome.SUCCESS else _LOST
                service.observe(attempt, Outcome.SUCCESS if outcome is Outcome.SUCCESS else Outcome.OURS)
                service.answered(attempt, response, call)
                if (response.content_length or 0) <= _LARGEST and response.content.exception() is None:
                    # aiohttp itself frees the connection when the whole body is there, read or not.
                    await response.content.wait_eof()
        except Exception as error:  # noqa: BLE001 - it is nobody's any more
            # Not `exc_info`: the URL's query may hold a secret.
            log.debug("the loser of a race failed: %s: %s", attempt, in_words(error, url))

    def _part(self, service: RacedService, loser: Entrant) -> None:
        """The end of a loser: nothing of it is left, and it is no blame for its server."""
        self._drop(loser)
        if not loser.told:
            service.observe(loser.attempt, Outcome.OURS)

    def _drop(self, entrant: Entrant) -> None:
        entrant.hush()
        entrant.drop()
        self._own(entrant.task)

    def _own(self, task: asyncio.Task[Any]) -> None:
        if not task.done():
            self._losers.add(task)
            task.add_done_callback(self._losers.discard)
