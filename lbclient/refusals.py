"""Why a service begins no attempt: errors that say what is known."""

from __future__ import annotations

from discovery import Watcher
from lbclient.balancer import Balancer
from lbclient.errors import LimitReached, NoEndpoints, SessionClosing, Throttled
from lbclient.limits.limits import Limits
from lbclient.limits.throttle import Meter

__all__ = ["closed", "limit_reached", "no_endpoints", "throttled"]


def no_endpoints(name: str, watcher: Watcher, balancer: Balancer, *, tried: int, wait: float) -> NoEndpoints:
    """There is none, after so many attempts; `wait` is how many seconds a first snapshot is waited for."""
    snapshot, nodes = watcher.snapshot, balancer.nodes
    healthy = sum(not node.out for node in nodes.values())
    waited = f" after waiting {wait:g} s" if snapshot.version == 0 else ""
    return NoEndpoints(
        f"service {name!r} has no endpoint{waited}: {len(snapshot.endpoints)} known, "
        f"{len(nodes)} matching, {healthy} healthy, {tried} tried; discovery ({watcher.source!r}): {snapshot}"
    )


def limit_reached(name: str, limits: Limits, balancer: Balancer, why: str, in_flight: int) -> LimitReached:
    """No slot is free, and none may be waited for."""
    return LimitReached(
        f"service {name!r}: {why}; {in_flight} attempts are in flight, with per_node={limits.per_node} at "
        f"{len(balancer.usable)} usable nodes and per_service={limits.per_service} (0: no limit)"
    )


def throttled(name: str, meter: Meter) -> Throttled:
    """The servers refuse so much that this request is refused here."""
    throttle = meter.throttle
    return Throttled(
        f"service {name!r}: not sent, since of {meter.requests} requests within {throttle.window:g} s only "
        f"{meter.accepts} were accepted; {meter.probability:.1%} are refused here, see Throttle(k={throttle.k:g})"
    )


def closed(name: str) -> SessionClosing:
    """The service was closed."""
    return SessionClosing(f"service {name!r} is closed")
