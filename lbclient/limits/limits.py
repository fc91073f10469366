"""`Limits`: how much of a service one client uses at the same time, and how long its connections live."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient.options import above_zero, finite, whole, within

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one client uses at the same time. Requests beyond it wait, in turn; 0 stands for no limit.

    Attributes:
        per_node: attempts under way at one node, until the end of the response's body.
        per_service: the same at all nodes together, hedges included.
        waiting: requests that may wait for either at once; more fail with `LimitReached` (0: none may wait).
        wait: seconds that an attempt waits at most, then its request fails with `LimitReached`; None for as long
            as the request's own deadline allows.
        connection_age: seconds after which a connection is closed, once the request on it has ended; None for any.
            One that is idle then serves at most one more request.
        connection_requests: requests after which it is; None for any number.
        jitter: share (0 to 1) by which age and number are shortened at random, connection by connection, so that
            those that were opened together are not closed together (gRPC A9: 10 %).

    Raises:
        ValueError: at construction, for a wrong value.
    """

    per_node: int = 100
    per_service: int = 0
    waiting: int = 10_000
    wait: float | None = 30.0
    connection_age: float | None = None
    connection_requests: int | None = None
    jitter: float = 0.1

    def __post_init__(self) -> None:
        whole("per_node", self.per_node, 0)
        whole("per_service", self.per_service, 0)
        whole("waiting", self.waiting, 0)
        if self.wait is not None:
            above_zero("wait", self.wait)
            finite("wait", self.wait)
        if self.connection_age is not None:
            above_zero("connection_age", self.connection_age)
            finite("connection_age", self.connection_age)
        if self.connection_requests is not None:
            whole("connection_requests", self.connection_requests)
        within("jitter", self.jitter, 0, 1)
