"""`Exchange`: the attempts of one hop of a request, until one of them is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.errors import AttemptsFailed
from lbclient.outcome import Outcome, asked, classify, classify_answer
from lbclient.passage import Passage, timer
from lbclient.refusals import no_endpoints
from lbclient.resending import repeated_by_aiohttp, settle
from lbclient.retrying import Retries, retry_after
from lbclient.service import Service
from lbclient.tried import in_words, keep, tell

__all__ = ["Exchange"]

log = logging.getLogger(__name__)

_ERROR = 400
# Reading it from the class takes longer, and each request needs it.
_SUCCESS = Outcome.SUCCESS
_TOO_MANY_REQUESTS = 429
# A node that was silent for so much of the request's whole time is why the deadline was missed.
_MOST_OF_IT = 0.5
_UNTRUSTED = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)


class Exchange:
    """One hop of a request: attempt after attempt, until one is answered, or no further one makes sense.

    Attributes:
        service: where it goes.
        call: what its attempts share for the balancer.
        url: the logical URL.
        req: the request; it is pointed at one node after the other.
        passage: the whole request.
        tries: the attempts so far.
        attempt: that of them whose result is being looked at.
    """

    __slots__ = (
        "_deadline_header",
        "_handler",
        "_on_end",
        "_proxy",
        "_retries",
        "_server_hostname",
        "attempt",
        "call",
        "passage",
        "req",
        "service",
        "tries",
        "url",
    )

    def __init__(
        self,
        service: Service,
        req: ClientRequest,
        handler: ClientHandlerType,
        passage: Passage,
        on_end: Callable[[Passage, ClientResponse | None], None],
    ) -> None:
        self.service = service
        self.call = service.enter(req, passage)
        self.req = req
        self.passage = passage
        self.tries: list[Attempt] = []
        self._handler = handler
        self.url = req.url
        self._proxy = req.proxy
        self._server_hostname = req.server_hostname
        self._on_end = on_end
        self._retries: Retries | None = None
        self._deadline_header: str | None = None
        if service.settings.adds_headers:
            self._choose_headers()

    async def run(self) -> ClientResponse:
        """Try until there is an answer to return, or an error to raise."""
        service, call = self.service, self.call
        answer: ClientResponse | None = None
        hedging = service.hedging
        hedging = None if hedging is None or not hedging.suits(self.req) else hedging
        try:
            while True:
                attempt = service.begin(call) or await self._wait()
                self.attempt = attempt
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
                    try:
                        pause = self._after_answer(response)
                    except BaseException:
                        # A function of the user's raised.
                        response.close()
                        self.attempt.land()
                        raise
                    if pause is None:
                        answer = response
                        return response
                service.ledger.retries += 1
                await settle(self.req)
                if pause:
                    await sleep(pause)
                call.now = time.monotonic()
        finally:
            self._on_end(self.passage, answer)
            self._restore()

    def _restore(self) -> None:
        # A middleware outside of this one may look at the request again, or send it once more.
        req = self.req
        req.url, req.proxy, req.server_hostname = self.url, self._proxy, self._server_hostname
        try:  # noqa: SIM105 - `suppress`, or a look into `vars(req)`, takes longer than all the rest of this
            del req.send
        except AttributeError:
            pass  # no attempt has aimed it, or only copies of it
        if self._deadline_header is not None:
            req.headers.pop(self._deadline_header, None)

    def _choose_headers(self) -> None:
        settings, req = self.service.settings, self.req
        # Callers that say themselves what is left, or what names the request, know better.
        if settings.deadline_header is not None and settings.deadline_header not in req.headers:
            self._deadline_header = settings.deadline_header
        key = settings.retry.idempotency_key
        if key is not None and req.method not in settings.retry.methods and key not in req.headers:
            req.headers[key] = self.passage.idempotency_key

    def send(self, attempt: Attempt, req: ClientRequest) -> Awaitable[ClientResponse]:
        """Send the request to the attempt's node."""
        attempt.aim(req, self.url, self._server_hostname)
        if self._deadline_header is not None and self.passage.deadline is not None:
            left = max(0.0, self.passage.deadline - time.monotonic())
            req.headers[self._deadline_header] = str(int(left * 1000))
        if self.service.settings.attempt_timeout is None:
            # One coroutine less, and the usual case.
            return self._handler(req)
        return self._timed(attempt, req)

    def join(self, hedge: Attempt) -> None:
        """A hedge has begun: it is one of the attempts."""
        self.tries.append(hedge)
        self._further().count()

    async def _wait(self) -> Attempt:
        try:
            with timer(self.req):
                return await self.service.wait_and_begin(self.call)
        except BaseException as error:
            if isinstance(error, TimeoutError):
                error.add_note(self._awaited())
            tell(error, self.tries)
            raise

    def _awaited(self) -> str:
        service, call = self.service, self.call
        if service.balancer.nodes:
            return f"service {service.name!r}: waited for a slot; {service.slots.in_flight} attempts are in flight"
        wait = round(time.monotonic() - call.now, 1)
        return str(no_endpoints(service.name, service.watcher, service.balancer, tried=len(call.tried), wait=wait))

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
        attempt.error = in_words(error, self.url)
        attempt.land()
        said = self._ask(error)
        outcome = said or classify(error)
        if said is None and outcome is Outcome.OURS and self._was_silent(error):
            outcome = Outcome.TIMEOUT
        self.service.observe(attempt, outcome)
        call.tried = (*call.tried, attempt.node)
        retry = self.service.settings.retry
        if not retry.repeats_error(outcome, error, self.req, sent=attempt.sent, said=said is not None):
            return None
        if isinstance(error, _UNTRUSTED):
            # Each further one of the same node would say the same.
            level = logging.WARNING if attempt.node.connect_failures <= 1 else logging.DEBUG
            log.log(level, "%s: %s cannot be trusted: %s", self.service.name, attempt.node.address, error)
            if not self._further().after_untrusted(call.tried):
                return None
        return self._pause(outcome)

    def _after_answer(self, response: ClientResponse) -> float | None:
        """Seconds until the next attempt, or None if this is the answer."""
        service, attempt, status = self.service, self.attempt, response.status
        said = None if service.settings.classify is None else self._ask(response)
        if said is None and status < _ERROR:
            outcome = _SUCCESS
        else:
            outcome = said or classify_answer(response)
            if outcome is not _SUCCESS:
                attempt.error = f"status {status}" if said is None else f"status {status}, classified so"
        service.observe(attempt, outcome)
        if service.watches:
            service.answered(attempt, response, self.call)
        if attempt.sent_at is None:
            attempt.land()  # a middleware behind this one answered by itself
        if outcome is not _SUCCESS or status >= _ERROR:
            retry = service.settings.retry
            if retry.repeats_answer(outcome, status, self.req, said=said is not None):
                self.call.tried = (*self.call.tried, attempt.node)
                # Who limits the rate of a client mostly does so for all nodes together.
                everywhere = status == _TOO_MANY_REQUESTS
                pause = self._pause(outcome, asked=retry_after(response.headers), everywhere=everywhere)
                if pause is not None:
                    # The connection is kept if the whole body is there already.
                    response.release()
                    return pause
        if attempt.conn is not None:
            attempt.follow(response, service.observe)
        keep(response, self.tries)
        return None

    def _ask(self, result: ClientResponse | BaseException) -> Outcome | None:
        """What the user's `classify` says; if it fails the attempt has the usual outcome."""
        try:
            return asked(self.service.settings.classify, result)
        except Exception as error:
            usual = classify(result) if isinstance(result, BaseException) else classify_answer(result)
            self.service.observe(self.attempt, usual)
            tell(error, self.tries)
            raise

    def _further(self) -> Retries:
        # Most requests need none.
        if self._retries is None:
            service = self.service
            rules, deadline = service.settings.retry, self.passage.deadline
            self._retries = Retries(rules, service.ledger, service.balancer, service.rng, deadline)
        return self._retries

    def _pause(self, outcome: Outcome, *, asked: float = 0.0, everywhere: bool = False) -> float | None:
        """Seconds until the next attempt, or None if there is to be none."""
        if self.req.session.closed:
            return None
        call, attempt, further = self.call, self.attempt, self._further()
        now = time.monotonic()
        pause = further.after(outcome, call.tried, now, sent=attempt.sent, asked=asked, everywhere=everywhere)
        if pause is None:
            if further.refusal:
                attempt.error = f"{attempt.error}; not tried again: {further.refusal}"
        elif outcome is not Outcome.LEFT and self.service.balancer.exhausted(call.tried):
            # Once more from the beginning.
            call.tried = ()
        return pause

    def _was_silent(self, error: BaseException) -> bool:
        """Whether the total deadline is over, and most of its time went by at the attempt's node."""
        total, sent_at = self.passage.total, self.attempt.sent_at
        if not total or sent_at is None or not isinstance(error, TimeoutError):
            return False
        # A body that the caller makes while it is being sent may be what took so long.
        made_up = getattr(self.req.body, "consumed", False)
        return not made_up and time.monotonic() - sent_at >= _MOST_OF_IT * total

    def _final(self, error: BaseException) -> BaseException:
        # What says nothing by itself, as the total deadline, has a note on its own attempt as well.
        tell(error, self.tries, besides=self.attempt if str(error) else None)
        if self._retries is not None and self._retries.refusal:
            error.add_note(f"not tried again: {self._retries.refusal}")
        if repeated_by_aiohttp(error, self.req) and getattr(self.req.session, "_retry_connection", False):
            last = in_words(error, self.url)
            final = AttemptsFailed(f"{len(self.tries)} attempts failed, the last with {last}")
            keep(final, self.tries)
            return final
        return error
