"""etcd and Consul for tests: those that run already, or ones started here."""

import os
from collections.abc import Mapping

from lbclient.sandbox.binaries import ENVIRONMENT, matches
from lbclient.sandbox.consul import ConsulServer
from lbclient.sandbox.etcd import EtcdCluster, EtcdServer
from lbclient.sandbox.tls import ServerTLS

__all__ = ["ConsulServer", "EtcdCluster", "EtcdServer", "ServerTLS", "start_consul", "start_etcd"]


async def start_etcd(
    version: str | None = None,
    *,
    own: bool = False,
    members: int = 1,
    tls: ServerTLS | None = None,
    flags: Mapping[str, str] | None = None,
) -> EtcdCluster:
    """Return an etcd cluster: the one at `LBCLIENT_ETCD`, else one that is started.

    Args:
        version: The version line wanted, such as "3.4"; None is any.
        own: Start one whatever the environment says, because it is going to be killed.
        members: How many members to start.
        tls: Certificates, for one of our own; None is plain HTTP.
        flags: More of the program's flags, such as {"auth-token-ttl": "2"}, for one of our own.

    Raises:
        ServerUnavailable: There is no way to run one here; the message says what to install or set.
        SandboxError: It did not start, or the one of the environment does not answer.
    """
    given = _given("etcd")
    if given and not (own or tls or flags):
        cluster = await EtcdCluster.external(given)
        if matches(cluster.version, version):
            return cluster
    return await EtcdCluster.start(members, version, tls=tls, flags=flags)


async def start_consul(*, own: bool = False) -> ConsulServer:
    """Return a Consul agent: the one at `LBCLIENT_CONSUL`, else one that is started.

    Args:
        own: Start one whatever the environment says, because it is going to be killed.

    Raises:
        ServerUnavailable: There is no way to run one here; the message says what to install or set.
        SandboxError: It did not start, or the one of the environment does not answer.
    """
    given = _given("consul")
    if given and not own:
        return await ConsulServer.external(given[0])
    return await ConsulServer.start()


def _given(program: str) -> list[str]:
    return [address.strip() for address in os.environ.get(ENVIRONMENT[program], "").split(",") if address.strip()]
