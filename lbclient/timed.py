"""An attempt with a time-out of its own, and whether a node is to blame for a deadline that was missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import aiohttp
from aiohttp import ClientRequest, ClientResponse

from lbclient.attempt import Attempt

__all__ = ["timed", "was_silent"]

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


def was_silent(error: BaseException, attempt: Attempt, req: ClientRequest, total: float | None) -> bool:
    """Whether the deadline of the whole request is over, and most of its time went by at the attempt's node."""
    if not total or attempt.sent_at is None or not isinstance(error, TimeoutError):
        return False
    # A body that the caller makes while it is being sent may be what took so long.
    made_up = getattr(req.body, "consumed", False)
    return not made_up and time.monotonic() - attempt.sent_at >= _MOST_OF_IT * total
