"""Whether a request may be sent a second time."""

from __future__ import annotations

from collections.abc import Collection

import aiohttp

__all__ = ["may_be_repeated"]

# https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
_IDEMPOTENCY_KEY = "Idempotency-Key"


def may_be_repeated(req: aiohttp.ClientRequest, methods: Collection[str]) -> bool:
    """Whether the request does the same when it is processed twice, and its body can be sent once more."""
    idempotent = req.method in methods or _IDEMPOTENCY_KEY in req.headers
    return idempotent and not getattr(req.body, "consumed", False)
