"""The formats that are a JSON object in one key: one function for each, in the writers' own terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from discovery.endpoint import Endpoint, join_host_port, split_host_port
from discovery.records.fields import (
    RecordError,
    clean,
    endpoint_at,
    endpoints_at,
    objects,
    priority_in,
    registered_priority,
    registered_weight,
    suggested,
    texts,
    zone_in,
)
from discovery.records.records import Flaw

__all__ = ["apisix", "etcd_naming", "go_micro", "kitex", "kratos", "skydns"]

# What the writers' own clients take where no weight was registered. It matters where only some have one.
_KRATOS_WEIGHT = 100.0  # selector/node/direct of Kratos
_KITEX_WEIGHT = 10.0  # etcd_resolver.go of Kitex' registry-etcd
_SKYDNS_WEIGHT = 100.0  # plugin/backend_lookup.go of CoreDNS
_SKYDNS_PRIORITY = 10  # plugin/etcd/etcd.go of CoreDNS


def etcd_naming(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint | Flaw]:
    """`Update` of go.etcd.io/etcd/client/v3/naming: Op (0 add, 1 delete), Addr, Metadata of any kind.

    Weight, priority and zone in the metadata are taken if they are such: nobody prescribes what metadata is.
    `"tls": true` in it is what our own registrar writes.
    """
    record = _object(record, '{"Op": 0, "Addr": "host:port"}')
    operation, address, metadata = record.get("Op", 0), record.get("Addr"), record.get("Metadata")
    if operation == 1:
        return ()
    if operation not in (0, None):
        raise RecordError(f"Op must be 0 (add) or 1 (delete), not {operation!r}")
    if not isinstance(address, str):
        raise RecordError(f"Addr must be a string host:port, not {address!r}")
    more: dict[str, Any] = {}
    flaws: tuple[Flaw, ...] = ()
    if isinstance(metadata, dict):
        more, flaws = suggested(metadata)
        more["metadata"] = texts(metadata)
    elif metadata is not None:
        more = {"metadata": texts({"Metadata": metadata})}
    endpoint = endpoint_at(address, schemes, id=key, **more)
    if isinstance(metadata, dict) and metadata.get("tls") is True and "://" not in address:
        endpoint = replace(endpoint, tls=True)
    return (endpoint, *flaws)


def kratos(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint | Flaw]:
    """Kratos' `ServiceInstance`: URLs of all its servers in `endpoints`, those of other schemes are left out.

    The weight is in the metadata, and is Kratos' own default where it is none, as for Kratos' clients.
    """
    record = _object(record, '{"endpoints": ["http://host:port"]}')
    endpoints = record.get("endpoints")
    if endpoints is None:
        return ()
    if not isinstance(endpoints, list):
        raise RecordError("endpoints must be a list of URLs")
    metadata = texts(record.get("metadata"))
    more, flaws = suggested(metadata, weight=_KRATOS_WEIGHT)
    return (*endpoints_at(endpoints, schemes, metadata=_versioned(metadata, record), id=key, **more), *flaws)


def go_micro(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint | Flaw]:
    """go-micro's `Service`: `nodes` with an address and metadata each, of which `protocol` is the URL's scheme.

    Nodes of other protocols (go-micro's own servers register mucp and grpc) are left out; one without is taken.
    """
    record = _object(record, '{"nodes": [{"address": "host:port"}]}')
    found: list[Endpoint | Flaw] = []
    for node in objects(record.get("nodes"), "nodes"):
        metadata = texts(record.get("metadata")) | texts(node.get("metadata"))
        address, protocol = node.get("address"), metadata.get("protocol")
        url = f"{protocol}://{address}" if protocol and isinstance(address, str) else address
        more, flaws = suggested(metadata)
        found += endpoints_at([url], schemes, metadata=_versioned(metadata, record), id=key, **more)
        found += flaws
    return found


def kitex(key: str, record: Any, _: frozenset[str]) -> Iterable[Endpoint]:
    """`instanceInfo` of Kitex' registry-etcd: network, address, weight, tags.

    The network must be tcp (or tcp4, tcp6). Kitex speaks Thrift or gRPC there, and HTTP if told so.
    """
    record = _object(record, '{"network": "tcp", "address": "host:port"}')
    network, tags = record.get("network"), texts(record.get("tags"), "tags")
    if network not in ("tcp", "tcp4", "tcp6"):
        raise RecordError(f"network must be tcp, not {network!r}")
    address = record.get("address")
    if not isinstance(address, str):
        raise RecordError(f"address must be a string host:port, not {address!r}")
    host, port = split_host_port(address)
    # 0 is what Go writes where none was set, and no weight for Kitex' own clients either.
    weight = registered_weight(record.get("weight")) if record.get("weight") else _KITEX_WEIGHT
    priority, zone = priority_in(tags), zone_in(tags)
    return (Endpoint(host=host, port=port, weight=weight, priority=priority, zone=zone, metadata=tags, id=key),)


def skydns(key: str, record: Any, _: frozenset[str]) -> Iterable[Endpoint]:
    """SkyDNS' and CoreDNS' `Service`: the content of an SRV record; its name is the key's path, read backwards.

    Records for other types (an address without port, text, mail) name no server. Priority, time to live and
    text are kept as metadata. As in SRV records, lower priorities are preferred.
    """
    record = _object(record, '{"host": "10.0.0.1", "port": 8080}')
    host, port = record.get("host"), record.get("port")
    if not host or not isinstance(host, str):
        raise RecordError("a record without a host names no server")
    if not port:
        raise RecordError("a record without a port names no server")
    metadata = texts({name: record.get(name) for name in ("priority", "ttl", "text", "group")})
    path = [clean(part) for part in key.split("/") if part]
    if path[:1] == ["skydns"]:
        metadata["name"] = ".".join(reversed(path[1:]))
    # 0 is what Go writes where none was set.
    weight = registered_weight(record.get("weight")) if record.get("weight") else _SKYDNS_WEIGHT
    priority = registered_priority(record.get("priority")) or _SKYDNS_PRIORITY
    if priority < 0:
        raise RecordError(f"priority must not be negative, not {priority}")
    return (Endpoint(host=host, port=port, weight=weight, priority=priority, metadata=metadata, id=key),)


def apisix(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint]:
    """APISIX' upstream: `nodes` as a mapping from address to weight, or as a list of objects; `scheme` for all.

    Higher priorities are preferred there, so an endpoint has the negative of it; in the metadata it is as it was
    written. Nodes of APISIX' own discovery are not looked up.
    """
    if record == "init_dir":
        return ()  # what APISIX writes to make a "directory"
    record = _object(record, '{"nodes": {"host:port": 1}}')
    nodes, scheme = record.get("nodes"), record.get("scheme") or "http"
    if nodes is None and record.get("discovery_type"):
        raise RecordError("its nodes are found by APISIX itself, discovery_type says how")
    if not isinstance(scheme, str):
        raise RecordError(f"scheme must be a string, not {scheme!r}")
    if isinstance(nodes, dict):
        nodes = [{"host": address, "weight": weight} for address, weight in nodes.items()]
    labels = texts(record.get("labels"), "labels")
    found: list[Endpoint] = []
    for node in objects(nodes, "nodes"):
        metadata = labels | texts(node.get("metadata"))
        if node.get("priority") is not None:
            metadata |= texts({"priority": node["priority"]})
        more = {"weight": registered_weight(node.get("weight")), "zone": zone_in(metadata)}
        priority = -registered_priority(node.get("priority"))
        url = f"{scheme}://{_apisix_address(node)}"
        found.append(endpoint_at(url, schemes, priority=priority, metadata=metadata, id=key, **more))
    return found


def _apisix_address(node: dict[str, Any]) -> str:
    host, port = node.get("host"), node.get("port")
    if not isinstance(host, str):
        raise RecordError(f"host must be a string, not {host!r}")
    if port is None:
        return host
    if isinstance(port, bool) or not isinstance(port, int):
        raise RecordError(f"port must be a number, not {port!r}")
    return join_host_port(host.removeprefix("[").removesuffix("]"), port)


def _object(record: Any, example: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise RecordError(f"expected {example}, got plain text")
    return record


def _versioned(metadata: dict[str, str], record: dict[str, Any]) -> dict[str, str]:
    """The metadata and the service's version, unless they have their own."""
    return texts({"version": record.get("version") or None}) | metadata
