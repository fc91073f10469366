"""`Endpoint`: one server of a service, as the registry describes it."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter, lt
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["Endpoint", "endpoint_tuple", "join_host_port", "split_host_port"]

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")
_HEXADECIMAL = re.compile(r"0x[0-9a-f]*")
_NO_SERVER = "{} is no address of a server; was the listening address registered?"
_MAX_PORT = 65535
_MAX_NAME = 253
_NOTHING: Mapping[str, str] = MappingProxyType({})
_place: Callable[[Any], str] = attrgetter("_place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server of a service: a validated, immutable description.

    Two endpoints with the same `address` are the same server; equality also compares what is
    known about it (weight, priority, zone, ...).

    Attributes:
        host: an IPv4 or IPv6 literal (without brackets) or a DNS name; stored in canonical lower-case form.
        port: 1 to 65535.
        weight: relative share of the traffic, finite and >= 0; 0 means no new traffic.
        priority: a whole number; lower ones are preferred, and higher ones stand in for them. 0 when unknown.
        zone: where the server stands, for example an availability zone; empty when unknown.
        tls: the server expects TLS. A request to an https URL uses TLS whatever this says.
        metadata: what else was registered, strings only; kept as an immutable mapping.
        id: the name under which it was registered (etcd key, Consul service id); empty when unknown.
        address: `host:port`, with brackets around an IPv6 literal: the identity of the server; made of the two.

    Raises:
        ValueError: if a value cannot be an endpoint; the message names the value.
    """

    host: str
    port: int
    weight: float = 1.0
    priority: int = 0
    zone: str = ""
    tls: bool = False
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    id: str = ""
    address: str = field(init=False, repr=False, compare=False)
    # Host and port as one text that sorts as the two do: sets of thousands are sorted at every change.
    _place: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        host = _valid_host(self.host)
        if host is not self.host:
            set_(self, "host", host)
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1 <= self.port <= _MAX_PORT:
            raise ValueError(f"port must be a whole number from 1 to {_MAX_PORT}, not {self.port!r}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise ValueError(f"weight must be a number, not {self.weight!r}")  # noqa: TRY004 - as above
        if not 0 <= self.weight <= sys.float_info.max:
            raise ValueError(f"weight must be finite and not negative, not {self.weight!r}")
        if type(self.priority) is not int:
            raise ValueError(f"priority must be a whole number, not {self.priority!r}")
        set_(self, "address", join_host_port(host, self.port))
        set_(self, "_place", f"{host}\0{self.port:05}")
        if self.metadata is not _NOTHING:
            set_(self, "metadata", MappingProxyType({str(k): str(v) for k, v in self.metadata.items()}))

    @property
    def scheme(self) -> Literal["http", "https"]:
        """The URL scheme the server expects."""
        return "https" if self.tls else "http"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        return {
            "address": self.address,
            "weight": self.weight,
            "priority": self.priority,
            "zone": self.zone,
            "tls": self.tls,
            "metadata": dict(self.metadata),
            "id": self.id,
        }

    @classmethod
    def parse(cls, text: str, **more: Any) -> Endpoint:
        """An endpoint from `host:port`, `[v6]:port` or `http(s)://host[:port][/]`.

        Keyword arguments are passed on to the constructor. Raises `ValueError` for anything else, for
        a URL with credentials, a path or a query too: they would be ignored in silence.
        """
        scheme, separator, rest = text.strip().rpartition("://")
        if not separator:
            host, port = split_host_port(rest)
            return cls(host=host, port=port, **more)
        if scheme not in ("http", "https"):
            raise ValueError(f"scheme must be http or https, not {scheme!r}")
        rest = rest.removesuffix("/")
        if any(c in rest for c in "/?#@"):
            raise ValueError("an endpoint URL must be scheme://host[:port] without credentials, path or query")
        tls = scheme == "https"
        host, port = split_host_port(rest, default_port=443 if tls else 80)
        return cls(host=host, port=port, tls=tls, **more)


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets where the host is an IPv6 literal."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """`host:port` or `[v6]:port` in two parts; raises `ValueError` that quotes the text."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") or not port else "?"
    elif text.count(":") > 1:
        raise ValueError(f"an IPv6 address needs brackets: [{text}]:port")
    else:
        host, _, port = text.partition(":")
    if not port and default_port is not None:
        return host, default_port
    if not (port.isascii() and port.isdigit()):
        raise ValueError(f"expected host:port, got {text!r}")
    return host, int(port)


def _valid_host(host: object) -> str:
    if not isinstance(host, str):
        raise ValueError(f"host must be a string, not {host!r}")  # noqa: TRY004 - one error type for bad values
    if len(host) > _MAX_NAME + 1:
        raise ValueError(f"{host[:50]!r}... is neither an IP address nor a DNS name: it is too long")
    if _IPV4.fullmatch(host):
        if host == "0.0.0.0" or 224 <= int(host.partition(".")[0]) < 240:  # noqa: S104, PLR2004 - multicast
            raise ValueError(_NO_SERVER.format(host))
        return host  # `ipaddress` says the same, but takes most of the time of making an endpoint
    if ":" not in host:
        return _valid_name(host)
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return _valid_name(host)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(_NO_SERVER.format(host))
    if address.scope_id:
        raise ValueError(f"{host}: an IPv6 address with a scope is only meaningful on one machine")
    return str(address)


def _valid_name(host: str) -> str:
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{host!r} is neither an IP address nor a DNS name")
    # inet_aton() would read 127.1, 0x7f.1 and 2130706433 as addresses: a name that ends in a number
    # is one to some resolver (https://url.spec.whatwg.org/#ends-in-a-number-checker).
    if labels[-1].isdigit() or _HEXADECIMAL.fullmatch(labels[-1]):
        raise ValueError(f"{host!r} is neither an IP address nor a DNS name: it ends in a number")
    return name


def endpoint_tuple(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints sorted by host, port and id, one per address (the first id in that order stays)."""
    found = tuple(endpoints)
    # Almost always they come as they were, and a loop over thousands would be felt at every change.
    if all(map(lt, map(_place, found), map(_place, islice(found, 1, None)))):
        return found
    unique = dict(zip(map(_place, found), found, strict=True))
    if len(unique) < len(found):
        unique.clear()
        for endpoint in found:
            kept = unique.setdefault(_place(endpoint), endpoint)
            if kept is not endpoint and endpoint.id < kept.id:
                unique[_place(endpoint)] = endpoint
    return tuple(sorted(unique.values(), key=_place))
