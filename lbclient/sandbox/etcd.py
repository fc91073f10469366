"""etcd: one member, or a cluster of them."""

import asyncio
import base64
import contextlib
import secrets
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from lbclient.sandbox.binaries import Launcher, find
from lbclient.sandbox.containers import Container, docker
from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.local import LocalServer
from lbclient.sandbox.ports import LOOPBACK, free_port
from lbclient.sandbox.server import Server, ask, ask_first

__all__ = ["EtcdCluster", "EtcdServer"]

ServerT = TypeVar("ServerT", bound="EtcdServer")


class EtcdClient(ABC):
    """What a test does to the data, over etcd's JSON gateway."""

    @abstractmethod
    def _reachable(self) -> list[str]:
        """The addresses of members to try."""

    async def put(self, key: str, value: str | bytes, ttl: int | None = None) -> int | None:
        """Set a key.

        Args:
            key: The key.
            value: Its value.
            ttl: Seconds after which it disappears.

        Returns:
            The id of the lease that was made for `ttl`.
        """
        body: dict[str, Any] = {"key": _encoded(key), "value": _encoded(value)}
        lease = None
        if ttl is not None:
            lease = int((await self._ask("/v3/lease/grant", {"TTL": ttl}))["ID"])
            body["lease"] = str(lease)
        await self._ask("/v3/kv/put", body)
        return lease

    async def get_prefix(self, prefix: str) -> dict[str, str]:
        """Return the keys that begin with `prefix`, and their values."""
        answer = await self._ask("/v3/kv/range", _range(prefix))
        return {_decoded(pair["key"]): _decoded(pair.get("value", "")) for pair in answer.get("kvs", [])}

    async def delete(self, key: str) -> None:
        """Delete one key; fine if there is none."""
        await self._ask("/v3/kv/deleterange", {"key": _encoded(key)})

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all keys that begin with `prefix`."""
        await self._ask("/v3/kv/deleterange", _range(prefix))

    async def revoke(self, lease: int) -> None:
        """End a lease before its time: its keys disappear."""
        await self._ask("/v3/lease/revoke", {"ID": str(lease)})

    async def revision(self) -> int:
        """Return the store's current revision."""
        answer = await self._ask("/v3/kv/range", {"key": _encoded("\0"), "count_only": True})
        return int(answer["header"]["revision"])

    async def compact(self) -> int:
        """Forget all history, as etcd does by itself from time to time; return the revision that remains."""
        revision = await self.revision()
        await self._ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        return await ask_first(self._reachable(), "POST", path, body)


class EtcdServer(Server, EtcdClient):
    """One etcd member on loopback, with a data folder that survives `kill` and `restart`."""

    kind = "etcd"

    @classmethod
    async def start(cls, version: str | None = None) -> Self:
        """Start a cluster of one.

        Args:
            version: The version line wanted, such as "3.4"; None is any, preferably the newest.

        Raises:
            ServerUnavailable: There is no way to run one here; the message says what to install.
            SandboxError: It did not start.
        """
        return (await _members(cls, await asyncio.to_thread(find, "etcd", version), 1, None))[0]

    @classmethod
    async def external(cls, address: str) -> Self:
        """Return one that runs already, at "host:port".

        Raises:
            SandboxError: It does not answer.
        """
        answer = await ask_first([address], "GET", "/version")
        return cls(address, str(answer["etcdserver"]), None)

    @property
    def addresses(self) -> list[str]:
        """Its one address."""
        return [self.address]

    async def _healthy(self) -> bool:
        try:
            answer = await ask("GET", f"http://{self.address}/health")
        except (aiohttp.ClientError, TimeoutError, SandboxError):
            return False
        return str(answer.get("health")) == "true"

    def _reachable(self) -> list[str]:
        return [self.address]


class EtcdCluster(EtcdClient):
    """Members of one etcd cluster; one is a cluster, too.

    Attributes:
        members: Its members.
    """

    def __init__(self, members: list[EtcdServer], network: str | None = None) -> None:
        self.members = members
        self._network = network

    @classmethod
    async def start(cls, members: int = 3, version: str | None = None) -> Self:
        """Start a cluster and wait until all of it is healthy.

        Args:
            members: How many.
            version: The version line wanted, such as "3.4"; None is any, preferably the newest.

        Raises:
            ServerUnavailable: There is no way to run one here; the message says what to install.
            SandboxError: It did not start.
        """
        launcher = await asyncio.to_thread(find, "etcd", version)
        network = None
        if launcher.image is not None:
            network = f"lbclient-{secrets.token_hex(4)}"
            await docker("network", "create", network)
        return cls(await _members(EtcdServer, launcher, members, network), network)

    @classmethod
    async def external(cls, addresses: list[str]) -> Self:
        """Return one that runs already.

        Raises:
            SandboxError: A member does not answer.
        """
        return cls([await EtcdServer.external(address) for address in addresses])

    @property
    def addresses(self) -> list[str]:
        """Where clients connect, "host:port" each."""
        return [member.address for member in self.members]

    @property
    def address(self) -> str:
        """The first member's address."""
        return self.members[0].address

    @property
    def version(self) -> str:
        """Version of the first member."""
        return self.members[0].version

    @property
    def killable(self) -> bool:
        """Whether its members were started here, and can be killed, paused, restarted and wiped."""
        return all(member.killable for member in self.members)

    async def kill(self, index: int = 0) -> None:
        """Kill -9 one member."""
        await self.members[index].kill()

    async def pause(self, index: int = 0) -> None:
        """Freeze one member."""
        await self.members[index].pause()

    async def resume(self, index: int = 0) -> None:
        """Let one member go on."""
        await self.members[index].resume()

    async def restart(self, index: int = 0, *, wait: bool = True) -> None:
        """Start one member again with its data; being healthy takes a majority of the members."""
        await self.members[index].restart(wait=wait)

    async def kill_all(self) -> None:
        """Kill -9 all members."""
        await asyncio.gather(*(member.kill() for member in self.members))

    async def restart_all(self) -> None:
        """Start all members again with their data."""
        await asyncio.gather(*(member.restart() for member in self.members))

    async def wipe(self) -> None:
        """Kill all members and start them again without any data: revisions begin at 1."""
        await self.kill_all()
        await asyncio.gather(*(member.wipe() for member in self.members))

    async def stop(self) -> None:
        """Kill all members and remove their data; a cluster that was started elsewhere is left alone."""
        await asyncio.gather(*(member.stop() for member in self.members))
        if self._network is not None:
            with contextlib.suppress(SandboxError):
                await docker("network", "rm", self._network)
            self._network = None

    def _reachable(self) -> list[str]:
        return [member.address for member in self.members if member.running]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def _members(kind: type[ServerT], launcher: Launcher, count: int, network: str | None) -> list[ServerT]:
    """Start the members of one cluster; none is left running if one of them fails."""
    hosts = [launcher.server(network) for _ in range(count)]
    # A port of one member is a port of all: containers publish theirs on the same loopback.
    ports = [(free_port(), free_port()) for _ in hosts]
    peers = [f"http://{host.peer_host}:{peer}" for host, (_, peer) in zip(hosts, ports, strict=True)]
    members = [
        kind(f"{LOOPBACK}:{client}", launcher.version, host)
        for host, (client, _) in zip(hosts, ports, strict=True)
    ]
    try:
        for index, host in enumerate(hosts):
            await host.start(_flags(launcher, host, index, ports[index], peers), ports[index][:1])
        await asyncio.gather(*(member.wait_healthy() for member in members))
    except BaseException:
        await asyncio.gather(*(member.stop() for member in members))
        if network is not None:
            with contextlib.suppress(SandboxError):
                await docker("network", "rm", network)
        raise
    return members


def _flags(
    launcher: Launcher, host: LocalServer | Container, index: int, ports: tuple[int, int], peers: list[str]
) -> list[str]:
    client, peer = ports
    flags = {
        "name": f"m{index}",
        "data-dir": host.data,
        "listen-client-urls": f"http://{host.listen_host}:{client}",
        "advertise-client-urls": f"http://{LOOPBACK}:{client}",
        "listen-peer-urls": f"http://{host.listen_host}:{peer}",
        "initial-advertise-peer-urls": peers[index],
        "initial-cluster": ",".join(f"m{number}={url}" for number, url in enumerate(peers)),
        "logger": "zap",
        "log-level": "warn",
    }
    if launcher.at_least(3, 5):
        # Killing the process loses nothing that it has written, synced or not.
        flags["unsafe-no-fsync"] = "true"
    return [f"--{name}={value}" for name, value in flags.items()]


def _range(prefix: str) -> dict[str, str]:
    start = prefix.encode() or b"\0"
    return {"key": _encoded(start), "range_end": _encoded(_after(prefix.encode()))}


def _after(prefix: bytes) -> bytes:
    """Return the first key behind all those with this prefix; etcd takes a zero byte for "to the end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def _encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")
