"""`BalancedSession`: aiohttp's `ClientSession` with a balancer inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import ClientTimeout
from yarl import URL

from discovery import Cache, Endpoint, OnEmpty, Snapshot, Source, Watcher, service_name
from lbclient.ejection import Ejection
from lbclient.errors import SessionClosing
from lbclient.health import HealthCheck
from lbclient.hedging import Hedge
from lbclient.limits import Limits, Throttle
from lbclient.options import above_zero, at_least, known_options
from lbclient.outcome import Classifier
from lbclient.passage import Passage
from lbclient.policies import DEFAULT, PolicyOption
from lbclient.retrying import Retry
from lbclient.routing import Routing, SlowStart
from lbclient.settings import PerService
from lbclient.transport import BalancingMiddleware
from lbclient.websocket import polite

if TYPE_CHECKING:
    # The types of aiohttp's verbs: awaitable, and async context managers. They have no public names.
    from aiohttp.client import _RequestContextManager, _WSRequestContextManager
    from aiohttp.typedefs import StrOrURL

__all__ = ["BalancedSession"]

# aiohttp's own default for a whole request.
_TOTAL = 300.0


class BalancedSession:
    """Sends requests to services: each attempt of each request goes to a node that the balancer picks.

    It has aiohttp's verbs with aiohttp's keyword arguments and returns aiohttp's own responses. Given one service,
    URLs are paths (`users.get("/v1/users/42")`); given a mapping, the host names the service
    (`session.get("http://users/v1/users/42")`). Other hosts are reached as by a plain session.

    Args:
        services: a source, a watcher or a source's URL; or a mapping from service names to those.
        name: the name of a single service in `Host` and TLS certificates; taken from the URL by default.
        policy: a policy's name (`peak_ewma`), a class, a function that makes one, or an object; where services
            differ a mapping from their names to those.
        routing: which nodes are chosen among: filters, subsets, zones, priorities, panic.
        slow_start: how nodes that are new or come back get their share; by default all of it at once.
        attempt_timeout: seconds for an attempt until the head of its response; None for no limit.
        retry: when a request is tried again, and after which pause; None for the defaults of `Retry`.
        hedge: a second attempt for requests that take long; None for none.
        limits: how much of a service is used at the same time, by default 100 connections to each node.
        throttle: refuse requests here while the servers refuse most of them; None for never.
        ejection: when failing nodes are taken out; None for the defaults of `Ejection`.
        health_check: how nodes are asked whether they are well; None for no questions.
        classify: a function of a response or an exception that says what it shows about the node, an `Outcome`;
            None from it stands for the usual judgement.
        deadline_header: a header that tells the server how many milliseconds are left for the request.
        connect_timeout: seconds for making a connection, and at most an equal share of the total deadline.
        wait_for_endpoints: seconds that a request waits for a service nothing is known of yet.
        drain_timeout: seconds after which requests to a node that left are cut.
        on_empty: when a registry lists nothing any more: `hold` its endpoints for a while (those that fail go
            sooner), `accept` it at once, or `keep` them until others come.
        hold_for: seconds for which they are held.
        collapse: hold, too, if more than this share (0 to 1) of them vanishes at once; None for never.
        cache: a folder (or `discovery.Cache`) for the last known endpoints, with which a process can start while
            its registry is down; none by default. None of these four is for services given as watchers.
        timeout: deadlines of a whole request as in aiohttp (aiohttp: 300 s in all).
        keepalive_timeout: seconds an idle connection is kept. Below the 5 s after which uvicorn and Node.js
            close theirs, so that a request is seldom sent into a connection that is just being closed.
        middlewares: client middlewares; they run outside of the balancer, once for each request.
        session_options: everything else `aiohttp.ClientSession` takes. A `connector` of your own keeps its own
            limits and `keepalive_timeout`; give it `limit=0`, or one hanging node can take the slots of all.

    Raises:
        ValueError, TypeError: at construction, for an option with a wrong value.
    """

    def __init__(
        self,
        services: Source | Watcher | str | Mapping[str, Source | Watcher | str],
        *,
        name: str | None = None,
        policy: PolicyOption | Mapping[str, PolicyOption] = DEFAULT,
        routing: PerService[Routing | None] = None,
        slow_start: PerService[SlowStart | None] = None,
        attempt_timeout: PerService[float | None] = None,
        retry: PerService[Retry | None] = None,
        hedge: PerService[Hedge | None] = None,
        limits: PerService[Limits | None] = None,
        throttle: PerService[Throttle | None] = None,
        ejection: PerService[Ejection | None] = None,
        health_check: PerService[HealthCheck | None] = None,
        classify: PerService[Classifier | None] = None,
        deadline_header: PerService[str | None] = None,
        connect_timeout: float = 3.0,
        wait_for_endpoints: float = 5.0,
        drain_timeout: float = 30.0,
        on_empty: OnEmpty = "hold",
        hold_for: float = 30.0,
        collapse: float | None = None,
        cache: Cache | str | Path | None = None,
        timeout: ClientTimeout | float | None = _TOTAL,
        keepalive_timeout: float = 4.0,
        middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
        **session_options: Any,
    ) -> None:
        if not isinstance(services, Mapping):
            name = name or (service_name(services) if isinstance(services, str) else "service")
            services = {name: services}
            session_options.setdefault("base_url", f"http://{name}/")
        elif name is not None:
            raise ValueError(f"name={name!r} is for a single service; here the keys of the mapping are the names")
        above_zero("connect_timeout", connect_timeout)
        if not isinstance(timeout, (ClientTimeout, int, float, NoneType)):
            raise TypeError(f"timeout must be a ClientTimeout, seconds or None, not {timeout!r}")
        if isinstance(timeout, (int, float)):
            at_least("timeout", timeout, 0)
        known_options("BalancedSession", session_options, (BalancedSession, aiohttp.ClientSession))
        self._balancing = BalancingMiddleware(
            services,
            policy=policy,
            routing=routing,
            slow_start=slow_start,
            attempt_timeout=attempt_timeout,
            retry=retry,
            hedge=hedge,
            limits=limits,
            throttle=throttle,
            ejection=ejection,
            health_check=health_check,
            classify=classify,
            deadline_header=deadline_header,
            wait_for_endpoints=wait_for_endpoints,
            drain_timeout=drain_timeout,
            on_empty=on_empty,
            hold_for=hold_for,
            collapse=collapse,
            cache=cache,
        )
        self._middlewares = tuple(middlewares)
        self._connect_timeout = connect_timeout
        self._max_attempts = self._balancing.max_attempts
        if "connector" not in session_options:
            # A limit shared by all nodes would let one hanging node take every slot.
            session_options["connector"] = aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_timeout)
        self._timeout = self._bounded(timeout)
        self._closing = False
        websocket = session_options.pop("ws_response_class", aiohttp.ClientWebSocketResponse)
        self.client_session = aiohttp.ClientSession(
            timeout=self._timeout,
            middlewares=(*middlewares, self._balancing),
            ws_response_class=polite(websocket),
            **session_options,
        )
        base_url = session_options.get("base_url")
        self._balancing.adopt(self.client_session, None if base_url is None else URL(base_url))
        if hasattr(self.client_session, "_retry_connection"):
            # aiohttp would send requests once more by itself, behind the back of the attempt loop.
            self.client_session._retry_connection = False  # noqa: SLF001 - there is no public switch (aiohttp#10790)

    def __repr__(self) -> str:
        known = (f"{name}: {state['usable']} usable" for name, state in self.describe()["services"].items())
        return f"<BalancedSession {', '.join(known)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self.client_session.closed

    async def close(self, drain: float = 0.0) -> None:
        """Refuse further requests, let those under way end, stop to follow the registries, close all connections.

        Args:
            drain: seconds that requests to services have that are under way, waiting ones included. What is left
                then is cut: it fails with `SessionClosing`, or `ResponseCut` if it had an answer; websockets are
                closed with 1001 ("going away") and have one more second. If this is cancelled, or called once more
                without `drain`, everything is cut and closed at once. Answers of hosts that are no services are
                not waited for.
        """
        at_least("drain", drain, 0)
        self._closing = True
        try:
            await self._balancing.close(drain)
        finally:
            await self.client_session.close()

    async def ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the message names the reason
        """Wait until each service was heard of; raises `TimeoutError` with the reason."""
        await self._balancing.ready(timeout)

    def endpoints(self, service: str | None = None) -> tuple[Endpoint, ...]:
        """The tuple being read for the service; the name may be left out if there is one only."""
        return self._balancing.endpoints(service)

    def snapshot(self, service: str | None = None) -> Snapshot:
        """The endpoints with their version, age and state."""
        return self._balancing.snapshot(service)

    def accept(self, service: str | None = None) -> None:
        """Believe the registry now that endpoints are gone: those that are held for the service go."""
        self._balancing.accept(service)

    def describe(self) -> dict[str, Any]:
        """The whole live state as plain data for JSON; times in seconds."""
        return self._balancing.describe()

    def request(self, method: str, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a request; like all verbs to be awaited, or better to be used with `async with`."""
        return self.client_session.request(method, url, **self._adapted(options))

    def get(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a GET request."""
        return self.client_session.get(url, **self._adapted(options))

    def options(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send an OPTIONS request."""
        return self.client_session.options(url, **self._adapted(options))

    def head(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a HEAD request."""
        return self.client_session.head(url, **self._adapted(options))

    def post(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a POST request."""
        return self.client_session.post(url, **self._adapted(options))

    def put(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a PUT request."""
        return self.client_session.put(url, **self._adapted(options))

    def patch(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a PATCH request."""
        return self.client_session.patch(url, **self._adapted(options))

    def delete(self, url: StrOrURL, **options: Any) -> _RequestContextManager:
        """Send a DELETE request."""
        return self.client_session.delete(url, **self._adapted(options))

    def ws_connect(self, url: StrOrURL, **options: Any) -> _WSRequestContextManager:
        """Open a websocket; it counts as one request in flight until it is closed.

        It takes no `lb_key`: aiohttp has no middlewares for a single websocket. A policy's `key` works.
        """
        if "lb_key" in options:
            raise TypeError("ws_connect takes no lb_key; give the policy a key=, such as header('X-User')")
        return self.client_session.ws_connect(url, **options)

    def _adapted(self, options: dict[str, Any]) -> dict[str, Any]:
        if self._closing and not self.closed:
            raise SessionClosing("the session is being closed: no further request is begun")
        timeout = self._timeout
        if "timeout" in options:
            options["timeout"] = timeout = self._bounded(options["timeout"])
        key = options.pop("lb_key", None)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        middlewares = options.get("middlewares")
        # A request's middlewares replace the session's.
        outer = self._middlewares if middlewares is None else middlewares
        passage = Passage(self._balancing.pass_on, key, timeout.total)
        options["middlewares"] = (passage.clock, *outer, passage) if outer else (passage,)
        return options

    def _bounded(self, timeout: ClientTimeout | float | None) -> ClientTimeout:
        """The deadlines with one for connecting: a node that swallows packets must leave time for the others."""
        if not isinstance(timeout, ClientTimeout):
            timeout = ClientTimeout(total=timeout)
        if timeout.sock_connect is not None:
            return timeout
        share = timeout.total / self._max_attempts if timeout.total else self._connect_timeout
        return ClientTimeout(
            total=timeout.total,
            connect=timeout.connect,
            sock_read=timeout.sock_read,
            sock_connect=min(self._connect_timeout, share),
            ceil_threshold=timeout.ceil_threshold,
        )
