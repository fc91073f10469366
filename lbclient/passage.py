"""`Passage`: one request on its way, redirects included, and what its hops share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

__all__ = ["Passage"]

_PassOn = Callable[[ClientRequest, ClientHandlerType, "Passage"], Awaitable[ClientResponse]]


class Passage:
    """A client middleware for one request: aiohttp calls it for each hop.

    Args:
        pass_on: called with each hop, and this.
        key: what a hashing policy hashes; None to let the policy find one in the request.
        total: seconds for the whole request; None for no limit.

    Attributes:
        deadline: `time.monotonic()` seconds at which the whole request ends; None if it never does.
        begun: whether a hop of it was sent to a service.
    """

    __slots__ = ("_pass_on", "begun", "deadline", "key", "total")

    def __init__(self, pass_on: _PassOn, key: str | None = None, total: float | None = None) -> None:
        self._pass_on = pass_on
        self.key = key
        self.total = total
        self.deadline: float | None = None
        self.begun = False

    def __call__(self, req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
        """Called by aiohttp for each hop."""
        if self.deadline is None and self.total:
            self.deadline = time.monotonic() + self.total
        return self._pass_on(req, handler, self)
