"""The attempts of a request, hop by hop, and what kind of attempt each is."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp

from lbclient.attempt import Attempt
from lbclient.tried import attempts

__all__ = ["Hop", "hops", "is_hedge", "is_retried"]

# The attempts until one was answered; a request that is redirected has several hops.
Hop = tuple[Attempt, ...]

_HEDGE = "hedge after "


def hops(result: aiohttp.ClientResponse | BaseException) -> tuple[Hop, ...]:
    """What was tried for a response or an exception."""
    earlier = [attempts(response) for response in getattr(result, "history", ())]
    return (*earlier, attempts(result)[sum(map(len, earlier)) :])


def is_hedge(attempt: Attempt) -> bool:
    """Whether it was sent while another attempt was under way."""
    return attempt.picked.startswith(_HEDGE)


def is_retried(hop: Sequence[Attempt]) -> bool:
    """Whether there was an attempt after a failure: a hedge alone is none."""
    return sum(not is_hedge(attempt) for attempt in hop) > 1
