"""`HealthCheck`: how nodes are asked whether they are well."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lbclient.options import above_zero, finite, header_name, url_path, whole, within

__all__ = ["HealthCheck"]

_STATUSES = range(100, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Asks each node again and again whether it is well, in the way that requests take (TLS, `Host`, connections).

    Checks begin with the first request, or with `ready()`; a node that comes is checked at once. They carry
    `User-Agent: lbclient health check` and nothing of the session's headers and cookies. Redirects are not
    followed. The names are Envoy's.

    If all nodes are found ill all are used: see `Routing`. With n nodes, all of them silent, it takes
    n * `timeout` / `at_once` seconds until each was asked once.

    Attributes:
        path: what is asked for with GET, a query may be part of it; None to see only whether a TCP connection can
            be made, also to nodes with TLS (there is no handshake, and no name is checked).
        statuses: that mean well.
        interval: seconds between two checks of a node.
        jitter: share (0 to 1) of the interval by which each one is longer or shorter, so that clients do not all
            ask at the same moment.
        timeout: seconds for one check, with connecting and the end of the body (of which only 16 KiB are read).
        unhealthy_threshold: failed checks in a row after which a node gets no requests.
        healthy_threshold: successful ones in a row after which it gets them again. They also end an ejection for
            failed connections early, if they came after it; one for failing answers they do not.
        at_once: checks of a service under way at the same time.
        per_second: checks of a service in a second. With more than `interval` times as many nodes the interval is
            longer: a check costs about as much CPU as a request, and thousands of nodes would take a whole core.
        mandatory: a new node gets no requests before its first successful check; that one suffices. So with those
            that are there from the beginning, but as long as none of them is known to be well all are used.
        draining_header: a header with which any answer of a node, to checks and requests alike, says that it is
            about to stop. It gets no further requests until a check is answered well and without it. A check that
            is answered with 503 and `Connection: close` says the same, unless `statuses` has 503.

    Raises:
        ValueError, TypeError: for a wrong value.
    """

    path: str | None = "/healthz"
    statuses: Collection[int] = range(200, 300)
    interval: float = 5.0
    jitter: float = 0.2
    timeout: float = 2.0
    unhealthy_threshold: int = 3
    healthy_threshold: int = 2
    at_once: int = 100
    per_second: float = 200.0
    mandatory: bool = False
    draining_header: str | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            url_path("path", self.path)
        object.__setattr__(self, "statuses", _checked(self.statuses))
        for option in ("interval", "timeout", "per_second"):
            above_zero(option, getattr(self, option))
            finite(option, getattr(self, option))
        within("jitter", self.jitter, 0, 1)
        for option in ("unhealthy_threshold", "healthy_threshold", "at_once"):
            whole(option, getattr(self, option))
        if not isinstance(self.mandatory, bool):
            raise TypeError(f"mandatory must be True or False, not {self.mandatory!r}")
        if self.draining_header is not None:
            header_name("draining_header", self.draining_header)
            if self.path is None:
                raise ValueError("draining_header needs a path: a TCP check cannot see when the header is gone")


def _checked(statuses: Collection[int]) -> Collection[int]:
    if isinstance(statuses, (str, bytes)) or not isinstance(statuses, Collection):
        raise TypeError(
            f"statuses must be a collection of whole numbers such as [200] or a range, not {statuses!r}"
        )
    wrong = [s for s in statuses if isinstance(s, bool) or not isinstance(s, int) or s not in _STATUSES]
    if wrong or not statuses:
        raise ValueError(f"statuses must be one or more from 100 to 599, not {wrong[0] if wrong else statuses!r}")
    return statuses if isinstance(statuses, range) else frozenset(statuses)
