"""`Retry`: which failures lead to another attempt, how many, and after which pause."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

import aiohttp

from lbclient.options import at_least, error_classes, finite, header_name, methods, statuses, whole
from lbclient.outcome import Outcome
from lbclient.retrying.budget import Budget
from lbclient.retrying.replay import may_be_repeated

__all__ = ["Retry"]

# RFC 9110, section 9.2.2
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_STATUSES = frozenset({429, 502, 503, 504})
# After these there is no time left, or nothing was wrong.
_FINAL = frozenset({Outcome.SUCCESS, Outcome.OURS, Outcome.TIMEOUT})
# What a user's `classify` may call a result so that it is tried again, whatever status or exception it has.
_REPEATED = frozenset({Outcome.GATEWAY, Outcome.OVERLOAD, Outcome.CONNECT, Outcome.FAULT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a request is tried again, at a node that was not tried before while there is one.

    A request of which nothing was sent is tried again whatever its method and its body. One that may have been
    processed is only if it is idempotent (by its method, or by an `Idempotency-Key` header) and its body can be
    sent once more: bytes, text, JSON, forms, and files that can be rewound, but no generators.

    Attributes:
        attempts: of one request (each redirect hop counts anew), the first and hedges included; 1 for no retries.
        methods: that are idempotent (RFC 9110).
        statuses: 400 to 599, of answers after which idempotent requests are tried again.
        exceptions: after which idempotent requests are tried again although they may have been processed.
        backoff: seconds; the pause before the n-th retry is drawn from 0 to `backoff` * 2**(n-1), which is
            called full jitter (Envoy: 25 ms). There is none after a failed connection, if another node is left to
            which the last connection did not fail.
        backoff_cap: the longest such pause in seconds (Envoy: 10 times the base).
        retry_after: the longest `Retry-After` in seconds that is waited for; an answer that asks for more is
            returned. Status 429 is waited for in any case, others if there is no other node to go to.
        idempotency_key: a header that requests with other methods get if they have none, with a value that is the
            same in all attempts of the request and in no other request; the servers have to see to it that what
            comes twice is done once. None for no such header.
        budget: how many retries and hedges there may be beside the requests.

    Raises:
        ValueError, TypeError: for a wrong value.
    """

    attempts: int = 3
    methods: Collection[str] = _IDEMPOTENT
    statuses: Collection[int] = _STATUSES
    exceptions: Collection[type[Exception]] = (
        aiohttp.ServerDisconnectedError,
        aiohttp.ServerTimeoutError,
        aiohttp.ClientOSError,
        aiohttp.ClientConnectionResetError,
    )
    backoff: float = 0.025
    backoff_cap: float = 0.25
    retry_after: float = 5.0
    idempotency_key: str | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        whole("attempts", self.attempts)
        object.__setattr__(self, "methods", methods("methods", self.methods))
        object.__setattr__(self, "statuses", statuses("statuses", self.statuses))
        object.__setattr__(self, "exceptions", error_classes("exceptions", self.exceptions))
        at_least("backoff", self.backoff, 0)
        at_least("backoff_cap", self.backoff_cap, 0)
        finite("backoff_cap", self.backoff_cap)
        if self.backoff > self.backoff_cap:
            raise ValueError(f"backoff must be at most backoff_cap, {self.backoff_cap!r}, not {self.backoff!r}")
        at_least("retry_after", self.retry_after, 0)
        if self.idempotency_key is not None:
            header_name("idempotency_key", self.idempotency_key)
        if not isinstance(self.budget, Budget):
            raise TypeError(f"budget must be of type Budget, not {self.budget!r}")

    def may_repeat(self, req: aiohttp.ClientRequest) -> bool:
        """Whether the request does the same when it is processed twice, and can be sent twice."""
        return may_be_repeated(req, self.methods, self.idempotency_key)

    def repeats_error(
        self, outcome: Outcome, error: BaseException, req: aiohttp.ClientRequest, *, sent: bool, said: bool
    ) -> bool:
        """Whether sending this request once more is safe, and likely to help, after it failed so.

        Args:
            outcome: what the failure showed.
            error: the failure.
            req: the request.
            sent: whether it began to be written.
            said: whether the outcome is the word of a user's `classify`.
        """
        if not sent and not said and isinstance(error, aiohttp.ConnectionTimeoutError):
            return True  # also if it only waited for a place in the connector, which is nobody's fault
        if outcome in _FINAL:
            return False
        if not sent and outcome in (Outcome.CONNECT, Outcome.LEFT):
            return True
        listed = isinstance(error, tuple(self.exceptions)) or (said and outcome in _REPEATED)
        return listed and self.may_repeat(req)

    def repeats_answer(self, outcome: Outcome, status: int, req: aiohttp.ClientRequest, *, said: bool) -> bool:
        """The same after it was answered so."""
        if said:
            listed = outcome in _REPEATED or (outcome not in _FINAL and status in self.statuses)
        else:
            listed = status in self.statuses
        return listed and self.may_repeat(req)

    def pause(self, retries: int, rng: random.Random) -> float:
        """Seconds to wait before the retry with this number, the first is 1."""
        return rng.uniform(0.0, min(self.backoff_cap, self.backoff * 2 ** min(retries - 1, 32)))
