"""A Consul server of its own on loopback."""

import asyncio
import json
import secrets
import uuid
from collections.abc import Mapping
from typing import Any, Literal, Self

import aiohttp

from lbclient.sandbox.binaries import Launcher, find
from lbclient.sandbox.containers import Container
from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.local import LocalServer
from lbclient.sandbox.ports import LOOPBACK, free_port
from lbclient.sandbox.server import Server, ask, ask_first
from lbclient.sandbox.tls import ServerTLS

__all__ = ["ConsulServer"]

_NODE = "lbclient"
_SYNC_TIMEOUT = 10.0
_POLL = 0.01


class ConsulServer(Server):
    """One Consul server agent on loopback, with a data folder that survives `kill` and `restart`.

    Electing itself takes it one to two seconds at each start; Consul lets nobody configure less.

    Attributes:
        token: The token of its own calls, which may do everything; empty without ACLs.
        https_address: Where it speaks HTTPS, "host:port"; empty if it does not.
    """

    kind = "Consul"
    token = ""
    https_address = ""

    @classmethod
    async def start(cls, version: str | None = None, *, acl: bool = False, https: ServerTLS | None = None) -> Self:
        """Start one and wait until it is healthy.

        Args:
            version: The version line wanted, such as "1.20"; None is any.
            acl: Deny everything to those without a token; this object's own calls have one.
            https: Listen for HTTPS, too; plain HTTP stays.

        Raises:
            ServerUnavailable: There is no way to run one here; the message says what to install.
            SandboxError: It did not start.
        """
        launcher = await asyncio.to_thread(find, "consul", version)
        host = launcher.server()
        ports = {"http": free_port(), "server": free_port(), "serf_lan": free_port()}
        consul = cls(f"{LOOPBACK}:{ports['http']}", launcher.version, host)
        more: dict[str, Any] = {}
        if acl:
            consul.token = str(uuid.uuid4())
            more |= _acl(launcher, consul.token)
        if https is not None:
            ports["https"] = free_port()
            consul.https_address = f"{LOOPBACK}:{ports['https']}"
            host.show(https.files)
            more |= _https(https)
        public = [port for name, port in ports.items() if name.startswith("http")]
        try:
            await host.start(_arguments(launcher, host, ports, more), public)
            await consul.wait_healthy()
        except BaseException:
            await consul.stop()
            raise
        return consul

    @classmethod
    async def external(cls, address: str) -> Self:
        """Return one that runs already, at "host:port".

        Raises:
            SandboxError: It does not answer.
        """
        answer = await ask_first([address], "GET", "/v1/agent/self")
        return cls(address, str(answer["Config"]["Version"]), None)

    async def register(
        self,
        service: str,
        address: str,
        port: int,
        *,
        id: str | None = None,  # noqa: A002 - Consul's own name for it
        tags: tuple[str, ...] | list[str] = (),
        weights: tuple[int, int] | None = None,
        check_ttl: float | None = None,
        meta: dict[str, str] | None = None,
        wait: bool = True,
    ) -> str:
        """Register an instance of a service; one with the same id is replaced.

        Args:
            service: The service's name.
            address: Host of the instance.
            port: Its port.
            id: The instance's id; made of the other three by default.
            tags: Consul's tags.
            weights: Consul's weights when passing and when warning.
            check_ttl: Give it a check that turns critical that many seconds after the last `set_check`.
            meta: Consul's metadata.
            wait: Return only when the catalog has it: the agent tells it a moment later.

        Returns:
            The instance's id.
        """
        key = id or f"{service}-{address}-{port}"
        body: dict[str, Any] = {"ID": key, "Name": service, "Address": address, "Port": port}
        passing, warning = weights or (1, 1)
        body |= {"Tags": list(tags), "Meta": meta or {}, "Weights": {"Passing": passing, "Warning": warning}}
        if check_ttl is not None:
            body["Check"] = {"CheckID": f"service:{key}", "TTL": f"{check_ttl:g}s", "Status": "passing"}
        await self._ask("PUT", "/v1/agent/service/register", body)
        if wait:
            await self._until_synced(service, key, registered=True)
        return key

    async def deregister(self, id: str, *, wait: bool = True) -> None:  # noqa: A002 - as above
        """Remove an instance.

        Args:
            id: The instance's id.
            wait: Return only when the catalog has it no more.
        """
        registered = await self._ask("GET", "/v1/agent/services")
        await self._ask("PUT", f"/v1/agent/service/deregister/{id}")
        if wait and id in registered:
            await self._until_synced(registered[id]["Service"], id, registered=False)

    async def set_check(self, id: str, status: Literal["passing", "warning", "critical"]) -> None:  # noqa: A002
        """Set the state of an instance that was registered with `check_ttl`."""
        await self._ask("PUT", f"/v1/agent/check/update/service:{id}", {"Status": status})

    async def services(self, service: str, *, passing: bool = False) -> list[dict[str, Any]]:
        """Return the instances of a service as Consul's health endpoint tells them.

        Args:
            service: The service's name.
            passing: Only those whose checks all pass.
        """
        query = "?passing=1" if passing else ""
        instances: list[dict[str, Any]] = await self._ask("GET", f"/v1/health/service/{service}{query}")
        return instances

    async def maintenance(self, id: str | None, *, enable: bool = True) -> None:  # noqa: A002 - as above
        """Put an instance into maintenance, or take it out of it; None is the whole node."""
        path = "/v1/agent/maintenance" if id is None else f"/v1/agent/service/maintenance/{id}"
        await self._ask("PUT", f"{path}?enable={str(enable).lower()}")

    async def snapshot(self) -> bytes:
        """Return a backup of all that is stored."""
        backup: bytes = await self._ask("GET", "/v1/snapshot")
        return backup

    async def restore(self, backup: bytes) -> None:
        """Replace all that is stored with what a `snapshot` returned."""
        await self._ask("PUT", "/v1/snapshot", backup)

    async def create_token(self, rules: str) -> str:
        """Create an ACL token with these rules, such as `node_prefix "" { policy = "read" }`; return it."""
        body = {"Name": f"p{secrets.token_hex(8)}", "Rules": rules}
        policy = await self._ask("PUT", "/v1/acl/policy", body)
        token = await self._ask("PUT", "/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
        return str(token["SecretID"])

    async def change_token(self, token: str, rules: str) -> None:
        """Give a token that `create_token` made other rules."""
        found = await self._ask("GET", "/v1/acl/token/self", headers={"X-Consul-Token": token})
        policy = found["Policies"][0]
        body = {"ID": policy["ID"], "Name": policy["Name"], "Rules": rules}
        await self._ask("PUT", f"/v1/acl/policy/{policy['ID']}", body)

    async def revoke_token(self, token: str) -> None:
        """Delete a token."""
        found = await self._ask("GET", "/v1/acl/token/self", headers={"X-Consul-Token": token})
        await self._ask("DELETE", f"/v1/acl/token/{found['AccessorID']}")

    async def _until_synced(self, service: str, key: str, *, registered: bool) -> None:
        async with asyncio.timeout(_SYNC_TIMEOUT):
            while True:
                instances = await self.services(service)
                if registered == any(instance["Service"]["ID"] == key for instance in instances):
                    return
                await asyncio.sleep(_POLL)

    async def _healthy(self) -> bool:
        try:
            leader = await self._now("/v1/status/leader")
            if not leader or self._host is None:
                return bool(leader)
            # A registration made before the agent has told the catalog about itself would wait for a next try.
            node = await self._now(f"/v1/catalog/node/{_NODE}")
        except (aiohttp.ClientError, TimeoutError, SandboxError):
            return False
        return bool(node and node["Node"]["TaggedAddresses"] and "consul" in node["Services"])

    async def _ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        return await ask_first([self.address], method, path, body, headers=headers or self._headers)

    async def _now(self, path: str) -> Any:
        return await ask("GET", f"http://{self.address}{path}", headers=self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-Consul-Token": self.token} if self.token else {}


def _acl(launcher: Launcher, token: str) -> dict[str, Any]:
    management = "initial_management" if launcher.at_least(1, 11) else "master"
    tokens = {management: token, "agent": token}
    return {"acl": {"enabled": True, "default_policy": "deny", "tokens": tokens}}


def _https(https: ServerTLS) -> dict[str, Any]:
    files = {"cert_file": str(https.cert), "key_file": str(https.key)}
    if https.client_ca is None:
        return files
    return {**files, "ca_file": str(https.client_ca), "verify_incoming_https": True}


def _arguments(
    launcher: Launcher, host: LocalServer | Container, ports: dict[str, int], more: Mapping[str, Any]
) -> list[str]:
    off = ["dns", "serf_wan", "grpc", *(["grpc_tls"] if launcher.at_least(1, 14) else [])]
    configuration = {
        "server": True,
        "bootstrap_expect": 1,
        "node_name": _NODE,
        "data_dir": host.data,
        "bind_addr": host.listen_host,
        "advertise_addr": LOOPBACK,
        "client_addr": host.listen_host,
        "ports": {**ports, **dict.fromkeys(off, -1)},
        "performance": {"raft_multiplier": 1, "leave_drain_time": "100ms"},
        "disable_update_check": True,
        "disable_coordinates": True,
        "log_level": "warn",
        **more,
    }
    # On the command line, so that it reaches a container as well.
    return ["agent", "-hcl", json.dumps(configuration)]
