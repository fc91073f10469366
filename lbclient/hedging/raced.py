"""`Raced`: what a race needs of the exchange whose attempts it races."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from aiohttp import ClientRequest, ClientResponse
from yarl import URL

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.retrying import Ledger

__all__ = ["Raced", "RacedService"]


class _Nodes(Protocol):
    def has_fresh(self, tried: tuple[Node, ...]) -> bool: ...


class RacedService(Protocol):
    """The service that the exchange goes to: see `Service`."""

    @property
    def balancer(self) -> _Nodes:
        """Knows whether there is another node."""
        ...

    @property
    def ledger(self) -> Ledger:
        """The retries and hedges there may be."""
        ...

    def begin(self, call: Call) -> Attempt | None:
        """Begin an attempt; None if something has to be waited for."""
        ...

    def judge(self, result: ClientResponse | BaseException) -> tuple[Outcome, bool]:
        """What the end of an attempt shows, and whether a function of the user's says so."""
        ...

    def observe(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record it."""
        ...

    def answered(self, attempt: Attempt, response: ClientResponse, call: Call) -> None:
        """Show an answer to the policy."""
        ...


class Raced(Protocol):
    """What a race needs of the exchange whose attempts it races: see `Exchange`."""

    attempt: Attempt
    req: ClientRequest
    call: Call
    tries: list[Attempt]
    said: tuple[Outcome | None] | None

    @property
    def service(self) -> RacedService:
        """Where the request goes."""
        ...

    @property
    def url(self) -> URL:
        """The logical URL."""
        ...

    @property
    def may_race(self) -> bool:
        """Whether two servers may be asked at the same time."""
        ...

    def join(self, hedge: Attempt) -> None:
        """A hedge has begun: it is one of the attempts."""
        ...

    def trusts_others(self, attempt: Attempt, error: BaseException) -> bool:
        """Whether another server may be asked after this failure; to be asked once for each."""
        ...

    def send(self, attempt: Attempt, req: ClientRequest) -> Awaitable[ClientResponse]:
        """Send the request to the attempt's node."""
        ...
