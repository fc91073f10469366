"""From a URL to a source: `open_source("etcd://host:2379/services/users/")`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote

from discovery.consul import Consul
from discovery.dns import Dns
from discovery.endpoint import split_host_port
from discovery.etcd import Etcd
from discovery.file import File
from discovery.source import Source, Static

__all__ = ["open_source", "service_name"]

_Options = dict[str, Any]
_Known = Mapping[str, Callable[[str, str], Any]]  # options: name, then how to read (name, text)
_Opener = Callable[[str, str, str, _Options], Source]  # scheme, hosts, path, options

_LONGEST_LABEL = 63
_REPEATABLE = {"tag", "nameserver"}


def open_source(url: str) -> Source:
    """The source that a URL names.

    - `static://h1:p1,h2:p2`
    - `etcd://h1:2379,h2:2379/prefix/`, options `records`, `probe_interval`, `timeout`
    - `consul://host:8500/service`, options `tag` (may be repeated), `dc`, `passing`, `token`, `wait`,
      `probe_interval`, `timeout`
    - `dns://name:port` for the addresses of a name, `srv://_http._tcp.name` for SRV records, options `nameserver`
      (may be repeated), `family`, `search`, `min_ttl`, `max_ttl`, `timeout`, `tcp`, `tls`; with DNS
      servers in front as in gRPC: `dns://10.0.0.53/name:port`
    - `file:///path/to/users.yaml`, options `interval`, `format`

    `etcds` and `consuls` are the same over TLS. The slash that ends the hosts is not part of an etcd prefix:
    `etcd://host/users/` reads `users/`, `etcd://host//users/` reads `/users/`.

    Raises:
        ValueError: the URL is wrong; the message says where, and repeats neither tokens nor passwords.
        ImportError: the package for that registry is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(
            "a source is a URL such as etcd://127.0.0.1:2379/services/users/ or static://10.0.0.1:8080"
        )
    if scheme.lower() not in _SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; known ones are {', '.join(_SCHEMES)}")
    rest, _, query = rest.partition("?")
    hosts, _, path = rest.partition("/")
    if "@" in hosts:
        raise ValueError(f"{scheme}: user and password in a URL are not supported yet")
    open_, options, example = _SCHEMES[scheme.lower()]
    try:
        return open_(scheme.lower(), hosts, unquote(path, errors="strict"), _options(query, options))
    except ValueError as error:
        if "@" in path:
            # Perhaps a password with a slash in it, and the hosts are its beginning: nothing is quoted.
            raise ValueError(f"{scheme}: the URL cannot be read; it looks like {example}") from None
        raise ValueError(f"{scheme}: {error}; it looks like {example}") from error


def service_name(url: str) -> str:
    """The natural name of the service that a source URL is about, as a valid lower-case host name.

    It is the last part of an etcd prefix, the Consul service, the name in DNS without the labels of SRV, or the
    file's name without its ending; `service` where there is none. Characters that a host name cannot have
    become hyphens.
    """
    scheme, _, rest = url.partition("?")[0].partition("://")
    hosts, _, path = rest.partition("/")
    last = unquote(path).rstrip("/").rpartition("/")[2]
    if scheme.lower() in ("dns", "srv"):
        last = re.sub(r"^(_[^.]*\.)+|:[0-9]*$", "", last or hosts)
    elif scheme.lower() == "file":
        last = re.sub(r"(?<=.)\.(json|ya?ml)$", "", last)
    labels = (label.strip("-")[:_LONGEST_LABEL].strip("-") for label in _unfit(last).split("."))
    name = ".".join(label for label in labels if label)
    # A name that ends in a number would be taken for an IPv4 address.
    if re.fullmatch(r"(.*\.)?([0-9]+|0x[0-9a-f]*)", name):
        name = f"service-{name.replace('.', '-')}"
    return name or "service"


def _unfit(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())


def _options(query: str, known: _Known) -> _Options:
    found: _Options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            allowed = f"known ones are {', '.join(known)}" if known else "there are none"
            # What does not look like a name may be a part of a password.
            shown = f" {name!r}" if re.fullmatch("[A-Za-z_-]{1,30}", name) else ""
            raise ValueError(f"unknown option{shown}; {allowed}")
        value = known[name](name, text)
        if name in found and name not in _REPEATABLE:
            raise ValueError(f"option {name} is given twice")
        found[name] = [*found.get(name, ()), value] if name in _REPEATABLE else value
    return found


def _text(_: str, value: str) -> str:
    return value


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {value!r}") from None


def _boolean(name: str, value: str) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if value.lower() not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return known[value.lower()]


def _open_static(_: str, hosts: str, path: str, __: _Options) -> Source:
    if path:
        raise ValueError("there is nothing to name after the hosts")
    return Static(host for host in hosts.split(",") if host)


def _open_etcd(scheme: str, hosts: str, path: str, options: _Options) -> Source:
    if not hosts or not path:
        raise ValueError("the prefix is missing" if hosts else "the host is missing")
    return Etcd(path, hosts=hosts.split(","), tls=scheme == "etcds", **options)


def _open_consul(scheme: str, host: str, path: str, options: _Options) -> Source:
    if not host or not path:
        raise ValueError("the service is missing" if host else "the host is missing")
    return Consul(path.removesuffix("/"), address=host, tls=scheme == "consuls", **options)


def _open_dns(scheme: str, hosts: str, path: str, options: _Options) -> Source:
    servers = options.pop("nameserver", [])
    name = path or hosts
    if path and hosts:
        if servers:
            raise ValueError("nameservers stand either in front of the name or in options, not in both")
        servers = hosts.split(",")
    if not name:
        raise ValueError("the name is missing")
    if scheme == "srv":
        return Dns(name, kind="srv", nameservers=servers, **options)
    host, port = split_host_port(name)
    return Dns(host, port, nameservers=servers, **options)


def _open_file(_: str, host: str, path: str, options: _Options) -> Source:
    if host not in ("", "localhost"):
        raise ValueError("the path must be absolute: three slashes before it, and no host")
    return File(f"/{path}", **options)


_OF_ETCD: _Known = {"records": _text, "probe_interval": _seconds, "timeout": _seconds}
_OF_CONSUL: _Known = {
    "tag": _text,
    "dc": _text,
    "passing": _boolean,
    "token": _text,
    "wait": _seconds,
    "probe_interval": _seconds,
    "timeout": _seconds,
}
_OF_DNS: _Known = {
    "nameserver": _text,
    "family": _text,
    "search": _boolean,
    "min_ttl": _seconds,
    "max_ttl": _seconds,
    "timeout": _seconds,
    "tcp": _boolean,
    "tls": _boolean,
}
_OF_FILE: _Known = {"interval": _seconds, "format": _text}
_SCHEMES: Mapping[str, tuple[_Opener, _Known, str]] = MappingProxyType(
    {
        "static": (_open_static, {}, "static://10.0.0.1:8080,10.0.0.2:8080"),
        "etcd": (_open_etcd, _OF_ETCD, "etcd://127.0.0.1:2379/services/users/"),
        "etcds": (_open_etcd, _OF_ETCD, "etcds://etcd.example:2379/services/users/"),
        "consul": (_open_consul, _OF_CONSUL, "consul://127.0.0.1:8500/users?tag=v1"),
        "consuls": (_open_consul, _OF_CONSUL, "consuls://consul.example:8501/users?tag=v1"),
        "dns": (_open_dns, _OF_DNS, "dns://users.example:8080"),
        "srv": (_open_dns, _OF_DNS, "srv://_http._tcp.users.example"),
        "file": (_open_file, _OF_FILE, "file:///etc/endpoints/users.yaml"),
    }
)
