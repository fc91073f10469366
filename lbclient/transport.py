"""`BalancingMiddleware`: the attempts of every request, inside aiohttp's own client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from yarl import URL

from discovery import Cache, Endpoint, OnEmpty, Snapshot, Source, Watcher
from lbclient.drain import Drain
from lbclient.ejection import Ejection
from lbclient.errors import SessionClosing
from lbclient.exchange import Exchange
from lbclient.health import HealthCheck
from lbclient.hedging import Hedge
from lbclient.hops import Hop, Hops
from lbclient.limits import Limits, Throttle
from lbclient.options import at_least, service_host
from lbclient.outcome import Classifier
from lbclient.passage import Passage
from lbclient.policies import DEFAULT, PolicyOption, policy_factories
from lbclient.retrying import Retry
from lbclient.retrying.resending import repeated_by_aiohttp, settle
from lbclient.routing import Routing, SlowStart
from lbclient.service import Service
from lbclient.settings import PerService, for_each

__all__ = ["BalancingMiddleware"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Seconds after which to look again whether a request that was redirected has ended: nothing else tells.
_LOOK_AGAIN = 0.02
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class BalancingMiddleware:
    """Sends each attempt of each request to a node of the service that the URL's host names.

    For a `ClientSession` that somebody else owns: `ClientSession(middlewares=(..., lb))`, with `lb` in the last
    place. Hosts that are no service pass through untouched. Close it, or use `async with`. See `BalancedSession`
    for the arguments, and for a session that is set up for it.
    """

    def __init__(
        self,
        services: Mapping[str, Source | Watcher | str],
        *,
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
        wait_for_endpoints: float = 5.0,
        drain_timeout: float = 30.0,
        on_empty: OnEmpty = "hold",
        hold_for: float = 30.0,
        collapse: float | None = None,
        cache: Cache | str | Path | None = None,
    ) -> None:
        at_least("wait_for_endpoints", wait_for_endpoints, 0)
        at_least("drain_timeout", drain_timeout, 0)
        if not isinstance(services, Mapping):
            raise TypeError(f"services must be a mapping from names to sources, not {services!r}")
        if not services:
            raise ValueError("at least one service is needed")
        new_policies = policy_factories(policy, services)
        settings = for_each(
            services,
            {
                "routing": routing,
                "slow_start": slow_start,
                "attempt_timeout": attempt_timeout,
                "retry": retry,
                "hedge": hedge,
                "limits": limits,
                "throttle": throttle,
                "ejection": ejection,
                "health_check": health_check,
                "classify": classify,
                "deadline_header": deadline_header,
            },
        )
        # The most attempts that a request to some service may have.
        self.max_attempts = max(chosen.retry.attempts for chosen in settings.values())
        self._drain = Drain(drain_timeout, self._is_listed)
        self._session: aiohttp.ClientSession | None = None
        self._closing = False
        # Hops that have no answer yet; and what tells the end of one, or of a body, while the session is closed.
        self._passing = 0
        # Requests whose last answer was a redirect: until they end there may be another hop.
        self._redirected: WeakSet[Passage] = WeakSet()
        # The same in a session of somebody else, where each hop has a passage of its own.
        self._hops = Hops()
        self._ended: asyncio.Event | None = None
        self._services: dict[str, Service] = {}
        for name, origin in services.items():
            host = service_host(name)
            self._services[host] = Service(
                name,
                origin,
                new_policies[name],
                settings[name],
                wait_for_endpoints=wait_for_endpoints,
                on_left=self._drain.begin,
                on_empty=on_empty,
                hold_for=hold_for,
                collapse=collapse,
                cache=cache,
            )
        if len(self._services) < len(services):
            raise ValueError(f"service names differ in more than case, unlike {', '.join(services)}")

    def adopt(self, session: aiohttp.ClientSession, base_url: URL | None = None) -> None:
        """The session through which requests will come: health checks use its connections before the first one.

        Without it they begin with the first request. A `BalancedSession` does this by itself.

        Args:
            session: that has this as a middleware.
            base_url: of its requests, for the scheme.
        """
        for service in self._services.values():
            service.inquiries.adopt(session, base_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, drain: float | None = None) -> None:
        """Refuse further requests with `SessionClosing`, and stop to follow the registries.

        Args:
            drain: seconds that requests under way have, those that wait for a slot included, before they are cut:
                they fail with `SessionClosing`, or `ResponseCut` if they had an answer; websockets are closed with
                1001 ("going away") and have one more second. Until then the registries are followed. None: what
                is under way is left to itself and to its session, and what waits fails.
        """
        if drain is not None:
            at_least("drain", drain, 0)
        self._closing = True
        try:
            if drain:
                await self._quiet(drain)
                self._cut(f"the session was closed {drain:g} s ago", politely=True)
                await self._drain.farewells()
        finally:
            if drain is not None:
                self._cut("the session was closed", politely=False)
            try:
                # All at once, so that a second cancellation finds them all begun.
                await asyncio.gather(*(service.close() for service in self._services.values()))
            finally:
                self._drain.close()
                self._hops.clear()
                self._session = None

    async def _quiet(self, seconds: float) -> None:
        """Wait until no request is under way, at most so long."""
        self._ended = self._ended or asyncio.Event()
        for service in self._services.values():
            service.slots.on_free = self._ended.set
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    if self._passing or any(service.slots.in_flight for service in self._services.values()):
                        self._ended.clear()
                        await self._ended.wait()
                    elif self._redirected or self._hops.awaited():
                        await asyncio.sleep(_LOOK_AGAIN)
                    else:
                        return

    def _cut(self, why: str, *, politely: bool) -> None:
        """Begin no attempt any more, and end those there are."""
        here = (node for service in self._services.values() for node in service.balancer.nodes.values())
        for service in self._services.values():
            service.slots.refuse()
        for node in (*here, *self._drain.nodes):
            self._drain.cut(tuple(node.attempts), f"{node.address}: {why}", SessionClosing, politely=politely)

    async def ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the message names the reason
        """Follow all services now and wait until each was heard of; raises `TimeoutError` with the reason."""
        for service in self._services.values():
            service.follow()
        await asyncio.gather(*(service.watcher.ready(timeout) for service in self._services.values()))

    def endpoints(self, service: str | None = None) -> tuple[Endpoint, ...]:
        """The tuple being read for the service; the name may be left out if there is one only."""
        return self.snapshot(service).endpoints

    def snapshot(self, service: str | None = None) -> Snapshot:
        """The endpoints with their version, age and state."""
        return self._service(service).watcher.snapshot

    def accept(self, service: str | None = None) -> None:
        """Believe the registry now that endpoints are gone: those that are held for the service go."""
        self._service(service).watcher.accept()

    def describe(self) -> dict[str, Any]:
        """The whole live state as plain data for JSON; times in seconds."""
        now = time.monotonic()
        return {
            "services": {name: service.as_dict() for name, service in self._services.items()},
            "draining": [
                {"address": node.address, "in_flight": node.in_flight, "oldest": node.oldest(now)}
                for node in self._drain.nodes
            ],
        }

    def keyed(self, key: str) -> aiohttp.ClientMiddlewareType:
        """This middleware for one request, with a key for the policy: `get(..., middlewares=(lb.keyed(key),))`.

        In a `BalancedSession` it is an argument of each request, `lb_key`.
        """
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")

        def keyed(req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
            return self._send_hop(Hop(self.pass_on, key), req, handler)

        return keyed

    def __call__(self, req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
        """Called by aiohttp for each hop of each request."""
        # What the request itself was given as its time-out cannot be seen from here; a wrong one would do harm.
        return self._send_hop(Hop(self.pass_on), req, handler)

    def _send_hop(self, hop: Hop, req: ClientRequest, handler: ClientHandlerType) -> Awaitable[ClientResponse]:
        if self._hops.tasks:
            hop.begun = self._hops.take()
        return self.pass_on(req, handler, hop)

    def pass_on(
        self, req: ClientRequest, handler: ClientHandlerType, passage: Passage
    ) -> Awaitable[ClientResponse]:
        """Send one hop of a request where it belongs. No coroutine: there is one layer of those less."""
        if passage.begun:
            self._redirected.discard(passage)
        url = req.url
        service = self._services.get(url.raw_host or "")
        if service is None or url.port != _DEFAULT_PORTS.get(url.scheme):
            passage.start(time.monotonic())
            return _pass_through(req, handler)
        if self._closing and not passage.begun:
            raise SessionClosing(f"the session is being closed, or was: no request to {service.name!r} is begun")
        passage.begun = True
        if req.session is not self._session:
            self._session = req.session
            self._drain.watch_over(req.session)
        exchange = Exchange(service, req, handler, passage, self._passed)
        self._passing += 1
        return exchange.run()

    def _passed(self, passage: Passage, response: ClientResponse | None) -> None:
        """A hop has ended, with this answer if any."""
        self._passing -= 1
        if response is not None and response.status in _REDIRECTS:
            if isinstance(passage, Hop):
                self._hops.add()
            else:
                self._redirected.add(passage)
        if self._ended is not None:
            self._ended.set()

    def _is_listed(self, address: str) -> bool:
        return any(address in service.balancer.nodes for service in self._services.values())

    def _service(self, name: str | None) -> Service:
        if name is None and len(self._services) == 1:
            return next(iter(self._services.values()))
        if name is None or name not in self._services:
            raise KeyError(f"no service {name!r}; there are {', '.join(self._services)}")
        return self._services[name]


async def _pass_through(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    try:
        return await handler(req)
    except aiohttp.ClientError as error:
        # Where we have switched off aiohttp's own single retry, other hosts still get it.
        kept = getattr(req.session, "_retry_connection", True) or req.session.closed
        if kept or not repeated_by_aiohttp(error, req):
            raise
    await settle(req)
    return await handler(req)
