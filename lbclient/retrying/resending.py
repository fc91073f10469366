"""What aiohttp does with a request that is sent once more, and what it needs for that."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import ClientRequest

from lbclient.retrying.file_bodies import take_turns

__all__ = ["repeated_by_aiohttp", "settle"]

# Methods that aiohttp by itself sends once more.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


def repeated_by_aiohttp(error: BaseException, req: Any) -> bool:
    """Whether aiohttp by itself sends a request once more that failed like this."""
    if req.method not in _IDEMPOTENT or getattr(req.body, "consumed", False):
        return False
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))


async def settle(req: ClientRequest) -> None:
    """Make a request that failed ready to be sent again."""
    # The cancelled writer rewinds a file body; it must be through before the next one begins.
    await req.close()
    take_turns(req.body)
    if "Expect" in req.headers:
        req.update_expect_continue()
