"""The registries of the demo: where it registers its backends, and what it stops and starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import click

from discovery import Memory, Source
from discovery.endpoint import split_host_port
from lbclient.cli.running import opened
from lbclient.sandbox import ConsulServer, EtcdCluster, SandboxError, ServerUnavailable, start_consul, start_etcd

__all__ = ["Registry", "open_registry"]

T = TypeVar("T")

# Seconds after which etcd forgets an endpoint by itself, should the demo be killed before it has cleaned up.
_FORGOTTEN = 60


class Registry(Protocol):
    """What the demo does to a registry.

    Attributes:
        name: what to call it, such as "etcd 3.5.16".
        url: where the demo's service is in it, for `lbclient watch`; empty if only this process reaches it.
        source: what the client reads it through.
        stoppable: whether it may be stopped.
    """

    name: str
    url: str
    source: Source

    @property
    def stoppable(self) -> bool:
        """Whether it was started here."""
        ...

    async def add(self, address: str) -> None:
        """Register an endpoint."""
        ...

    async def remove(self, address: str) -> None:
        """Remove an endpoint's registration."""
        ...

    async def stop(self) -> None:
        """Make it unreachable, without warning."""
        ...

    async def resume(self) -> None:
        """Make it reachable again; it has what it had before."""
        ...

    async def close(self) -> None:
        """Remove what was registered, and the registry itself if it was started here."""
        ...


class InMemory:
    """`discovery.Memory`, inside this process."""

    name = "memory"
    url = ""
    stoppable = True

    def __init__(self) -> None:
        self._memory = Memory()
        self.source: Source = self._memory

    async def add(self, address: str) -> None:
        """Register an endpoint."""
        self._memory.add(address)

    async def remove(self, address: str) -> None:
        """Remove an endpoint's registration."""
        self._memory.remove(address)

    async def stop(self) -> None:
        """Play an outage."""
        self._memory.fail("outage played by the demo")

    async def resume(self) -> None:
        """End the outage."""
        self._memory.recover()

    async def close(self) -> None:
        """Nothing to remove."""


class InEtcd:
    """Keys below a prefix of the demo's own.

    Args:
        cluster: the servers.
        url: of the prefix.
        lifetime: seconds for which a registration has to last.
    """

    def __init__(self, cluster: EtcdCluster, url: str, *, lifetime: float) -> None:
        self.name = _named("etcd", cluster)
        self.source = opened(url, option="--registry")
        # Without what is secret in the URL that was given.
        self.url = repr(self.source)
        self._cluster = cluster
        self._prefix = str(cast("Any", self.source).prefix)
        self._lifetime = int(lifetime) + _FORGOTTEN

    @property
    def stoppable(self) -> bool:
        """Whether it was started here."""
        return self._cluster.killable

    async def add(self, address: str) -> None:
        """Register an endpoint."""
        await self._cluster.put(f"{self._prefix}{address}", address, ttl=self._lifetime)

    async def remove(self, address: str) -> None:
        """Remove an endpoint's registration."""
        await self._cluster.delete(f"{self._prefix}{address}")

    async def stop(self) -> None:
        """Kill -9."""
        await self._cluster.kill_all()

    async def resume(self) -> None:
        """Start it again."""
        await self._cluster.restart_all()

    async def close(self) -> None:
        """Remove the keys, or the whole server."""
        if not self.stoppable:
            await self._cluster.delete_prefix(self._prefix)
        await self._cluster.stop()


class InConsul:
    """Instances of a service of the demo's own.

    Args:
        server: the agent.
        url: of the service.
        service: its name.
        tags: what the source filters by.
    """

    def __init__(self, server: ConsulServer, url: str, service: str, tags: list[str]) -> None:
        self.name = _named("Consul", server)
        self.source = opened(url, option="--registry")
        # Without what is secret in the URL that was given.
        self.url = repr(self.source)
        self._server = server
        self._service = service
        self._tags = tags
        self._registered: set[str] = set()

    @property
    def stoppable(self) -> bool:
        """Whether it was started here."""
        return self._server.killable

    def _id(self, address: str) -> str:
        return f"{self._service}-{address}"

    async def add(self, address: str) -> None:
        """Register an endpoint."""
        host, port = split_host_port(address)
        self._registered.add(address)
        await self._server.register(self._service, host, port, id=self._id(address), tags=self._tags)

    async def remove(self, address: str) -> None:
        """Remove an endpoint's registration."""
        await self._server.deregister(self._id(address), wait=False)
        self._registered.discard(address)

    async def stop(self) -> None:
        """Kill -9."""
        await self._server.kill()

    async def resume(self) -> None:
        """Start it again."""
        await self._server.restart()

    async def close(self) -> None:
        """Remove the instances, or the whole server."""
        if not self.stoppable:
            await asyncio.gather(*(self.remove(address) for address in tuple(self._registered)))
        await self._server.stop()


@contextlib.asynccontextmanager
async def open_registry(where: str, *, lifetime: float, say: Callable[[str], None]) -> AsyncIterator[Registry]:
    """The registry that `--registry` names, ready for the first registration; cleaned up in the end.

    Args:
        where: `memory`; `etcd` or `consul` to start one; or the URL of one that runs.
        lifetime: seconds for which registrations have to last.
        say: is told what takes a while.

    Raises:
        click.BadParameter: it is none of those.
        ServerUnavailable: there is no such program to start.
        SandboxError: it does not answer, or did not start.
    """
    name = f"demo-{secrets.token_hex(4)}"
    scheme = urlsplit(where).scheme or where
    registry: Registry
    if where == "memory":
        registry = InMemory()
    elif scheme == "etcd":
        registry = await _etcd(where, name, lifetime, say)
    elif scheme == "consul":
        registry = await _consul(where, name, say)
    else:
        raise click.BadParameter(
            f"{where!r} is neither memory, etcd or consul nor the URL of a registry to register at: "
            "etcd://host:port/prefix/ or consul://host:port/name",
            click.get_current_context(),
            param_hint="--registry",
        )
    try:
        yield registry
    finally:
        await registry.close()


async def _etcd(where: str, name: str, lifetime: float, say: Callable[[str], None]) -> Registry:
    url = where if where != "etcd" else "etcd://127.0.0.1/services/lbclient/"
    # Checked before anything is started.
    source = opened(url, option="--registry")
    parts = urlsplit(url)
    if where == "etcd":
        say("starting etcd; the first time it may have to be downloaded")
        cluster = await _started(start_etcd, "LBCLIENT_ETCD")
        parts = parts._replace(netloc=",".join(cluster.addresses))
    else:
        cluster = await _answering(EtcdCluster.external(list(cast("Any", source).hosts)), where)
    url = parts._replace(path=f"{parts.path.rstrip('/')}/{name}/").geturl()
    return InEtcd(cluster, url, lifetime=lifetime)


async def _consul(where: str, name: str, say: Callable[[str], None]) -> Registry:
    url = where if where != "consul" else "consul://127.0.0.1/lbclient"
    # Checked before anything is started.
    source = opened(url, option="--registry")
    parts = urlsplit(url)
    if where == "consul":
        say("starting Consul; the first time it may have to be downloaded")
        server = await _started(start_consul, "LBCLIENT_CONSUL")
        parts = parts._replace(netloc=server.address)
    else:
        server = await _answering(ConsulServer.external(cast("Any", source).address), where)
    service = f"{parts.path.strip('/')}-{name}"
    url = parts._replace(path=f"/{service}").geturl()
    return InConsul(server, url, service, parse_qs(parts.query).get("tag", []))


def _named(kind: str, server: EtcdCluster | ConsulServer) -> str:
    name = f"{kind} {server.version}"
    return name if server.killable else f"{name} at {server.address}"


async def _answering(server: Awaitable[T], where: str) -> T:
    try:
        return await server
    except SandboxError as error:
        raise SandboxError(f"{where} cannot be used: {error}") from error


async def _started(start: Callable[..., Awaitable[T]], variable: str) -> T:
    try:
        return await start(own=True)
    except ServerUnavailable:
        # One that runs elsewhere cannot be stopped, but it is better than none.
        if not os.environ.get(variable):
            raise
        return await start()
