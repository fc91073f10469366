"""From a URL to a source: `open_source("etcd://host:2379/services/users/")`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote

from discovery.combined import Failover, Merge
from discovery.consul import Consul
from discovery.dns import Dns
from discovery.endpoint import split_host_port
from discovery.etcd import Etcd
from discovery.file import File
from discovery.source import Source, Static
from discovery.tls import TLS

__all__ = ["open_source", "service_name"]

_Options = dict[str, Any]
_Known = Mapping[str, Callable[[str, str], Any]]  # options: name, then how to read (name, text)
_Opener = Callable[[str, str, _Options], Source]  # hosts, path, options

_LONGEST_LABEL = 63
_REPEATABLE = {"tag", "nameserver"}


def open_source(url: str) -> Source:
    """The source that a URL names.

    - `static://h1:p1,h2:p2`
    - `etcd://h1:2379,h2:2379/prefix/`, options `records`, `schemes` (`a,b`), `probe_interval`, `timeout`; with a
      user `etcd://user:password@h1:2379,h2:2379/prefix/`
    - `consul://host:8500/service`, options `tag` (may be repeated), `dc`, `ns`, `filter`, `near`, `records`,
      `schemes`, `passing`, `token`, `token_file`, `wait`, `probe_interval`, `timeout`. Without a host,
      `consul:///service`, it is the agent that the environment names
    - `dns://name:port` for the addresses of a name, `srv://_http._tcp.name` for SRV records, options `nameserver`
      (may be repeated), `family`, `search`, `min_ttl`, `max_ttl`, `timeout`, `tcp`, `tls`; with DNS
      servers in front as in gRPC: `dns://10.0.0.53/name:port`
    - `file:///path/to/users.yaml`, options `interval`, `format`

    Several URLs are one source: `a + b` is all endpoints of both (`Merge`), `a | b` those of `b` when `a` is
    not good (`Failover`), with spaces around the sign.

    `etcds` and `consuls` are the same over TLS, with the options `ca`, `cert`, `key` (paths of PEM files) and
    `server_name`, as in `TLS`. What has a meaning in URLs is percent-encoded in a user, a password and a prefix:
    `%40` is `@`, `%2F` is `/`, `%3A` is `:`. The slash that ends the hosts is not part of an etcd prefix:
    `etcd://host/users/` reads `users/`, `etcd://host//users/` reads `/users/`.

    Raises:
        ValueError: the URL is wrong; the message says where, and repeats neither tokens nor passwords.
        ImportError: the package for that registry is not installed.
    """
    for sign, combination in ((" | ", Failover), (" + ", Merge)):
        if sign in url:
            return combination(*(open_source(each.strip()) for each in url.split(sign)))
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(
            "a source is a URL such as etcd://127.0.0.1:2379/services/users/ or static://10.0.0.1:8080"
        )
    if scheme.lower() not in _SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; known ones are {', '.join(_SCHEMES)}")
    rest, _, query = rest.partition("?")
    hosts, _, path = rest.partition("/")
    open_, options, example = _SCHEMES[scheme.lower()]
    try:
        found = _options(query, options)
        hosts = _take_user(scheme.lower(), hosts, path, found)
        if scheme.lower() in _WITH_TLS:
            _take_tls(scheme.lower(), found)
        return open_(hosts, unquote(path, errors="strict"), found)
    except ValueError as error:
        if "@" in path or "@" in query:
            # Perhaps a password with a slash in it, and the hosts are its beginning: nothing is quoted.
            hint = "write / and ? in a password as %2F and %3F, @ elsewhere as %40"
            raise ValueError(f"{scheme}: the URL cannot be read ({hint}); it looks like {example}") from None
        raise ValueError(f"{scheme}: {error}; it looks like {example}") from error


def service_name(url: str) -> str:
    """The natural name of the service that a source URL is about, as a valid lower-case host name.

    It is the last part of an etcd prefix, the Consul service, the name in DNS without the labels of SRV, or the
    file's name without its ending, of the first of several URLs; `service` where there is none. Characters that
    a host name cannot have become hyphens.
    """
    url = re.split(r" [|+] ", url)[0]
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


def _take_user(scheme: str, hosts: str, path: str, options: _Options) -> str:
    """Move `user:password@` from the front of the hosts into the options."""
    if scheme in _WITH_USER and "@" in path:
        # A password with a slash, and its first half might even pass for a port, and be shown.
        raise ValueError("there is an @ behind the hosts")
    credentials, at, hosts = hosts.rpartition("@")
    if at and scheme not in _WITH_USER:
        raise ValueError("user and password have no meaning here")
    if at:
        user, colon, password = credentials.partition(":")
        try:
            options["user"], options["password"] = (unquote(each, errors="strict") for each in (user, password))
        except UnicodeDecodeError:
            raise ValueError("user or password is not UTF-8") from None
        if not (user and colon and password):
            raise ValueError("before the @ there must be user:password")
    return hosts


def _take_tls(scheme: str, options: _Options) -> None:
    """Turn the options with the names of its fields into one `TLS`."""
    fields = {name: options.pop(name) for name in _OF_TLS if name in options}
    if not scheme.endswith("s"):
        if fields:
            raise ValueError(f"option {next(iter(fields))} is for TLS only: {scheme}s://")
        return
    for name, value in fields.items():
        if not value:
            raise ValueError(f"option {name} is empty")
    options["tls"] = TLS(**fields)


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


def _open_static(hosts: str, path: str, _: _Options) -> Source:
    if path:
        raise ValueError("there is nothing to name after the hosts")
    return Static(host for host in hosts.split(",") if host)


def _open_etcd(hosts: str, path: str, options: _Options) -> Source:
    if not hosts or not path:
        raise ValueError("the prefix is missing" if hosts else "the host is missing")
    return Etcd(path, hosts=hosts.split(","), **options)


def _open_consul(host: str, path: str, options: _Options) -> Source:
    if not path:
        raise ValueError("the service is missing")
    # Plain HTTP is what the URL says if it names a host; else the environment may say otherwise.
    options.setdefault("tls", False if host else None)
    return Consul(path.removesuffix("/"), address=host or None, **options)


def _open_dns(hosts: str, path: str, options: _Options) -> Source:
    name, servers = _name_and_servers(hosts, path, options)
    host, port = split_host_port(name)
    return Dns(host, port, nameservers=servers, **options)


def _open_srv(hosts: str, path: str, options: _Options) -> Source:
    name, servers = _name_and_servers(hosts, path, options)
    return Dns(name, kind="srv", nameservers=servers, **options)


def _name_and_servers(hosts: str, path: str, options: _Options) -> tuple[str, list[str]]:
    servers = options.pop("nameserver", [])
    name = path or hosts
    if path and hosts:
        if servers:
            raise ValueError("nameservers stand either in front of the name or in options, not in both")
        servers = hosts.split(",")
    if not name:
        raise ValueError("the name is missing")
    return name, servers


def _open_file(host: str, path: str, options: _Options) -> Source:
    if host not in ("", "localhost"):
        raise ValueError("the path must be absolute: three slashes before it, and no host")
    return File(f"/{path}", **options)


_OF_TLS: _Known = {"ca": _text, "cert": _text, "key": _text, "server_name": _text}
_OF_ETCD: _Known = {
    "records": _text,
    "schemes": _text,
    "probe_interval": _seconds,
    "timeout": _seconds,
    **_OF_TLS,
}
_OF_CONSUL: _Known = {
    "tag": _text,
    "dc": _text,
    "ns": _text,
    "filter": _text,
    "near": _text,
    "records": _text,
    "schemes": _text,
    "passing": _boolean,
    "token": _text,
    "token_file": _text,
    "wait": _seconds,
    "probe_interval": _seconds,
    "timeout": _seconds,
    **_OF_TLS,
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
_WITH_USER = ("etcd", "etcds")
_WITH_TLS = ("etcd", "etcds", "consul", "consuls")
_SCHEMES: Mapping[str, tuple[_Opener, _Known, str]] = MappingProxyType(
    {
        "static": (_open_static, {}, "static://10.0.0.1:8080,10.0.0.2:8080"),
        "etcd": (_open_etcd, _OF_ETCD, "etcd://127.0.0.1:2379/services/users/"),
        "etcds": (_open_etcd, _OF_ETCD, "etcds://etcd.example:2379/services/users/"),
        "consul": (_open_consul, _OF_CONSUL, "consul://127.0.0.1:8500/users?tag=v1"),
        "consuls": (_open_consul, _OF_CONSUL, "consuls://consul.example:8501/users?tag=v1"),
        "dns": (_open_dns, _OF_DNS, "dns://users.example:8080"),
        "srv": (_open_srv, _OF_DNS, "srv://_http._tcp.users.example"),
        "file": (_open_file, _OF_FILE, "file:///etc/endpoints/users.yaml"),
    }
)
