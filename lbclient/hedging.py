"""`Hedging`: races two attempts of one request."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from aiohttp import ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.hedge import Hedge
from lbclient.retrying import Retry, may_be_repeated

__all__ = ["Hedging", "Raced"]


class Raced(Protocol):
    """What a race needs of the exchange whose attempts it races."""

    attempt: Attempt
    req: ClientRequest

    def send(self, attempt: Attempt, req: ClientRequest) -> Awaitable[ClientResponse]:
        """Send the request to the attempt's node."""
        ...


class Hedging:
    """The hedged attempts of one service.

    Args:
        hedge: when.
        retry: what may be sent twice.
    """

    def __init__(self, hedge: Hedge, retry: Retry) -> None:
        self._hedge = hedge
        self._retry = retry

    def suits(self, req: ClientRequest) -> bool:
        """Whether the request may be sent twice at the same time."""
        return not req.body and may_be_repeated(req, self._retry.methods)

    async def race(self, exchange: Raced) -> ClientResponse:
        """Send the exchange's attempt, and perhaps a second one; `exchange.attempt` is the one that decides."""
        return await exchange.send(exchange.attempt, exchange.req)

    async def close(self) -> None:
        """Cut the losers that are still under way."""
