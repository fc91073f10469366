"""Real servers on loopback: HTTP backends in processes of their own, etcd, Consul and DNS.

They are there to be killed, paused and restarted by tests and by `lbclient demo`.
"""

from lbclient.sandbox.backends import Backend, PortStats, backends
from lbclient.sandbox.dns import DnsServer, start_dns
from lbclient.sandbox.errors import NotKillable, SandboxError, ServerUnavailable
from lbclient.sandbox.process import Process, free_port
from lbclient.sandbox.registries import (
    ConsulServer,
    EtcdCluster,
    EtcdServer,
    ServerTLS,
    start_consul,
    start_etcd,
)

__all__ = [
    "Backend",
    "ConsulServer",
    "DnsServer",
    "EtcdCluster",
    "EtcdServer",
    "NotKillable",
    "PortStats",
    "Process",
    "SandboxError",
    "ServerTLS",
    "ServerUnavailable",
    "backends",
    "free_port",
    "start_consul",
    "start_dns",
    "start_etcd",
]
