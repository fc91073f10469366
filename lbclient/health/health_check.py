"""`HealthCheck`: how nodes are asked whether they are well."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["HealthCheck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Asks each node again and again whether it is well, in the way that requests take (TLS, `Host`, connections).

    Attributes:
        path: what is asked for with GET; None to see only whether a TCP connection can be made.
        statuses: that mean well.
        interval: seconds between two checks of a node.
        jitter: share (0 to 1) of the interval by which it varies, so that nodes are not all asked at once.
        timeout: seconds for one check.
        down: failed checks in a row after which a node gets no requests.
        up: successful ones in a row after which it gets them again.
        at_once: checks under way at the same time, of all nodes.
        mandatory: a new node gets no requests before its first successful check.
        draining_header: a header with which any answer of a node, checks and requests alike, says that it is about
            to stop. It gets no further requests until a check is answered without it. A check that is answered
            with 503 and `Connection: close` says the same.
    """

    path: str | None = "/healthz"
    statuses: Collection[int] = range(200, 300)
    interval: float = 5.0
    jitter: float = 0.2
    timeout: float = 2.0
    down: int = 3
    up: int = 2
    at_once: int = 100
    mandatory: bool = False
    draining_header: str | None = None
