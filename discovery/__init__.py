"""Discovery: keeps an immutable tuple of endpoints fresh from a registry."""

from discovery.backoff import Backoff
from discovery.consul import Consul
from discovery.endpoint import Endpoint, Snapshot
from discovery.etcd import Etcd
from discovery.registrar import Registrar
from discovery.source import Memory, Source, SourceError, Static
from discovery.tls import TLS
from discovery.url import open_source, service_name
from discovery.watcher import Watcher

__all__ = [
    "TLS",
    "Backoff",
    "Consul",
    "Endpoint",
    "Etcd",
    "Memory",
    "Registrar",
    "Snapshot",
    "Source",
    "SourceError",
    "Static",
    "Watcher",
    "open_source",
    "service_name",
]
