"""An attempt with a time-out of its own, and whether a node is to blame for a deadline that was missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import aiohttp
from aiohttp import ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.outcome import Outcome

__all__ = ["blame", "timed"]

# A node that was silent for so much of the request's whole time is why the deadline was missed.
_MOST_OF_IT = 0.5


async def timed(sending: Awaitable[ClientResponse], limit: float, attempt: Attempt) -> ClientResponse:
    """Give an attempt so many seconds; raises aiohttp's own time-outs if it has no answer by then."""
    try:
        async with asyncio.timeout(limit) as deadline:
            return await sending
    except TimeoutError as error:
        if not deadline.expired() or isinstance(error, aiohttp.ServerTimeoutError):
            raise
        expired = aiohttp.SocketTimeoutError if attempt.sent else aiohttp.ConnectionTimeoutError
        raise expired(f"{attempt.node.address} gave no answer within {limit:g} s") from error


def blame(
    outcome: Outcome, error: BaseException, attempt: Attempt, req: ClientRequest, total: float | None
) -> Outcome:
    """The outcome, unless nothing was sent, or a deadline's time went by elsewhere, or all of it at the node.

    Args:
        outcome: what the error usually means.
        error: the end of the attempt.
        attempt: which one.
        req: what was sent.
        total: seconds for the whole request; None if there is no limit, or none that is known.
    """
    if outcome is Outcome.FAULT and not attempt.sent:
        return Outcome.CONNECT
    # A body that the caller makes while it is being sent may be what took so long.
    made_up = getattr(req.body, "consumed", False)
    if made_up and outcome is Outcome.FAULT and isinstance(error.__cause__, TimeoutError):
        return Outcome.OURS
    missed = outcome is Outcome.OURS and isinstance(error, TimeoutError)
    if not missed or made_up or not total or attempt.sent_at is None:
        return outcome
    return Outcome.TIMEOUT if time.monotonic() - attempt.sent_at >= _MOST_OF_IT * total else outcome
