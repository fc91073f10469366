"""`Lifetimes`: connections that are old, or have served many requests, are closed when their request has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lbclient.attempt import Attempt
from lbclient.limits.limits import Limits
from lbclient.node import Node

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from aiohttp.connector import Connection

__all__ = ["Life", "Lifetimes", "attempts_within"]


class Life:
    """Of one connection: the requests that are left to it, and the moment until which it may be used."""

    __slots__ = ("left", "until")

    def __init__(self, left: float, until: float) -> None:
        self.left = left
        self.until = until


class Lifetimes:
    """How long each connection to the nodes of one service may still be used.

    Nothing is closed while a request is on it: the connector closes it instead of keeping it, as after
    `Connection: close`.

    Args:
        limits: age and number, and by how much they vary.
        random: draws a number from 0 to 1, such as `random.Random().random`.
    """

    def __init__(self, limits: Limits, random: Callable[[], float]) -> None:
        self._age = math.inf if limits.connection_age is None else limits.connection_age
        self._requests = math.inf if limits.connection_requests is None else limits.connection_requests
        self._jitter = limits.jitter
        self._random = random
        self._lives: WeakKeyDictionary[Any, Life] = WeakKeyDictionary()

    def begin(self, protocol: Any, now: float) -> Life:
        """A request is sent on the connection, which was opened just now if it was not seen before."""
        life = self._lives.get(protocol)
        if life is None:
            left = self._requests * (1 - self._jitter * self._random())
            until = now + self._age * (1 - self._jitter * self._random())
            life = self._lives[protocol] = Life(max(1.0, left), until)
        life.left -= 1
        if life.left < 1 or now >= life.until:
            protocol.force_close()
        return life


def attempts_within(limits: Limits, random: Callable[[], float]) -> Callable[..., Attempt]:
    """What makes attempts (of node, reason, `on_land`, time) whose connections live as the limits allow."""
    immortal = limits.connection_age is None and limits.connection_requests is None
    return Attempt if immortal else partial(_TellingAttempt, Lifetimes(limits, random))


class _TellingAttempt(Attempt):
    """An attempt that tells when it begins and ends to use a connection."""

    __slots__ = ("_life", "_lifetimes")

    def __init__(
        self, lifetimes: Lifetimes, node: Node, picked: str, on_land: Callable[[], None], started_at: float
    ) -> None:
        super().__init__(node, picked, on_land, started_at)
        self._lifetimes = lifetimes
        self._life: Life | None = None

    def send(self, conn: Connection) -> Awaitable[ClientResponse]:
        sending = super().send(conn)
        self._life = self._lifetimes.begin(conn.protocol, time.monotonic())
        return sending

    def land(self) -> None:
        conn, life = self.conn, self._life
        # What comes next is that the connection is kept, or closed.
        if conn is not None and life is not None and conn.protocol is not None and time.monotonic() >= life.until:
            conn.protocol.force_close()
        super().land()
