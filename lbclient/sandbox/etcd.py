"""etcd: one member, or a cluster of them."""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from lbclient.sandbox.binaries import Launcher, find
from lbclient.sandbox.containers import Container, docker
from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.etcd_client import EtcdAccess, EtcdClient
from lbclient.sandbox.local import LocalServer
from lbclient.sandbox.ports import LOOPBACK, free_port
from lbclient.sandbox.server import Server, ask, ask_first
from lbclient.sandbox.tls import ServerTLS

__all__ = ["EtcdCluster", "EtcdServer"]

ServerT = TypeVar("ServerT", bound="EtcdServer")


class EtcdServer(Server, EtcdClient):
    """One etcd member on loopback, with a data folder that survives `kill` and `restart`."""

    kind = "etcd"

    def __init__(
        self, address: str, version: str, host: LocalServer | Container | None, access: EtcdAccess | None = None
    ) -> None:
        super().__init__(address, version, host)
        EtcdClient.__init__(self, access)

    @classmethod
    async def start(
        cls,
        version: str | None = None,
        *,
        tls: ServerTLS | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a cluster of one.

        Args:
            version: The version line wanted, such as "3.4"; None is any, preferably the newest.
            tls: Certificates; None is plain HTTP.
            flags: More of the program's flags, such as {"auth-token-ttl": "2"}.

        Raises:
            ServerUnavailable: There is no way to run one here; the message says what to install.
            SandboxError: It did not start.
        """
        launcher = await asyncio.to_thread(find, "etcd", version)
        return (await _members(cls, launcher, 1, None, EtcdAccess(tls, flags)))[0]

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
            answer = await ask("GET", f"{self._scheme}://{self.address}/health", context=self._context)
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

    def __init__(
        self, members: list[EtcdServer], network: str | None = None, access: EtcdAccess | None = None
    ) -> None:
        super().__init__(access)
        self.members = members
        self._network = network

    @classmethod
    async def start(
        cls,
        members: int = 3,
        version: str | None = None,
        *,
        tls: ServerTLS | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a cluster and wait until all of it is healthy.

        Args:
            members: How many.
            version: The version line wanted, such as "3.4"; None is any, preferably the newest.
            tls: Certificates of all members; None is plain HTTP.
            flags: More of the program's flags, such as {"auth-token-ttl": "2"}.

        Raises:
            ServerUnavailable: There is no way to run one here; the message says what to install.
            SandboxError: It did not start.
        """
        launcher = await asyncio.to_thread(find, "etcd", version)
        network = None
        if launcher.image is not None:
            network = f"lbclient-{secrets.token_hex(4)}"
            await docker("network", "create", network)
        access = EtcdAccess(tls, flags)
        started = await _members(EtcdServer, launcher, members, network, access)
        return cls(started, network, access)

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
        """Kill all members and start them again without any data: revisions begin at 1, nobody has a password."""
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


async def _members(
    kind: type[ServerT],
    launcher: Launcher,
    count: int,
    network: str | None,
    access: EtcdAccess,
) -> list[ServerT]:
    """Start the members of one cluster; none is left running if one of them fails."""
    hosts = [launcher.server(network) for _ in range(count)]
    for host in hosts:
        host.show([] if access.tls is None else access.tls.files)
    # A port of one member is a port of all: containers publish theirs on the same loopback.
    ports = [(free_port(), free_port()) for _ in hosts]
    peers = [f"http://{host.peer_host}:{peer}" for host, (_, peer) in zip(hosts, ports, strict=True)]
    members = [
        kind(f"{LOOPBACK}:{client}", launcher.version, host, access)
        for host, (client, _) in zip(hosts, ports, strict=True)
    ]
    try:
        for index, host in enumerate(hosts):
            flags = {
                "name": f"m{index}",
                **access.flags(host.listen_host, ports[index][0]),
                **_flags(launcher, host, ports[index][1], index, peers),
            }
            await host.start([f"--{name}={value}" for name, value in flags.items()], ports[index][:1])
        await asyncio.gather(*(member.wait_healthy() for member in members))
    except BaseException:
        await asyncio.gather(*(member.stop() for member in members))
        if network is not None:
            with contextlib.suppress(SandboxError):
                await docker("network", "rm", network)
        raise
    return members


def _flags(
    launcher: Launcher, host: LocalServer | Container, port: int, index: int, peers: list[str]
) -> dict[str, str]:
    flags = {
        "data-dir": host.data,
        "listen-peer-urls": f"http://{host.listen_host}:{port}",
        "initial-advertise-peer-urls": peers[index],
        "initial-cluster": ",".join(f"m{number}={url}" for number, url in enumerate(peers)),
        "logger": "zap",
        "log-level": "warn",
    }
    if launcher.at_least(3, 5):
        # Killing the process loses nothing that it has written, synced or not.
        flags["unsafe-no-fsync"] = "true"
    return flags
