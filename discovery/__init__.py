"""Discovery: keeps an immutable tuple of endpoints fresh from a registry."""

from discovery.backoff import Backoff
from discovery.cache import Cache
from discovery.combined import Failover, Merge
from discovery.consul import Consul
from discovery.dns import Dns
from discovery.endpoint import Endpoint
from discovery.etcd import Etcd
from discovery.file import File
from discovery.hold import OnEmpty
from discovery.registrar import Registrar
from discovery.snapshot import Snapshot
from discovery.source import Memory, Source, SourceError, Static
from discovery.tls import TLS
from discovery.url import open_source, service_name
from discovery.watcher import Watcher

__all__ = [
    "TLS",
    "Backoff",
    "Cache",
    "Consul",
    "Dns",
    "Endpoint",
    "Etcd",
    "Failover",
    "File",
    "Memory",
    "Merge",
    "OnEmpty",
    "Registrar",
    "Snapshot",
    "Source",
    "SourceError",
    "Static",
    "Watcher",
    "open_source",
    "service_name",
]
