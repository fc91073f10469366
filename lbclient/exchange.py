"""`Exchange`: the attempts of one hop of a request, until one of them is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.errors import AttemptsFailed
from lbclient.outcome import Outcome
from lbclient.passage import Passage
from lbclient.retrying import retry_after
from lbclient.service import Service

__all__ = ["Exchange", "attempts", "repeated_by_aiohttp", "settle"]

_ATTEMPTS = "_lbclient_attempts"
# Methods that aiohttp by itself sends once more.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_TOO_MANY_REQUESTS = 429
# A node that was silent for so much of the request's whole time is why the deadline was missed.
_MOST_OF_IT = 0.5


def attempts(result: ClientResponse | BaseException) -> tuple[Attempt, ...]:
    """What was tried for a response, redirects included, or for an exception, in order.

    Empty for a request that did not go to a service.
    """
    # TooManyRedirects has a history as well.
    earlier = getattr(result, "history", ())
    return tuple(attempt for r in (*earlier, result) for attempt in getattr(r, _ATTEMPTS, ()))


class Exchange:
    """One hop of a request: attempt after attempt, until one is answered, or no further one makes sense.

    Attributes:
        service: where it goes.
        call: what its attempts share for the balancer.
        req: the request; it is pointed at one node after the other.
        passage: the whole request.
        tries: the attempts so far.
        attempt: that of them whose result is being looked at.
    """

    __slots__ = (
        "_free",
        "_handler",
        "_server_hostname",
        "_url",
        "attempt",
        "call",
        "passage",
        "req",
        "service",
        "tries",
    )

    def __init__(self, service: Service, req: ClientRequest, handler: ClientHandlerType, passage: Passage) -> None:
        self.service = service
        self.call = service.enter(req, passage)
        self.req = req
        self.passage = passage
        self.tries: list[Attempt] = []
        self._handler = handler
        self._url = req.url
        self._server_hostname = req.server_hostname
        # Attempts that do not count: nothing was wrong with the request or the node.
        self._free = 0

    async def run(self) -> ClientResponse:
        """Try until there is an answer to return, or an error to raise."""
        service, call = self.service, self.call
        hedging = service.hedging if service.hedging is not None and service.hedging.suits(self.req) else None
        while True:
            self.attempt = attempt = service.begin(call) or await self._wait()
            self.tries.append(attempt)
            try:
                response = await (self.send(attempt, self.req) if hedging is None else hedging.race(self))
            except BaseException as error:
                pause = self._after_error(error)
                if pause is None:
                    final = self._final(error)
                    if final is error:
                        raise
                    raise final from error
            else:
                pause = self._after_answer(response)
                if pause is None:
                    return response
            await settle(self.req)
            if pause:
                await asyncio.sleep(pause)

    def send(self, attempt: Attempt, req: ClientRequest) -> Awaitable[ClientResponse]:
        """Send the request to the attempt's node."""
        attempt.aim(req, self._url, self._server_hostname)
        settings = self.service.settings
        if settings.deadline_header is not None and self.passage.deadline is not None:
            left = max(0.0, self.passage.deadline - time.monotonic())
            req.headers[settings.deadline_header] = str(int(left * 1000))
        # One coroutine less where there is no limit, which is the usual case.
        return self._handler(req) if settings.attempt_timeout is None else self._timed(attempt, req)

    async def _wait(self) -> Attempt:
        try:
            return await self.service.wait_and_begin(self.call)
        except BaseException as error:
            _tell(error, self.tries)
            raise

    async def _timed(self, attempt: Attempt, req: ClientRequest) -> ClientResponse:
        limit = self.service.settings.attempt_timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                return await self._handler(req)
        except TimeoutError as error:
            if not deadline.expired() or isinstance(error, aiohttp.ServerTimeoutError):
                raise
            expired = aiohttp.SocketTimeoutError if attempt.sent else aiohttp.ConnectionTimeoutError
            raise expired(f"{attempt.node.address} gave no answer within {limit:g} s") from error

    def _after_error(self, error: BaseException) -> float | None:
        """Seconds until the next attempt, or None if this error is the last word."""
        attempt, call = self.attempt, self.call
        outcome = self.service.judge(error)
        if outcome is Outcome.OURS and isinstance(error, TimeoutError) and self._was_silent(attempt):
            outcome = Outcome.TIMEOUT
        attempt.error = f"{type(error).__name__}: {error}"
        attempt.land()
        self.service.observe(attempt, outcome)
        call.tried = (*call.tried, attempt.node)
        if not self.service.settings.retry.repeats_error(outcome, error, self.req):
            return None
        return self._pause(outcome, error)

    def _after_answer(self, response: ClientResponse) -> float | None:
        """Seconds until the next attempt, or None if this is the answer."""
        service, attempt = self.service, self.attempt
        outcome = service.judge(response)
        service.observe(attempt, outcome)
        service.answered(attempt, response, self.call)
        if not attempt.sent:
            attempt.land()  # a middleware behind this one answered by itself
        if outcome is not Outcome.SUCCESS and service.settings.retry.repeats_answer(
            outcome, response.status, self.req
        ):
            self.call.tried = (*self.call.tried, attempt.node)
            pause = self._pause(outcome, response)
            if pause is not None:
                # The connection is kept if the whole body is there already.
                response.release()
                return pause
        setattr(response, _ATTEMPTS, self.tries)
        return None

    def _pause(  # noqa: PLR0911 - each reason not to try again is one
        self, outcome: Outcome, result: ClientResponse | BaseException
    ) -> float | None:
        """Seconds until the next attempt, or None if there is to be none."""
        service, call = self.service, self.call
        retry, balancer = service.settings.retry, service.balancer
        made = len(self.tries) - self._free
        if self.req.session.closed:
            return None
        if outcome is Outcome.LEFT:
            self._free += 1
            return 0.0
        if made >= retry.attempts:
            return None
        elsewhere = not balancer.exhausted(call.tried)
        # Nothing was sent, and another node is likely to be there: that makes nobody's load larger.
        free = outcome is Outcome.CONNECT and balancer.has_fresh(call.tried)
        pause = 0.0 if free else retry.pause(made, service.rng)
        if isinstance(result, ClientResponse):
            asked = retry_after(result.headers)
            if result.status == _TOO_MANY_REQUESTS or not elsewhere:
                # Who limits the rate of a client mostly does so for all nodes together.
                if asked > retry.retry_after:
                    return None
                pause = max(pause, asked)
        now = time.monotonic()
        if self.passage.deadline is not None and now + pause >= self.passage.deadline:
            return None
        if not free and not service.ledger.withdraw(now):
            return None
        if not elsewhere:
            call.tried = ()
        return pause

    def _was_silent(self, attempt: Attempt) -> bool:
        total = self.passage.total
        if attempt.sent_at is None or not total:
            return False
        return time.monotonic() - attempt.sent_at >= _MOST_OF_IT * total

    def _final(self, error: BaseException) -> BaseException:
        _tell(error, self.tries, besides=self.attempt)
        if repeated_by_aiohttp(error, self.req) and getattr(self.req.session, "_retry_connection", False):
            final = AttemptsFailed(
                f"{len(self.tries)} attempts failed, the last with {type(error).__name__}: {error}"
            )
            setattr(final, _ATTEMPTS, tuple(self.tries))
            return final
        return error


def _tell(error: BaseException, tries: list[Attempt], besides: Attempt | None = None) -> None:
    """Attach what was tried to an exception, and notes on the attempts beside the one that it came from."""
    for number, attempt in enumerate(tries, 1):
        if attempt is not besides:
            error.add_note(f"attempt {number}: {attempt}")
    setattr(error, _ATTEMPTS, tuple(tries))


def repeated_by_aiohttp(error: BaseException, req: Any) -> bool:
    """Whether aiohttp by itself sends a request once more that failed like this."""
    if req.method not in _IDEMPOTENT or isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))


async def settle(req: ClientRequest) -> None:
    """Make a request that failed ready to be sent again."""
    # The cancelled writer rewinds a file body; it must be through before the next one begins.
    await req.close()
    if "Expect" in req.headers:
        req.update_expect_continue()
