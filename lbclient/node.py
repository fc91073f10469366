"""`Node`: an endpoint and all that was learned about it."""

from __future__ import annotations

from math import exp, expm1, inf
from typing import TYPE_CHECKING, Any, Self

from yarl import URL

from discovery import Endpoint
from lbclient.tally import Tally

if TYPE_CHECKING:
    from aiohttp import ClientRequest

__all__ = ["MEMORY", "NOWHERE", "NO_ATTEMPTS", "Group", "Node"]

_SECURE = {"http": "https", "ws": "wss"}
# Nodes come by the thousand, and most of them are idle: these stand for empty ones and are never changed.
NO_ATTEMPTS: set[Any] = set()
_NO_URLS: dict[URL, URL] = {}
# An API has a handful of hot paths; paths with identifiers in them must not fill the memory.
_URLS_KEPT = 128
# Seconds after which what was learned counts for 1/e of what it did (Finagle's and Linkerd's Peak EWMA: 10 s).
MEMORY = 10.0
# Seconds over which outcomes are averaged where they come often, so that one failure in a hundred stays one.
_SPAN = 1.0
# Where they come seldom the newest one counts for half: a second failure in a row makes it three quarters.
_NEWEST = 0.5
# Where they come at one moment each of them counts for something.
_LEAST = 0.0001
# Seconds without an answer that tell something of a node of which nothing else is known.
_LONG = 1.0
# Below this share a node counts as one that does not fail at all.
_NO_FAILURES = 0.001


class Group:
    """Nodes that the balancer chooses among in one go, and how busy they are together.

    Attributes:
        nodes: the same object until the nodes or their weights change.
        name: what they have in common; empty where there is only one group.
        in_flight: attempts under way at all of them.
    """

    __slots__ = ("in_flight", "name", "nodes")

    def __init__(self, nodes: tuple[Node, ...] = (), name: str = "") -> None:
        self.nodes = nodes
        self.name = name
        self.in_flight = 0
        for node in nodes:
            node.group = self
            self.in_flight += node.in_flight


# Where nodes are that get no requests now.
NOWHERE = Group()


class Node:
    """One server, identified by its address, as long as the registry lists it.

    A change of weight or metadata replaces `endpoint` and keeps the rest; a server that left and came back
    is a new node. Changed only by its `Balancer` and its attempts, in the event loop's thread.

    Attributes:
        endpoint: the current description.
        address: `host:port`.
        weight: the endpoint's weight, read at every pick.
        in_flight: attempts from the pick until the end of the response's body; attempts: those.
        requests: attempts so far; failures: those that showed a fault of the node.
        latency: seconds from sending a request to the head of its response, as Peak EWMA (Finagle) keeps it: a
            slower answer counts at once, faster ones bit by bit; None before the first. As it was at `learned_at`.
        failing: share (0 to 1) of the attempts that failed of late, as of the last outcome; 0 is the usual case.
        learned_at, answered_at, failed_at: `time.monotonic()` seconds of the last change of the latency, of the
            last answer and of the last failure; -inf before.
        unanswered: attempts begun since one of them ended by itself; silent_since: `time.monotonic()` seconds of
            the first of those.
        group: the usable nodes that it is chosen from; `NOWHERE` while it is not usable.
        connect_failures: connection failures in a row.
        tally: what else is counted about its attempts; None before the first outcome.
        ejections: how often it was taken out, decaying while it is healthy.
        ejected_at, ejected_until: `time.monotonic()` seconds; None while it is in. returned_at: the last return.
        ejected_because: why, in words; unreachable: because connections to it failed.
        awaits_probe: the next attempt that begins at it is its probe.
        probe: the attempt that decides whether it comes back, or that brought it back; else None.
        healthy: False while active health checks fail.
        leaving: it said that it is about to stop.
        out: it is ejected, unhealthy, or leaving, and gets no requests while others can take them.
        left: the registry does not list it any more.
    """

    __slots__ = (
        "_urls",
        "address",
        "answered_at",
        "attempts",
        "awaits_probe",
        "connect_failures",
        "ejected_at",
        "ejected_because",
        "ejected_until",
        "ejections",
        "endpoint",
        "failed_at",
        "failing",
        "failures",
        "group",
        "healthy",
        "in_flight",
        "latency",
        "learned_at",
        "leaving",
        "left",
        "out",
        "probe",
        "requests",
        "returned_at",
        "silent_since",
        "tally",
        "unanswered",
        "unreachable",
        "weight",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address = endpoint.address
        self.weight = endpoint.weight
        self.in_flight = 0
        self.requests = 0
        self.failures = 0
        self.latency: float | None = None
        self.learned_at = -inf
        self.answered_at = -inf
        self.unanswered = 0
        self.silent_since = inf
        self.failing = 0.0
        self.failed_at = -inf
        self.group = NOWHERE
        self.connect_failures = 0
        self.tally: Tally | None = None
        self.ejections = 0
        self.ejected_at: float | None = None
        self.ejected_until: float | None = None
        self.ejected_because = ""
        self.unreachable = False
        self.returned_at = 0.0
        self.awaits_probe = False
        self.probe: Any = None
        self.healthy = True
        self.leaving = False
        self.out = False
        self.left = False
        self.attempts = NO_ATTEMPTS
        self._urls = _NO_URLS

    def __repr__(self) -> str:
        return f"<Node {self.address} {self.state}, {self.in_flight} in flight, {self.requests} requests>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A server is one thing: copies of a policy that is in use know the same ones."""
        return self

    @property
    def state(self) -> str:
        """`ready`, `leaving`, `unhealthy`, `ejected`, `probing`, `left`, or `draining` (left, but still busy)."""
        if self.left:
            return "draining" if self.attempts else "left"
        if self.leaving:
            return "leaving"
        if not self.healthy:
            return "unhealthy"
        if self.probing:
            return "probing"
        return "ready" if self.ejected_at is None else "ejected"

    @property
    def probing(self) -> bool:
        """Whether it is ejected, and an attempt decides whether it comes back."""
        return self.ejected_at is not None and (self.awaits_probe or self.probe is not None)

    def begin_tally(self) -> Tally:
        """Begin to count its attempts."""
        self.tally = tally = Tally()
        return tally

    def mark(self, *, healthy: bool | None = None, leaving: bool | None = None) -> None:
        """Set what is known of it; None leaves it as it is."""
        self.healthy = self.healthy if healthy is None else healthy
        self.leaving = self.leaving if leaving is None else leaving
        self.out = self.ejected_at is not None or not self.healthy or self.leaving

    def eject(self, now: float, until: float, because: str, *, unreachable: bool) -> None:
        """Take it out, or leave it out for longer; the first reason stays the one that counts."""
        if self.ejected_at is None:
            self.unreachable = unreachable
        self.ejected_at, self.ejected_until, self.ejected_because = now, until, because
        self.awaits_probe, self.probe = False, None
        self.out = True

    def restore(self, now: float, probe: object) -> None:
        """End the ejection, thanks to this attempt if there is one."""
        self.ejected_at = self.ejected_until = None
        self.ejected_because, self.connect_failures = "", 0
        self.unreachable = self.awaits_probe = False
        self.probe, self.returned_at = probe, now
        self.mark()

    def describe_as(self, endpoint: Endpoint) -> None:
        """Take a new description of the same server."""
        if endpoint.tls != self.endpoint.tls:
            self._urls = _NO_URLS
        self.endpoint = endpoint
        self.weight = endpoint.weight

    def learn(self, elapsed: float, now: float, *, failed: bool) -> None:
        """Take in how long an answer took, or that there was none worth having. Reads decay: see `policies.loads`.

        How fast a node fails says nothing about how fast it works, so failures leave the latency as it is.
        """
        if failed or self.failing:
            self._average(elapsed, now, failed=failed)
        if failed:
            self.failed_at = now
            return
        if self.latency is None or elapsed >= self.latency:
            self.latency = elapsed
        else:
            kept = exp((self.learned_at - now) / MEMORY)
            self.latency = elapsed + (self.latency - elapsed) * kept
        self.learned_at = self.answered_at = now

    def learn_at_least(self, elapsed: float, now: float) -> None:
        """Take in an attempt that was given up: its answer would have taken longer than this, whoever gave up.

        It is no blame, so it does not count as a failure. But a server of which only fast answers count is never
        seen to be slow by callers that have a deadline.
        """
        # An attempt that was given up at once does not make a node fast.
        known = _LONG if self.latency is None else self.latency * exp((self.learned_at - now) / MEMORY)
        if elapsed >= known:
            self.latency = elapsed
            self.learned_at = now

    def _average(self, elapsed: float, now: float, *, failed: bool) -> None:
        # Fast failures are seen first after a pause, and the first answer must weigh as much as the first of them.
        gap = now - (max(self.answered_at, self.failed_at) if failed else self.answered_at)
        newest = min(_NEWEST, max(_LEAST, -expm1(-gap / _SPAN)))
        if failed and self.latency is not None and elapsed < self.latency:
            # It came sooner than answers do: of the attempts under way most may still succeed.
            newest /= max(1, self.in_flight)
        self.failing += newest * (failed - self.failing)
        if not failed and self.failing < _NO_FAILURES:
            self.failing = 0.0

    def locate(self, url: URL) -> URL:
        """The logical URL with this node's address in it; path and query stay as they are, byte for byte."""
        located = self._urls.get(url)
        if located is None:
            scheme = _SECURE.get(url.scheme, url.scheme) if self.endpoint.tls else url.scheme
            located = URL.build(
                scheme=scheme,
                authority=self.address,
                path=url.raw_path,
                query_string=url.raw_query_string,
                encoded=True,
            )
            if self._urls is _NO_URLS or len(self._urls) >= _URLS_KEPT:
                self._urls = {}
            self._urls[url] = located
        return located

    def aim(self, req: ClientRequest, url: URL, server_hostname: str | None) -> None:
        """Point the request at this node: aiohttp reads address, TLS and path from `req.url` when it connects."""
        located = self.locate(url)
        req.url = located
        # The certificate must be good for the name the caller asked for, not for an address from a registry.
        secure = located.scheme in ("https", "wss")
        req.server_hostname = server_hostname or (url.raw_host if secure else None)
        req.proxy = None

    def oldest(self, now: float) -> float | None:
        """Seconds for which its oldest attempt is under way; None if there is none."""
        return max((now - attempt.started_at for attempt in self.attempts), default=None)

    def as_dict(self, now: float) -> dict[str, Any]:
        """The live state as plain data; times in seconds."""
        return {
            "address": self.address,
            "state": self.state,
            "weight": self.weight,
            "priority": self.endpoint.priority,
            "zone": self.endpoint.zone,
            "in_flight": self.in_flight,
            "oldest": self.oldest(now),
            "requests": self.requests,
            "failures": self.failures,
            "latency": self.latency,
            "failing": self.failing,
            "connect_failures": self.connect_failures,
            "failures_in_row": 0 if self.tally is None else self.tally.row,
            "ejections": self.ejections,
            "ejected_for": None if self.ejected_until is None else max(0.0, self.ejected_until - now),
            "ejected_because": self.ejected_because or None,
        }
