"""From a URL to a source: `open_source("etcd://host:2379/services/users/")`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote

from discovery.consul import Consul
from discovery.etcd import Etcd
from discovery.source import Source, Static
from discovery.tls import TLS

__all__ = ["open_source", "service_name"]

_Options = dict[str, Any]
_Known = Mapping[str, Callable[[str, str], Any]]  # options: name, then how to read (name, text)
_Opener = Callable[[str, str, str, _Options], Source]  # scheme, hosts, path, options

_LONGEST_LABEL = 63


def open_source(url: str) -> Source:
    """The source that a URL names.

    - `static://h1:p1,h2:p2`
    - `etcd://h1:2379,h2:2379/prefix/`, options `records`, `probe_interval`, `timeout`
    - `consul://host:8500/service`, options `tag` (may be repeated), `dc`, `ns`, `filter`, `near`, `passing`,
      `token`, `token_file`, `wait`, `probe_interval`, `timeout`; with `consuls` also `ca`, `cert`, `key`,
      `server_name`. Without a host, `consul:///service`, it is the agent that the environment names.

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

    It is the last part of an etcd prefix or the Consul service; `service` where there is none. Characters
    that a host name cannot have become hyphens.
    """
    rest = url.partition("://")[2].partition("?")[0]
    last = unquote(rest.partition("/")[2]).rstrip("/").rpartition("/")[2]
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
        if name in found and name != "tag":
            raise ValueError(f"option {name} is given twice")
        found[name] = [*found.get(name, ()), value] if name == "tag" else value
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
    if not path:
        raise ValueError("the service is missing")
    tls = _tls_options(options, secure=scheme == "consuls")
    # Plain HTTP is what the URL says if it names a host; else the environment may say otherwise.
    return Consul(path.removesuffix("/"), address=host or None, tls=tls or (False if host else None), **options)


def _tls_options(options: _Options, *, secure: bool) -> bool | TLS:
    """Take the options of TLS out of all options."""
    found = {name: options.pop(name) for name in ("ca", "cert", "key", "server_name") if name in options}
    if found and not secure:
        raise ValueError(f"{', '.join(found)}: only with TLS")
    return TLS(**found) if found else secure


_OF_ETCD: _Known = {"records": _text, "probe_interval": _seconds, "timeout": _seconds}
_OF_CONSUL: _Known = {
    "tag": _text,
    "dc": _text,
    "ns": _text,
    "filter": _text,
    "near": _text,
    "passing": _boolean,
    "token": _text,
    "token_file": _text,
    "ca": _text,
    "cert": _text,
    "key": _text,
    "server_name": _text,
    "wait": _seconds,
    "probe_interval": _seconds,
    "timeout": _seconds,
}
_SCHEMES: Mapping[str, tuple[_Opener, _Known, str]] = MappingProxyType(
    {
        "static": (_open_static, {}, "static://10.0.0.1:8080,10.0.0.2:8080"),
        "etcd": (_open_etcd, _OF_ETCD, "etcd://127.0.0.1:2379/services/users/"),
        "etcds": (_open_etcd, _OF_ETCD, "etcds://etcd.example:2379/services/users/"),
        "consul": (_open_consul, _OF_CONSUL, "consul://127.0.0.1:8500/users?tag=v1"),
        "consuls": (_open_consul, _OF_CONSUL, "consuls://consul.example:8501/users?tag=v1"),
    }
)
