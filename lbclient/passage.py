"""`Passage`: one request on its way, redirects included, and what its hops share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

__all__ = ["Passage", "timer"]

_PassOn = Callable[[ClientRequest, ClientHandlerType, "Passage"], Awaitable[ClientResponse]]


class Passage:
    """A client middleware for one request: aiohttp calls it for each hop.

    Args:
        pass_on: called with each hop, and this.
        key: what a hashing policy hashes; None to let the policy find one in the request.
        total: seconds for the whole request; None for no limit, and where the limit cannot be known.

    Attributes:
        deadline: `time.monotonic()` seconds at which the whole request ends, at the earliest; None if it never
            does, or if that is not known.
        begun: whether a hop of it was sent to a service.
    """

    __slots__ = ("__weakref__", "_idempotency_key", "_pass_on", "begun", "deadline", "key", "total")

    def __init__(self, pass_on: _PassOn, key: str | None = None, total: float | None = None) -> None:
        self._pass_on = pass_on
        self.key = key
        self.total = total
        self.deadline: float | None = None
        self._idempotency_key: str | None = None
        self.begun = False

    def __call__(self, req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
        """Called by aiohttp for each hop."""
        return self._pass_on(req, handler, self)

    def clock(self, req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
        """A client middleware for the first place: what those behind it take is part of the request's time."""
        self.start(time.monotonic())
        return handler(req)

    def start(self, now: float) -> None:
        """The first hop begins; later ones change nothing."""
        if self.deadline is None and self.total:
            self.deadline = now + self.total

    @property
    def idempotency_key(self) -> str:
        """What names this request among all others, in all of its attempts and hops."""
        if self._idempotency_key is None:
            self._idempotency_key = str(uuid.uuid4())
        return self._idempotency_key


def timer(req: ClientRequest) -> AbstractContextManager[Any]:
    """Have the deadline of the whole request end what is awaited in it with a `TimeoutError`.

    Without it that is a cancellation, of which aiohttp makes another exception later.
    """
    found: AbstractContextManager[Any] | None = getattr(req, "_timer", None)
    return nullcontext() if found is None else found
