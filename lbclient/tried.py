"""What was tried for a request, kept on the response or the exception that it ended with."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import ClientResponse
from yarl import URL

from lbclient.attempt import Attempt

__all__ = ["attempts", "in_words", "keep", "keep_in", "tell"]

_ATTEMPTS = "_lbclient_attempts"
_ERROR = 400


class _Tries(list[Attempt]):
    """What an exception has of them: an exception that is pickled, as by a pool of processes, goes without."""

    def __reduce__(self) -> tuple[type[list[Attempt]], tuple[()]]:
        return list, ()


def attempts(result: ClientResponse | BaseException) -> tuple[Attempt, ...]:
    """What was tried for a response, redirects included, or for an exception, in order.

    That includes the exceptions of `raise_for_status`. Empty for a request that did not go to a service, for what
    reading a body raises: its response has them, and for a pickled exception: its notes tell.
    """
    # TooManyRedirects has a history as well.
    earlier = getattr(result, "history", ())
    last: Any = result
    if isinstance(result, aiohttp.ClientResponseError) and not hasattr(result, _ATTEMPTS):
        # Nothing else leads from there to the response.
        last = result.request_info
    return tuple(attempt for r in (*earlier, last) for attempt in getattr(r, _ATTEMPTS, ()))


def keep(response: ClientResponse, tries: list[Attempt]) -> None:
    """Attach what was tried to the answer."""
    setattr(response, _ATTEMPTS, tries)
    if response.status >= _ERROR:
        with suppress(AttributeError):
            # What `raise_for_status` raises has this of the response, and nothing else.
            setattr(response.request_info, _ATTEMPTS, tries)


def keep_in(error: BaseException, tries: list[Attempt]) -> None:
    """Attach what was tried to an exception."""
    setattr(error, _ATTEMPTS, _Tries(tries))


def tell(error: BaseException, tries: list[Attempt], besides: Attempt | None = None) -> None:
    """Attach what was tried to an exception, with notes on the attempts beside the one that it came from."""
    for number, attempt in enumerate(tries, 1):
        if attempt is not besides:
            error.add_note(f"attempt {number}: {attempt}")
    keep_in(error, tries)


def in_words(error: BaseException, url: URL) -> str:
    """What failed, for logs: some of aiohttp's messages have the URL, and its query may hold a secret."""
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    query = url.raw_query_string
    return words.replace(f"?{query}", "") if query else words
