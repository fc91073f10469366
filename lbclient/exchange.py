"""`Exchange`: the attempts of one hop of a request, until one of them is answered."""

from __future__ import annotations

import logging
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.errors import AttemptsFailed, ConnectionGone, LBError, NothingSent
from lbclient.outcome import Outcome, asked, classify, classify_answer
from lbclient.passage import Passage
from lbclient.retrying import Retries, retry_after
from lbclient.retrying.file_bodies import IN_MEMORY, take_turns
from lbclient.retrying.resending import repeated_by_aiohttp, settle
from lbclient.service import Service
from lbclient.timed import blame, timed
from lbclient.tried import in_words, keep, keep_in, tell
from lbclient.waiting import wait, wait_in_time

__all__ = ["Exchange"]

log = logging.getLogger(__name__)

_ERROR = 400
# Reading it from the class takes longer, and each request needs it.
_SUCCESS = Outcome.SUCCESS
_TOO_MANY_REQUESTS = 429
# Of a session that repeats requests by itself: aiohttp has no public name for it.
_REPEATS = "_retry_connection"
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
        said: what the user's `classify` said of that result, if it was asked already.
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
        "said",
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
        self.said: tuple[Outcome | None] | None = None
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
        body = self.req.body
        if type(body) not in IN_MEMORY:
            take_turns(body)
        try:
            attempt = service.begin(call) or await wait(service, call, self.req, self.tries)
            while True:
                self.attempt = attempt
                self.tries.append(attempt)
                try:
                    response = await (self.send(attempt, self.req) if hedging is None else hedging.race(self))
                except BaseException as error:
                    pause = self._after_error(error)
                    another = None if pause is None else await self._begin_another(pause, error)
                    if another is None:
                        self._tell(error)
                        if repeated_by_aiohttp(error, self.req) and getattr(self.req.session, _REPEATS, False):
                            raise self._instead_of(error) from error
                        raise
                else:
                    try:
                        pause = self._after_answer(response)
                        another = None if pause is None else await self._begin_another(pause, response)
                    except BaseException:
                        # A function of the user's raised, or it was cancelled in the pause.
                        response.close()
                        self.attempt.land()
                        raise
                    if another is None:
                        if self.attempt.conn is not None:
                            self.attempt.follow(response, service.observe)
                        keep(response, self.tries)
                        answer = response
                        return response
                attempt = another
                service.ledger.retries += 1
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
        limit = self.service.settings.attempt_timeout
        # Without one there is one coroutine less, and that is the usual case.
        return self._handler(req) if limit is None else timed(self._handler(req), limit, attempt)

    def join(self, hedge: Attempt) -> None:
        """A hedge has begun: it is one of the attempts."""
        self.tries.append(hedge)
        self._further().count()

    async def _begin_another(self, pause: float, last: ClientResponse | BaseException) -> Attempt | None:
        """Begin a further attempt after so many seconds; None if it cannot, for a reason that is no server's.

        What the last attempt brought is not given up before: it says more than that reason.
        """
        if pause:
            await self.service.slots.pause(sleep(pause))
        service, before = self.service, self.attempt
        self.call.now = time.monotonic()
        why = "no slot is free"
        try:
            if before.conn is None:
                another = service.begin(self.call) or await wait_in_time(
                    service, self.call, self.req, self.tries, self.passage.deadline
                )
            else:
                # The rest of its answer is on the way and has a slot: to wait with that is to wait for oneself.
                another = service.begin_instead(self.call, before)
        except (LBError, TimeoutError) as error:
            # Where nothing was sent nothing was said, and after the deadline nobody can read an answer.
            if isinstance(last, NothingSent if isinstance(error, LBError) else ClientResponse):
                raise
            another, why = None, in_words(error, self.url)
        if another is None:
            self._not_again(why)
            return None
        if isinstance(last, ClientResponse):
            # The connection is kept if the whole body is there already.
            last.release()
            before.land()
        try:
            await settle(self.req)
        except BaseException:
            service.give_back(another)
            raise
        return another

    def _after_error(self, error: BaseException) -> float | None:
        """Seconds until the next attempt, or None if this error is the last word."""
        attempt, call = self.attempt, self.call
        attempt.error = in_words(error, self.url)
        attempt.land()
        said = self._ask(error)
        outcome = said or blame(classify(error), error, attempt, self.req, self.passage.total)
        self.service.observe(attempt, outcome)
        if not isinstance(error, ConnectionGone):
            call.tried = (*call.tried, attempt.node)
        retry = self.service.settings.retry
        if not retry.repeats_error(outcome, error, self.req, sent=attempt.sent, said=said is not None):
            return None
        return self._pause(outcome) if self.trusts_others(attempt, error) else None

    @property
    def may_race(self) -> bool:
        """Whether two servers may be asked at the same time: after one that cannot be trusted only one more is."""
        return self._retries is None or not self._retries.untrusted

    def trusts_others(self, attempt: Attempt, error: BaseException) -> bool:
        """Whether another server may be asked after this failure; to be asked once for each."""
        if not isinstance(error, _UNTRUSTED):
            return True
        # Each further one of the same node would say the same.
        level = logging.WARNING if attempt.node.connect_failures <= 1 else logging.DEBUG
        log.log(level, "%s: %s cannot be trusted: %s", self.service.name, attempt.node.address, error)
        return self._further().after_untrusted(self.call.tried)

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
                return self._pause(outcome, asked=retry_after(response.headers), everywhere=everywhere)
        return None

    def _ask(self, result: ClientResponse | BaseException) -> Outcome | None:
        """What the user's `classify` says; if it fails the attempt has the usual outcome."""
        said, self.said = self.said, None
        try:
            return asked(self.service.settings.classify, result) if said is None else said[0]
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
                self._not_again(further.refusal)
        elif outcome is not Outcome.LEFT and self.service.balancer.exhausted(call.tried):
            # Once more from the beginning.
            call.tried = ()
        return pause

    def _not_again(self, why: str) -> None:
        self.attempt.error = f"{self.attempt.error}; not tried again: {why}"
        self._further().refusal = why

    def _tell(self, error: BaseException) -> None:
        # What says nothing by itself, as the total deadline, has a note on its own attempt as well.
        tell(error, self.tries, besides=self.attempt if str(error) else None)
        if self._retries is not None and self._retries.refusal:
            error.add_note(f"not tried again: {self._retries.refusal}")

    def _instead_of(self, error: BaseException) -> AttemptsFailed:
        # Where it is raised it must have no name: it would refer to itself by its traceback.
        last = in_words(error, self.url)
        final = AttemptsFailed(f"{len(self.tries)} attempts failed, the last with {last}")
        keep_in(final, self.tries)
        return final
