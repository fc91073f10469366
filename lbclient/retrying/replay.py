"""Whether a request may be sent a second time."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import aiohttp

__all__ = ["IDEMPOTENCY_KEY", "may_be_repeated", "replayable"]

# https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
IDEMPOTENCY_KEY = "Idempotency-Key"


def may_be_repeated(
    req: aiohttp.ClientRequest, methods: Collection[str], key: str | None = IDEMPOTENCY_KEY
) -> bool:
    """Whether the request does the same when it is processed twice, and its body can be sent once more.

    `key` is a header besides `Idempotency-Key` that says so of a request with another method.
    """
    idempotent = (
        req.method in methods or IDEMPOTENCY_KEY in req.headers or (key is not None and key in req.headers)
    )
    return idempotent and replayable(req.body)


def replayable(body: Any) -> bool:
    """Whether a body that was sent, or begun to be, can be sent from its beginning once more.

    aiohttp rewinds files to where they were at first; of those that cannot be rewound it would send the rest.
    """
    if getattr(body, "consumed", False):
        return False
    if isinstance(body, aiohttp.MultipartWriter):
        return all(replayable(part) for part, *_ in body)
    # The one private name that is read; without it `consumed` is true only after a rewinding that failed.
    file = getattr(body, "_value", None)
    return not isinstance(file, io.IOBase) or (not file.closed and file.seekable())
