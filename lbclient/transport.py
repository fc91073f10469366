"""`BalancingMiddleware`: the attempts of every request, inside aiohttp's own client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from discovery import Cache, Endpoint, OnEmpty, Snapshot, Source, Watcher
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.drain import Drain
from lbclient.errors import AttemptsFailed
from lbclient.options import above_zero, at_least, of_type, service_host, whole
from lbclient.outcome import IDEMPOTENT, Outcome, classify, classify_status, may_be_repeated
from lbclient.outlier import Ejection
from lbclient.policies import DEFAULT, PolicyOption, policy_factories
from lbclient.probing import Prober, prequal_in
from lbclient.routing import Routing, SlowStart
from lbclient.service import Service

__all__ = ["BalancingMiddleware", "attempts"]

_ATTEMPTS = "_lbclient_attempts"
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def attempts(result: ClientResponse | BaseException) -> tuple[Attempt, ...]:
    """What was tried for a response, redirects included, or for an exception, in order.

    Empty for a request that did not go to a service.
    """
    # TooManyRedirects has a history as well.
    earlier = getattr(result, "history", ())
    return tuple(attempt for r in (*earlier, result) for attempt in getattr(r, _ATTEMPTS, ()))


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
        routing: Routing | None = None,
        slow_start: SlowStart | None = None,
        max_attempts: int = 3,
        attempt_timeout: float | None = None,
        wait_for_endpoints: float = 5.0,
        drain_timeout: float = 30.0,
        limit_per_node: int = 100,
        ejection: Ejection | None = None,
        on_empty: OnEmpty = "hold",
        hold_for: float = 30.0,
        collapse: float | None = None,
        cache: Cache | str | Path | None = None,
    ) -> None:
        whole("max_attempts", max_attempts)
        at_least("wait_for_endpoints", wait_for_endpoints, 0)
        at_least("drain_timeout", drain_timeout, 0)
        at_least("limit_per_node", limit_per_node, 0)
        if attempt_timeout is not None:
            above_zero("attempt_timeout", attempt_timeout)
        of_type("ejection", ejection, Ejection)
        of_type("routing", routing, Routing)
        of_type("slow_start", slow_start, SlowStart)
        if not services:
            raise ValueError("at least one service is needed")
        new_policies = policy_factories(policy, services)
        self.max_attempts = max_attempts
        self.attempt_timeout = attempt_timeout
        self._drain = Drain(drain_timeout, self._is_listed)
        self._session: aiohttp.ClientSession | None = None
        self._services: dict[str, Service] = {}
        for name, origin in services.items():
            prober = Prober(service_host(name))
            balancer = Balancer(
                name,
                partial(prober.equip, new_policies[name]),
                ejection=ejection,
                limit_per_node=limit_per_node,
                routing=routing,
                slow_start=slow_start,
            )
            self._services[prober.name] = Service(
                name,
                origin,
                balancer,
                wait_for_endpoints=wait_for_endpoints,
                on_left=self._drain.begin,
                prober=prober if prequal_in(balancer.policy) is not None else None,
                on_empty=on_empty,
                hold_for=hold_for,
                collapse=collapse,
                cache=cache,
            )
        if len(self._services) < len(services):
            raise ValueError(f"service names differ in more than case, unlike {', '.join(services)}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop to follow the registries. Requests that are under way go on."""
        for service in self._services.values():
            await service.close()
        self._drain.close()
        self._session = None

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
        return {
            "services": {name: service.as_dict() for name, service in self._services.items()},
            "draining": [{"address": node.address, "in_flight": node.in_flight} for node in self._drain.nodes],
        }

    def keyed(self, key: str) -> aiohttp.ClientMiddlewareType:
        """This middleware for one request, with a key for the policy: `get(..., middlewares=(lb.keyed(key),))`.

        In a `BalancedSession` it is an argument of each request, `lb_key`.
        """
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        return partial(self.__call__, key=key)

    async def __call__(
        self, req: ClientRequest, handler: ClientHandlerType, *, key: str | None = None
    ) -> ClientResponse:
        """Called by aiohttp for each hop of each request."""
        url = req.url
        service = self._services.get(url.raw_host or "")
        if service is None or url.port != _DEFAULT_PORTS.get(url.scheme):
            return await self._pass_through(req, handler)
        if req.session is not self._session:
            self._session = req.session
            self._drain.watch_over(req.session)
        proxy, server_hostname = req.proxy, req.server_hostname
        try:
            return await self._balance(service, service.call(req, key), req, handler)
        finally:
            # A middleware outside of this one may look at the request again, or send it once more.
            req.url, req.proxy, req.server_hostname = url, proxy, server_hostname
            vars(req).pop("send", None)

    async def _balance(
        self, service: Service, call: Call, req: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        url, server_hostname = req.url, req.server_hostname
        tries: list[Attempt] = []
        free = 0
        while True:
            attempt = service.begin(call) or await self._wait(service, call, tries)
            tries.append(attempt)
            try:
                attempt.aim(req, url, server_hostname)
                # One coroutine less where there is no limit, which is the usual case.
                sending = handler(req) if self.attempt_timeout is None else self._timed(attempt, req, handler)
                response = await sending
            except BaseException as error:
                outcome = classify(error)
                attempt.error = f"{type(error).__name__}: {error}"
                attempt.land()
                service.observe(attempt, outcome)
                free += outcome is Outcome.LEFT
                call.tried = (*call.tried, attempt.node)
                if service.balancer.exhausted(call.tried) and outcome is Outcome.FAULT:
                    # No other node: once more to the same, as aiohttp itself does after a stale keep-alive.
                    call.tried = ()
                exhausted = service.balancer.exhausted(call.tried) and outcome is not Outcome.LEFT
                spent = exhausted or len(tries) - free >= self.max_attempts or req.session.closed
                if spent or not may_be_repeated(outcome, req):
                    final = self._final(error, tries, req)
                    if final is error:
                        raise
                    raise final from error
            else:
                service.observe(attempt, classify_status(response.status))
                service.answered(attempt, response, call)
                if not attempt.sent:
                    attempt.land()  # a middleware behind this one answered by itself
                setattr(response, _ATTEMPTS, tries)
                return response
            await _settle(req)

    async def _wait(self, service: Service, call: Call, tries: list[Attempt]) -> Attempt:
        try:
            return await service.wait_and_begin(call)
        except BaseException as error:
            _tell(error, tries, earlier=len(tries))
            raise

    async def _timed(self, attempt: Attempt, req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        try:
            async with asyncio.timeout(self.attempt_timeout) as deadline:
                return await handler(req)
        except TimeoutError as error:
            if not deadline.expired() or isinstance(error, aiohttp.ServerTimeoutError):
                raise
            expired = aiohttp.SocketTimeoutError if attempt.sent else aiohttp.ConnectionTimeoutError
            raise expired(f"{attempt.node.address} gave no answer within {self.attempt_timeout:g} s") from error

    def _final(self, error: BaseException, tries: list[Attempt], req: ClientRequest) -> BaseException:
        _tell(error, tries, earlier=len(tries) - 1)
        if _aiohttp_repeats(error, req) and getattr(req.session, "_retry_connection", False):
            final = AttemptsFailed(f"{len(tries)} attempts failed, the last with {type(error).__name__}: {error}")
            setattr(final, _ATTEMPTS, tuple(tries))
            return final
        return error

    async def _pass_through(self, req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        try:
            return await handler(req)
        except aiohttp.ClientError as error:
            # Where we have switched off aiohttp's own single retry, other hosts still get it.
            consumed = getattr(req.body, "consumed", False)
            kept = getattr(req.session, "_retry_connection", True) or req.session.closed
            if kept or consumed or not _aiohttp_repeats(error, req):
                raise
        await _settle(req)
        return await handler(req)

    def _is_listed(self, address: str) -> bool:
        return any(address in service.balancer.nodes for service in self._services.values())

    def _service(self, name: str | None) -> Service:
        if name is None and len(self._services) == 1:
            return next(iter(self._services.values()))
        if name is None or name not in self._services:
            raise KeyError(f"no service {name!r}; there are {', '.join(self._services)}")
        return self._services[name]


def _tell(error: BaseException, tries: list[Attempt], earlier: int) -> None:
    """Attach what was tried to an exception, and notes on the attempts before the one that it came from."""
    for number, attempt in enumerate(tries[:earlier], 1):
        error.add_note(f"attempt {number}: {attempt}")
    setattr(error, _ATTEMPTS, tuple(tries))


def _aiohttp_repeats(error: BaseException, req: ClientRequest) -> bool:
    """Whether aiohttp by itself sends a request once more that failed like this."""
    if req.method not in IDEMPOTENT or isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))


async def _settle(req: ClientRequest) -> None:
    """Make a request that failed ready to be sent again."""
    # The cancelled writer rewinds a file body; it must be through before the next one begins.
    await req.close()
    if "Expect" in req.headers:
        req.update_expect_continue()
