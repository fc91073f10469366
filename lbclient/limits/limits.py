"""`Limits`: how much of a service one client uses at the same time, and how long its connections live."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one client uses at the same time. Requests beyond it wait, in turn; 0 stands for no limit.

    Attributes:
        per_node: attempts under way at one node, until the end of the response's body.
        per_service: the same at all nodes together.
        waiting: requests that may wait for either at once; more fail with `LimitReached` (0: none may wait).
        wait: seconds that a request waits at most, then it fails with `LimitReached`; None for as long as its own
            deadline allows.
        connection_age: seconds after which a connection is closed, once the request on it has ended; None for any.
        connection_requests: requests after which it is; None for any number.
        jitter: share (0 to 1) by which age and number are shortened at random, connection by connection, so that
            those that were opened together are not closed together.
    """

    per_node: int = 100
    per_service: int = 0
    waiting: int = 10_000
    wait: float | None = 30.0
    connection_age: float | None = None
    connection_requests: int | None = None
    jitter: float = 0.1
