"""etcd: a source over the JSON gateways of its members."""

from discovery.etcd.source import Etcd

__all__ = ["Etcd"]
