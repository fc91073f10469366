"""`Retry`: which failures lead to another attempt, how many, and after which pause."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

import aiohttp

from lbclient.outcome import Outcome
from lbclient.retrying.budget import Budget
from lbclient.retrying.replay import may_be_repeated

__all__ = ["Retry"]

# RFC 9110, section 9.2.2
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_STATUSES = frozenset({429, 502, 503, 504})
_UNSENT = (Outcome.CONNECT, Outcome.LEFT)
_REFUSED = (Outcome.GATEWAY, Outcome.OVERLOAD)
_ERROR = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a request is tried again, at a node that was not tried before while there is one.

    A request of which nothing was sent is tried again whatever its method. One that may have been processed is
    only if it is idempotent (by its method, or by an `Idempotency-Key` header) and its body can be sent once more.

    Attributes:
        attempts: of one request (each redirect hop counts anew), the first included; 1 for no retries.
        methods: that are idempotent (RFC 9110).
        statuses: of answers after which idempotent requests are tried again.
        exceptions: after which idempotent requests are tried again although they may have been processed.
        backoff: seconds; the pause before the n-th retry is drawn from 0 to `backoff` * 2**(n-1) ("full jitter").
            There is none after a failed connection, if another node is left.
        backoff_cap: the longest such pause in seconds (Envoy: 10 times the base).
        retry_after: the longest `Retry-After` in seconds that is waited for; an answer that asks for more is
            returned.
        budget: how many retries and hedges there may be beside the requests.
    """

    attempts: int = 3
    methods: Collection[str] = _IDEMPOTENT
    statuses: Collection[int] = _STATUSES
    exceptions: tuple[type[BaseException], ...] = (
        aiohttp.ServerDisconnectedError,
        aiohttp.ServerTimeoutError,
        aiohttp.ClientOSError,
    )
    backoff: float = 0.025
    backoff_cap: float = 0.25
    retry_after: float = 5.0
    budget: Budget = field(default_factory=Budget)

    def repeats_error(self, outcome: Outcome, error: BaseException, req: aiohttp.ClientRequest) -> bool:
        """Whether sending this request once more is safe, and likely to help, after it failed so."""
        if outcome in _UNSENT:
            return True
        if outcome is Outcome.OURS or not isinstance(error, self.exceptions):
            return False
        return may_be_repeated(req, self.methods)

    def repeats_answer(self, outcome: Outcome, status: int, req: aiohttp.ClientRequest) -> bool:
        """The same after it was answered so."""
        if outcome in (Outcome.SUCCESS, Outcome.OURS):
            return False
        # An answer that only a user's `classify` calls a failure has no status that says so.
        listed = status in self.statuses if status >= _ERROR else outcome in _REFUSED
        return listed and may_be_repeated(req, self.methods)

    def pause(self, retries: int, rng: random.Random) -> float:
        """Seconds to wait before the retry with this number, the first is 1."""
        return rng.uniform(0.0, min(self.backoff_cap, self.backoff * 2 ** min(retries - 1, 32)))
