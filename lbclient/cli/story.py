"""Why an attempt was, or was not, followed by another one, by the rules that the session went by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from lbclient.attempt import Attempt
from lbclient.cli.hops import Hop, is_hedge
from lbclient.cli.sending import Answer, Request
from lbclient.cli.tally import counted
from lbclient.outcome import Outcome
from lbclient.retrying.replay import IDEMPOTENCY_KEY

__all__ = ["Step", "steps"]

_REFUSED = "; not tried again: "
_LOST = "the other attempt was answered first"
_NO_TIME = re.compile(r"(TimeoutError|CancelledError)?$")
_STATUS = re.compile(r"status (\d{3})")


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt of a request.

    Attributes:
        attempt: itself.
        error: what failed, in words.
        repeated: whether the request was tried again after it; None if there was no question.
        because: why, or why not.
    """

    attempt: Attempt
    error: str
    repeated: bool | None
    because: str

    def __str__(self) -> str:
        """What failed and what followed; empty after a success."""
        followed = "" if self.repeated is None else f"{'' if self.repeated else 'not '}tried again: {self.because}"
        return "; ".join(filter(None, (self.error, followed)))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        said = {"error": self.error, "repeated": self.repeated, "because": self.because}
        return self.attempt.as_dict() | {"hedge": is_hedge(self.attempt)} | said


def steps(answer: Answer, request: Request) -> Iterator[Step]:
    """What happened, attempt by attempt."""
    for hop in answer.hops:
        succeeded = any(attempt.outcome is Outcome.SUCCESS for attempt in hop)
        for number, attempt in enumerate(hop):
            error, _, refusal = attempt.error.partition(_REFUSED)
            lost = attempt.outcome is Outcome.OURS and error.startswith(_LOST)
            if answer.by in hop and answer.by is not attempt and attempt.outcome is Outcome.SUCCESS:
                error, lost = _LOST, True
            if refusal:
                yield Step(attempt, error, repeated=False, because=refusal)
            elif lost or attempt.outcome is None:
                yield Step(attempt, error, repeated=None, because="")
            elif any(not is_hedge(later) for later in hop[number + 1 :]):
                yield Step(attempt, error, repeated=True, because=_why(attempt, request))
            elif succeeded:
                # The other one of its race went on, and had the answer.
                yield Step(attempt, error, repeated=None, because="")
            else:
                yield Step(attempt, error, repeated=False, because=_why_not(hop, attempt, answer, request))


def _why(attempt: Attempt, request: Request) -> str:
    if attempt.outcome is Outcome.LEFT or not attempt.sent:
        return "nothing was sent"
    status = _STATUS.match(attempt.error)
    what = f"{request.verb} may be sent twice"
    # What a status below 500 shows is no error, so the attempt does not have it.
    listed = status is not None or attempt.outcome is Outcome.SUCCESS
    return f"{what}, and its status is one of {_statuses(request)}" if listed else what


def _why_not(hop: Hop, attempt: Attempt, answer: Answer, request: Request) -> str:
    outcome, retry = attempt.outcome, request.retry
    status = _STATUS.match(attempt.error)
    late = outcome is Outcome.TIMEOUT or (outcome is Outcome.OURS and _NO_TIME.match(attempt.error))
    begun = isinstance(answer.error, aiohttp.ClientPayloadError)
    made = sum(each.outcome is not Outcome.LEFT for each in hop)
    # In the order in which the session asks.
    reasons = {
        "no time is left": late,
        "it is no fault of the server": outcome is Outcome.OURS,
        "a part of the answer is there already": begun,
        f"its status is none of {_statuses(request)}": status and int(status[1]) not in retry.statuses,
        f"{request.verb} may have been processed, and has no {IDEMPOTENCY_KEY}": attempt.sent
        and not _repeatable(request),
        f"no more than {counted(retry.attempts, 'attempt')}": made >= retry.attempts,
    }
    return next((reason for reason, holds in reasons.items() if holds), "it would be the same again")


def _repeatable(request: Request) -> bool:
    keys = {IDEMPOTENCY_KEY.lower(), (request.retry.idempotency_key or IDEMPOTENCY_KEY).lower()}
    if request.retry.idempotency_key or request.verb in request.retry.methods:
        return True
    return any(name.lower() in keys for name, _ in request.headers)


def _statuses(request: Request) -> str:
    return ", ".join(map(str, sorted(request.retry.statuses))) or "none"
