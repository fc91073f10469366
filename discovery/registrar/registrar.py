"""Registering oneself: `Registrar` keeps one endpoint in etcd or Consul for as long as the process serves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from typing import Any, Self

from discovery.backoff import Backoff
from discovery.connection import positive
from discovery.consul import Consul
from discovery.endpoint import Endpoint
from discovery.etcd import Etcd
from discovery.registrar.consul import ConsulRegistration
from discovery.registrar.etcd import EtcdRegistration
from discovery.registrar.health import HealthCheck, complaint_of
from discovery.registrar.registration import Registration
from discovery.registrar.standing import Listener, Standing, State
from discovery.registrar.upkeep import Upkeep, Wanted
from discovery.url import open_source

__all__ = ["Registrar"]

_SHORTEST_TTL = 2.0  # etcd grants none below its election timeout, which is 1 to 2 s
_SHORTEST_REAP = 60.0  # Consul takes less for a minute


class Registrar:
    """Registers one endpoint of a service in one background task, and keeps it registered for ever.

        async with Registrar("etcd://127.0.0.1:2379/services/users/", "10.0.0.1:8080"):
            await stop.wait()
        await server.close()  # nobody finds this server any more, so what still runs can end

    A caller may rely on: whatever happens to the registry (an outage longer than the TTL, a revoked lease, a
    deleted key, lost data, a restarted agent) the endpoint is registered again as soon as that is possible; no
    error of the registry ends the block or reaches it. Each change of `state` is logged once. When the process
    dies, the entry ends with its TTL. What it does not do: accept or drain requests. Listen before you enter,
    close after you left.

    Two processes under the same id: the one that registered last has the entry; the other one warns, and takes
    over when the entry is gone.

    Args:
        registry: an `Etcd` or `Consul` source, or a URL of one: which cluster, which service, and the access
            rights. By default the `records` or the tags of the source are what is registered.
        endpoint: what others shall find: an `Endpoint` (its `id` is ignored), or a string such as `10.0.0.1:80`.
        ttl: seconds without a sign of life after which the registry drops the endpoint, 2 or more; one is given
            every third of it.
        id: name of the entry. By default the address for etcd, and service and address for Consul.
        health: a function, asynchronous or quick, that returns False or raises while the process should not be
            found: the key is then deleted (etcd), or the check critical (Consul). Nothing is registered before
            it was content once.
        health_interval: seconds from one call of `health` to the next.
        health_timeout: seconds after which a call counts as unhealthy.
        wait: longest time in seconds that entering the block waits to be registered; then the block begins anyway.
        linger: seconds to wait after the entry was removed, so that clients have heard of it when the block ends.
        records: etcd only: how the value is written, `etcd` (JSON of etcd's naming package) or `address`.
        tags: Consul only: tags of the instance.
        deregister_after: Consul only: seconds after which it removes a critical instance, 60 or more.
        backoff: delays between attempts while the registry does not do what it should.
        rng: source of the jitter, for tests.

    Raises:
        ValueError, TypeError: an argument makes no sense, or the registry has no way to write the endpoint down.
        ImportError: the package for that registry is not installed.
    """

    def __init__(
        self,
        registry: str | Etcd | Consul,
        endpoint: Endpoint | str,
        *,
        ttl: float = 15.0,
        id: str = "",  # noqa: A002 - the registries' own name for it
        health: HealthCheck | None = None,
        health_interval: float = 2.0,
        health_timeout: float = 1.0,
        wait: float = 5.0,
        linger: float = 1.0,
        records: str | None = None,
        tags: Iterable[str] | None = None,
        deregister_after: float | None = None,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> None:
        endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint.parse(endpoint)
        if positive("ttl", ttl) < _SHORTEST_TTL:
            raise ValueError(f"ttl must be at least {_SHORTEST_TTL:g} seconds, not {ttl!r}")
        if health is not None and not callable(health):
            raise TypeError(f"health must be a function, not {health!r}")
        source = open_source(registry) if isinstance(registry, str) else registry
        if isinstance(registry, str) and not isinstance(source, (Etcd, Consul)):
            raise ValueError(  # noqa: TRY004 - it is the text that is wrong
                f"a registrar needs the URL of etcd or Consul, not {source!r}"
            )
        options = {"records": records, "tags": tags, "deregister_after": deregister_after}
        self._registration = _registration(source, endpoint, id, float(ttl), options)
        self._registration.validate(endpoint)
        self.name = f"{source!r}: {self._registration.id}"
        self._standing = Standing(self.name)
        self._health = health
        self._health_interval = positive("health_interval", health_interval)
        self._health_timeout = positive("health_timeout", health_timeout)
        self._wait = _not_negative("wait", wait)
        self._linger = _not_negative("linger", linger)
        # With a health check nothing is written before its first verdict.
        self._upkeep = Upkeep(
            self._registration,
            self._standing,
            Wanted(endpoint=endpoint, complaint=None if health else ""),
            ttl=float(ttl),
            backoff=backoff or Backoff(),
            rng=rng or random.Random(),
        )
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Registrar {self.name}: {self._standing}>"

    @property
    def state(self) -> State:
        """How it stands.

        `registering` (not yet), `registered`, `unhealthy` (withdrawn until the health check is content), `lost`
        (it was registered, and is not, or perhaps not any more: the TTL is over), `left`.
        """
        return self._standing.state

    @property
    def reason(self) -> str:
        """What is wrong; empty if nothing is. `registered` with a reason: signs of life fail, within the TTL."""
        return self._standing.reason

    @property
    def endpoint(self) -> Endpoint:
        """What others shall find."""
        return self._upkeep.wanted.endpoint

    def start(self) -> None:
        """Begin to register; needs a running event loop. Doing it twice is harmless."""
        if self._upkeep.leaving:
            raise RuntimeError(f"{self.name}: the registrar has left; make a new one")
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"register {self.name}")

    async def leave(self) -> None:
        """Remove the entry, end the background task, and wait `linger` seconds if clients may still come.

        When the registry does not answer, this takes at most about 1.5 s, and the entry ends with its TTL.
        Doing it twice is harmless.
        """
        was = self.state
        if self._task is None:
            self._upkeep.leaving = True
            self._standing.move("left", "")
        elif not self._task.done():
            await self._upkeep.leave(self._task)
        if was == "registered" and not self.reason:
            await asyncio.sleep(self._linger)

    async def __aenter__(self) -> Self:
        try:
            # If it takes longer, it goes on in the background; what is wrong was logged.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait):
                    self.start()
                    await self._standing.until(lambda: self.state in ("registered", "unhealthy"))
        except BaseException:
            await self.leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def registered(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the message names the reason
        """Wait until the endpoint is registered and healthy, at most `timeout` seconds.

        Raises:
            TimeoutError: with the reason why it is not.
            RuntimeError: the registrar has left.
        """
        self.start()
        try:
            async with asyncio.timeout(timeout):
                await self._standing.until(lambda: self.state == "registered")
        except TimeoutError:
            why = self.reason or "no answer yet"
            raise TimeoutError(f"{self.name}: not registered within {timeout} s: {why}") from None

    async def update(self, endpoint: Endpoint) -> None:
        """Describe the server anew (weight, zone, metadata, ...) without a gap; returns when the registry has it.

        During an outage that may take long; giving up the waiting does not take back the update.

        Raises:
            ValueError: it has another address, which would be another server, or it cannot be written down.
            RuntimeError: the registrar has left.
        """
        if endpoint.address != self.endpoint.address:
            raise ValueError(f"{self.name}: {endpoint.address} is another server; make a registrar for it")
        self._registration.validate(endpoint)
        wanted = self._upkeep.want(endpoint=endpoint)
        await self._standing.until(lambda: self._upkeep.written >= wanted.number)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(state, reason)` with each change of either. Returns the function that ends it."""
        return self._standing.subscribe(listener)

    async def _run(self) -> None:
        health = None if self._health is None else asyncio.create_task(self._watch_health(self._health))
        try:
            await self._upkeep.run()
        finally:
            if health is not None:
                health.cancel()
                await asyncio.wait([health])

    async def _watch_health(self, check: HealthCheck) -> None:
        now = asyncio.get_running_loop().time
        # A check may swallow its cancellation; leaving must not wait for the next one.
        while not self._upkeep.leaving:
            due = now() + self._health_interval
            complaint = await complaint_of(check, within=self._health_timeout)
            # Another wording is no news: a complaint may have a counter in it.
            before = self._upkeep.wanted.complaint
            if before is None or bool(before) != bool(complaint):
                self._upkeep.want(complaint=complaint)
            await asyncio.sleep(0 if self._upkeep.leaving else due - now())


def _registration(
    source: object, endpoint: Endpoint, name: str, ttl: float, options: dict[str, Any]
) -> Registration[Any]:
    match source:
        case Etcd():
            foreign: tuple[str, ...] = ("tags", "deregister_after")
            records = options["records"] or ("etcd" if source.records == "auto" else source.records)
            made: Registration[Any] = EtcdRegistration(
                source, id=name or endpoint.address, ttl=ttl, records=records
            )
        case Consul():
            foreign = ("records",)
            tags = source.tags if options["tags"] is None else _tags(options["tags"])
            after = positive("deregister_after", options["deregister_after"] or _SHORTEST_REAP)
            if after < _SHORTEST_REAP:
                raise ValueError(f"deregister_after must be at least {_SHORTEST_REAP:g} seconds, not {after!r}")
            name = name or f"{source.service}-{endpoint.address}"
            made = ConsulRegistration(source, id=name, ttl=ttl, tags=tags, deregister_after=after)
        case _:
            raise TypeError(f"a registrar needs an Etcd, a Consul or the URL of one, not {source!r}")
    for option in foreign:
        if options[option] is not None:
            raise ValueError(f"{option} is not for {type(source).__name__}")
    return made


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    found = (tags,) if isinstance(tags, str) else tuple(tags)
    if not all(isinstance(tag, str) and tag for tag in found):
        raise ValueError(f"tags must be texts that are not empty, not {found!r}")
    return found


def _not_negative(name: str, seconds: float) -> float:
    return float(seconds) if seconds == 0 and not isinstance(seconds, bool) else positive(name, seconds)
