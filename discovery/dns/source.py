"""Endpoints from DNS: the addresses of a name, or the targets of its SRV records."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args
from urllib.parse import quote, urlencode

from discovery.connection import positive
from discovery.dns.client import Absent, DnsClient, RecordType, require_dns, server_address
from discovery.dns.lookup import Kept, Lookup
from discovery.endpoint import Endpoint, join_host_port
from discovery.source import SourceError
from discovery.tls import TLS, as_tls

__all__ = ["Dns"]

log = logging.getLogger(__name__)

Kind = Literal["address", "srv"]
Family = Literal["any", "ipv4", "ipv6"]

_TYPES: Mapping[Family, tuple[RecordType, ...]] = MappingProxyType(
    {"any": ("A", "AAAA"), "ipv4": ("A",), "ipv6": ("AAAA",)}
)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_LONGEST_NAME = 254
_MAX_PORT = 65535


class Dns:
    """The addresses of a name (A and AAAA), or the targets of SRV records, asked again when their TTL ends.

    A caller may rely on: one endpoint per IP address, with the name in `metadata["name"]`. A name that does not
    exist, or has no records, is an error and never an empty set: only an SRV record with the target `.` says
    that there is no such service (RFC 2782). Where one family, or one SRV target, cannot be resolved while the
    others can, its last addresses stay for up to twice `max_ttl`, and it is in `skipped`. What it does
    not do: it reads neither /etc/hosts nor asks about `localhost` elsewhere than in DNS; it notices a
    silent server only when it asks, so within `max_ttl + timeout` seconds.

    SRV records of all priorities are listed: lower ones are preferred, and it is for the balancer to keep to that.
    A record's weight is shared by the addresses of its target. Weight 0
    means a very small share: all records of weight 0 together get a hundredth of the other weights, at most 1,
    which is what the algorithm of RFC 2782 gives them; where all weights are 0 they are equal.

    Args:
        name: the name; search domains of /etc/resolv.conf apply unless it ends in a dot.
        port: of every endpoint; not with SRV, whose records have it.
        kind: `address` or `srv`.
        family: `any`, `ipv4` or `ipv6`.
        nameservers: IP addresses of DNS servers, with or without a port; those of /etc/resolv.conf by default.
        search: whether search domains apply; there are none where `nameservers` are given.
        min_ttl: seconds to wait at least before asking again.
        max_ttl: seconds to wait at most, so that a change is not missed for hours.
        timeout: seconds for one question, with retries and all servers.
        tcp: ask over TCP at once, for servers that shorten UDP answers without saying so, as Consul's does.
        tls: ask over TLS, port 853 by default; True, a `TLS`, or an `ssl.SSLContext`.

    Raises:
        ImportError: dnspython is not installed.
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        name: str,
        port: int | None = None,
        *,
        kind: Kind = "address",
        family: Family = "any",
        nameservers: Iterable[str] = (),
        search: bool = True,
        min_ttl: float = 1.0,
        max_ttl: float = 30.0,
        timeout: float = 3.0,
        tcp: bool = False,
        tls: bool | ssl.SSLContext | TLS = False,
    ) -> None:
        require_dns()
        self.name = _valid_name(name)
        self.port = _valid_port(kind, port)
        self.kind: Kind = kind
        if family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}, not {family!r}")
        self.family: Family = family
        self._tls = as_tls(tls)
        given = (nameservers,) if isinstance(nameservers, str) else nameservers
        self.nameservers = tuple(dict.fromkeys(server_address(s, tls=self._tls is not None) for s in given))
        self._search, self._tcp = search, tcp
        self._min_ttl, self._max_ttl = positive("min_ttl", min_ttl), positive("max_ttl", max_ttl)
        if self._max_ttl < self._min_ttl:
            raise ValueError(f"max_ttl must be at least min_ttl ({min_ttl!r} seconds), not {max_ttl!r}")
        self._timeout = positive("timeout", timeout)
        self._kept = Kept(2 * self._max_ttl)
        self._skipped: dict[str, str] = {}

    def __repr__(self) -> str:
        options = [("nameserver", server) for server in self.nameservers]
        options += [("family", self.family)] if self.family != "any" else []
        options += [("tcp", "1")] if self._tcp else []
        options += [("tls", "1")] if self._tls else []
        where = f"dns://{quote(self.name)}:{self.port}" if self.kind == "address" else f"srv://{quote(self.name)}"
        return f"{where}{'?' if options else ''}{urlencode(options, safe=':[]')}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """What could not be resolved or used in the last lookup that was good as a whole, and why."""
        return MappingProxyType(self._skipped)

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, and each time that it was asked for again.

        Raises:
            SourceError: no server answers usefully, the name does not exist, or it has no records.
        """
        client = DnsClient(
            self.nameservers, search=self._search, timeout=self._timeout, tcp=self._tcp, tls=self._tls
        )
        while True:
            lookup = Lookup(client, _TYPES[self.family], self._kept)
            try:
                if self.kind == "srv":
                    await lookup.services(self.name)
                else:
                    await lookup.hosts(self.name, self.port or 0)
            except Absent as error:
                # Such an answer has a TTL too; an error of the way there has none.
                raise SourceError(str(error), retry_after=self._min_ttl) from error
            self._note(lookup.skipped)
            yield lookup.endpoints
            await asyncio.sleep(self._until_next(lookup.ttl))

    def _until_next(self, ttl: float) -> float:
        # After the end of the TTL: before it a cache would give the same records with a rest of it.
        ttl = max(ttl, self._min_ttl)
        if ttl * 1.1 <= self._max_ttl:
            return ttl * random.uniform(1, 1.1)
        return max(self._max_ttl * random.uniform(0.9, 1), self._min_ttl)

    def _note(self, skipped: dict[str, str]) -> None:
        for what, why in skipped.items():
            if what not in self._skipped:
                log.warning("%r: %s skipped: %s", self, what, why)
        self._skipped = skipped


def _valid_name(name: str) -> str:
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        pass
    else:
        raise ValueError(
            f"{address} is an address already: static://{join_host_port(str(address), 80)} needs no DNS"
        )
    name = name.lower()
    labels = name.removesuffix(".").split(".")
    # What is outside of this cannot be a service's name, and dots or backslashes would be read in other ways.
    if len(name) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{name!r} is no DNS name: letters, digits, hyphens and underscores between the dots")
    return name


def _valid_port(kind: Kind, port: int | None) -> int | None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if kind == "srv":
        if port is not None:
            raise ValueError(f"SRV records have the port, so {port!r} would be ignored")
        return None
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= _MAX_PORT:
        raise ValueError(f"addresses in DNS have no port: give one from 1 to {_MAX_PORT}, not {port!r}")
    return port
