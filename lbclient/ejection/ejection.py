"""`Ejection`: when failing nodes are taken out of service, and how they come back."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbclient.options import above_zero, at_least, finite, of_type, whole, within
from lbclient.routing import SlowStart

__all__ = ["Ejection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """When failing nodes are taken out, for how long, and how they come back.

    What counts, by `Outcome`: CONNECT counts for `connect_failures`, and any answer resets those. ERROR, GATEWAY,
    FAULT, TIMEOUT and BROKEN count for `failures`; all but ERROR count for `gateway_failures`, as in Envoy, and an
    ERROR resets those; one SUCCESS resets both. All of these count in the statistics. A body that breaks
    off takes back what the head of its answer reset. OVERLOAD counts nowhere: the load of a server that sheds some
    must not be moved to the others. OURS and LEFT say nothing, and neither do attempts that began before the node
    was taken out, or before it came back.

    The statistics are taken every `interval`. A node is taken out if its success rate is below the mean of all
    nodes by more than `success_rate_deviations` population standard deviations, and by more than
    `success_rate_gap`; or if its failure rate is `failure_rate` or above, as in Envoy (gRFC A50 says above). The
    worst ones go first.

    How many may be out: a node is taken out if with it no more than `max_ejected` of all nodes are, or if it is
    the only one. The last usable node stays in, and so does the last usable one of its priority unless the other
    priorities can take all requests (`Routing.overprovisioning`). Failed connections are exempt from all this, as
    nobody can be served there, though such nodes count as being out: if all nodes fail to connect, none is
    usable, and `Routing.panic` says what happens.

    Coming back: after its time one request is the node's probe, and no second one while that is under way, for
    `base` seconds at most. It is so with its first attempt; further ones go to nodes that work, as long as there
    are any. If it succeeds the node is back, with a slow start; one that was out for failed connections is back
    with any answer. If it shows nothing (OURS), since its caller gave up, the next one is sent after a hundred
    times as long as it took, at most `interval`. If it fails the node is out for twice as long.
    Attempts that go to nodes which are out because nothing else is left bring them back in the same way, and their
    failures say nothing new. While no node is usable each of them is due for a probe twice a second; when the
    first one is back the others are due within `interval`, and again after `interval`, as long as most nodes are
    out, for `cap` seconds at most; with more than 100 nodes out there are 10 probes a second at most.
    An active health check that succeeds ends an ejection for failed connections, and no other.

    Attributes:
        connect_failures: failed connections in a row that take a node out; None or 0 for any number.
        failures: failures in a row that take a node out; None or 0 for any number (Envoy: 5).
        gateway_failures: gateway failures in a row that take a node out; None or 0 for any number (Envoy: 5).
        interval: seconds over which the statistics are taken (Envoy, gRFC A50: 10 s).
        success_rate_deviations: standard deviations below the mean success rate at which a node is taken out; None
            for no such rule (Envoy, gRFC A50: 1.9).
        success_rate_gap: how far below the mean it must be at least, 0 to 1. With five nodes or more the deviation
            alone takes out one that answers 99 % while the others answer 100 %.
        success_rate_requests: nodes with fewer requests in an interval have no success rate (Envoy, gRFC A50:
            100).
        failure_rate: share of failures, above 0 to 1, at which a node is taken out whatever the others do; None
            for no such rule. It is off since failures in a row find such a node within a few requests, while this
            finds all nodes if what they share is down (Envoy: 85 %, not enforced; gRFC A50: off).
        failure_rate_requests: nodes with fewer requests in an interval have no failure rate (Envoy, gRFC A50: 50).
        min_nodes: with fewer nodes that have a rate there is no statistics (Envoy, gRFC A50: 5).
        base: seconds out of service the first time, doubled each further time; one time is forgotten for each
            `base` seconds in which the node stayed in (Envoy, gRFC A50: 30 s).
        cap: the longest time out of service in seconds (Envoy, gRFC A50: 300 s).
        jitter: share (0 to 1) of the time out by which it may be longer, so that clients do not probe together.
        max_ejected: share (0 to 1) of the nodes that may be out (Envoy, gRFC A50: 10 %).
        slow_start: how a node that is back gets its share, unless the service has a slow start with a longer
            window; None for the service's.
        enforce: whether nodes are taken out; False to log and count only what would have been taken out, each node
            once in `base` seconds, and without regard to `max_ejected`.

    Raises:
        ValueError, TypeError: an option makes no sense; the message says which ones do.
    """

    connect_failures: int | None = 3
    failures: int | None = 5  # Envoy
    gateway_failures: int | None = 5  # Envoy
    interval: float = 10.0  # Envoy, gRFC A50
    success_rate_deviations: float | None = 1.9  # Envoy, gRFC A50
    success_rate_gap: float = 0.05
    success_rate_requests: int = 100  # Envoy, gRFC A50
    failure_rate: float | None = None
    failure_rate_requests: int = 50  # Envoy, gRFC A50
    min_nodes: int = 5  # Envoy, gRFC A50
    base: float = 30.0  # Envoy, gRFC A50
    cap: float = 300.0  # Envoy, gRFC A50
    jitter: float = 0.1
    max_ejected: float = 0.1  # Envoy, gRFC A50
    slow_start: SlowStart | None = field(default_factory=lambda: SlowStart(window=10.0))
    enforce: bool = True

    def __post_init__(self) -> None:
        for name in ("connect_failures", "failures", "gateway_failures"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 0)
        for name in ("success_rate_requests", "failure_rate_requests", "min_nodes"):
            whole(name, getattr(self, name))
        for name in ("interval", "base", "cap"):
            above_zero(name, getattr(self, name))
            finite(name, getattr(self, name))
        if self.base > self.cap:
            raise ValueError(f"need base <= cap, not base={self.base!r}, cap={self.cap!r}")
        if self.success_rate_deviations is not None:
            at_least("success_rate_deviations", self.success_rate_deviations, 0)
            finite("success_rate_deviations", self.success_rate_deviations)
        for name in ("success_rate_gap", "jitter", "max_ejected"):
            within(name, getattr(self, name), 0, 1)
        if self.failure_rate is not None:
            above_zero("failure_rate", self.failure_rate)
            within("failure_rate", self.failure_rate, 0, 1)
        of_type("slow_start", self.slow_start, SlowStart)
        if not isinstance(self.enforce, bool):
            raise TypeError(f"enforce must be True or False, not {self.enforce!r}")
