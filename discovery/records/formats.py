"""What others write to etcd -> `Endpoint`s: a table of formats, and the one that a record looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from discovery.endpoint import Endpoint, split_host_port
from discovery.records.fields import (
    SCHEMES,
    RecordError,
    endpoint_at,
    priority_in,
    registered_weight,
    valid_schemes,
    zone_in,
)
from discovery.records.json_formats import apisix, etcd_naming, go_micro, kitex, kratos, skydns
from discovery.records.records import Flaw, Reader, Weight

__all__ = ["FORMATS", "Format", "reader"]

_RPCX = re.compile(r"(?:.*/)?([a-z][a-z0-9]*)@([^/]+:[0-9]+)", re.DOTALL)
_TRAEFIK = re.compile(r"((?:.*/)?servers/[^/]+/)(url|weight|preservePath)", re.DOTALL)
_NETWORKS = frozenset({"tcp", "tcp4", "tcp6"})


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which others write down a server.

    Attributes:
        parse: what is in a record, given its key, its value and the wanted URL schemes. The value is a dict if it
            is a JSON object, else stripped text. `ValueError` says why it cannot be read.
        empty: whether an empty value says something. Else it is a placeholder, and `parse` does not see it:
            some writers create the "directory" that way.
    """

    parse: Callable[[str, Any, frozenset[str]], Iterable[Endpoint | Weight | Flaw]]
    empty: bool = False


def reader(name: str = "auto", *, schemes: str | Iterable[str] = SCHEMES) -> Reader[bytes]:
    """The function that reads records of the named format, or for `auto` of the one that each looks like.

    Args:
        name: `auto`, or a name in `FORMATS`.
        schemes: the URL schemes to take, as names or as one text with commas. Where a record lists several
            addresses, those of other schemes are left out; where it has one, another scheme is an error.
            An address without a scheme is taken.

    Raises:
        ValueError: the name is unknown, the message lists the known ones; or a scheme is none.
        TypeError: a scheme is no text.
    """
    wanted = valid_schemes(schemes)
    if name != "auto" and name not in FORMATS:
        raise ValueError(f"records must be one of auto, {', '.join(FORMATS)}, not {name!r}")
    known = FORMATS.get(name)

    def read(key: str, value: bytes) -> Iterable[Endpoint | Weight | Flaw]:
        record = _decoded(value)
        form = known or FORMATS[_detected(key, record)]
        return form.parse(key, record, wanted) if record != "" or form.empty else ()

    return read


def _decoded(value: bytes) -> Any:
    text = value.decode().strip()
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecordError(f"broken JSON: {error}") from error
    except RecursionError as error:
        raise RecordError("broken JSON: nested too deeply") from error


def _detected(key: str, record: Any) -> str:
    """The name of the format that a record looks like."""
    if isinstance(record, str):
        if _RPCX.fullmatch(key):
            return "rpcx"
        if _TRAEFIK.fullmatch(key):
            return "traefik"
        return "apisix" if record == "init_dir" else "address"
    nodes = record.get("nodes")
    if isinstance(nodes, list) and any(isinstance(node, dict) and "address" in node for node in nodes):
        return "go-micro"
    for name, fields in _SIGNS:
        if fields <= record.keys():
            return name
    raise RecordError(f"looks like none of the known formats ({', '.join(FORMATS)})")


def _address(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint]:
    """go-zero, Registrator, go-kit and many scripts: `host:port` or a URL."""
    if not isinstance(record, str):
        raise RecordError("expected host:port or a URL, got a JSON object")
    return (endpoint_at(record, schemes, id=key),)


def _rpcx(key: str, record: Any, _: frozenset[str]) -> Iterable[Endpoint]:
    """rpcx: the address is in the key, `.../network@host:port`; the value is metadata, URL-encoded or empty.

    The network must be tcp (or tcp4, tcp6). rpcx speaks a protocol of its own there, and HTTP if told so.
    """
    match = _RPCX.fullmatch(key)
    if match is None:
        if record in ("", key.rpartition("/")[2]):
            return ()  # the "directory" of a service has its name as value
        raise RecordError("the key must end in network@host:port")
    network, address = match.groups()
    if network not in _NETWORKS:
        raise RecordError(f"network must be tcp, not {network}")
    if not isinstance(record, str):
        raise RecordError("expected metadata such as weight=5&group=a, got a JSON object")
    metadata: dict[str, str] = {}
    for name, value in parse_qsl(record, keep_blank_values=True, max_num_fields=1000):
        metadata.setdefault(name, value)
    if metadata.get("state") == "inactive":
        return ()
    host, port = split_host_port(address)
    more: dict[str, Any] = {"weight": registered_weight(metadata.get("weight")), "priority": priority_in(metadata)}
    return (Endpoint(host=host, port=port, zone=zone_in(metadata), metadata=metadata, id=key, **more),)


def _traefik(key: str, record: Any, schemes: frozenset[str]) -> Iterable[Endpoint | Weight]:
    """Traefik's key-value provider: a key for each field of a server, `.../servers/0/url` and `.../0/weight`."""
    match = _TRAEFIK.fullmatch(key)
    if match is None or match[2] == "preservePath":
        return ()  # a setting of Traefik's, of which it has many
    if not isinstance(record, str):
        raise RecordError("expected a URL or a weight, got a JSON object")
    if match[2] == "weight":
        return (Weight(of=f"{match[1]}url", value=registered_weight(record)),)
    return (endpoint_at(record, schemes, id=key),)


_SIGNS = (
    ("etcd", frozenset({"Addr"})),
    ("kitex", frozenset({"network", "address"})),
    ("apisix", frozenset({"nodes"})),
    ("apisix", frozenset({"discovery_type"})),
    ("kratos", frozenset({"endpoints"})),
    ("skydns", frozenset({"host"})),
)
"""By which fields `auto` knows a JSON object, tried in this order."""

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "address": Format(_address),
        "etcd": Format(etcd_naming),
        "kratos": Format(kratos),
        "go-micro": Format(go_micro),
        "kitex": Format(kitex),
        "rpcx": Format(_rpcx, empty=True),
        "skydns": Format(skydns),
        "traefik": Format(_traefik),
        "apisix": Format(apisix),
    }
)
