"""Discovery: keeps an immutable tuple of endpoints fresh from a registry."""

from discovery.backoff import Backoff
from discovery.consul import Consul
from discovery.dns import Dns
from discovery.endpoint import Endpoint, Snapshot
from discovery.etcd import Etcd
from discovery.file import File
from discovery.source import Memory, Source, SourceError, Static
from discovery.tls import TLS
from discovery.url import open_source, service_name
from discovery.watcher import Watcher

__all__ = [
    "TLS",
    "Backoff",
    "Consul",
    "Dns",
    "Endpoint",
    "Etcd",
    "File",
    "Memory",
    "Snapshot",
    "Source",
    "SourceError",
    "Static",
    "Watcher",
    "open_source",
    "service_name",
]
