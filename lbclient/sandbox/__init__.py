"""Real servers on loopback: HTTP backends in processes of their own, etcd and Consul.

They are there to be killed, paused and restarted by tests and by `lbclient demo`.
"""

from lbclient.sandbox.backends import Backend, PortStats, backends
from lbclient.sandbox.errors import NotKillable, SandboxError, ServerUnavailable
from lbclient.sandbox.process import Process, free_port
from lbclient.sandbox.registries import (
    ConsulServer,
    EtcdCluster,
    EtcdServer,
    Https,
    ServerTLS,
    start_consul,
    start_etcd,
)

__all__ = [
    "Backend",
    "ConsulServer",
    "EtcdCluster",
    "EtcdServer",
    "Https",
    "NotKillable",
    "PortStats",
    "Process",
    "SandboxError",
    "ServerTLS",
    "ServerUnavailable",
    "backends",
    "free_port",
    "start_consul",
    "start_etcd",
]
