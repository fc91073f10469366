"""Questions to DNS servers; dnspython's resolver carries them, with TCP where UDP is too small."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from discovery.connection import address as canonical
from discovery.endpoint import join_host_port, split_host_port
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["Absent", "Answer", "DnsClient", "RecordType", "SrvRecord", "require_dns", "server_address"]

RecordType = Literal["A", "AAAA", "SRV"]

# Bytes of a UDP answer that pass everywhere (https://www.dnsflagday.net/2020/); Go's resolver asks for as many.
_UDP_SIZE = 1232


class Absent(SourceError):  # noqa: N818 - it is an answer, and only for the source an error
    """The servers answered that there is no such name, or that it has no records of this type."""


class SrvRecord(NamedTuple):
    """One SRV record (RFC 2782); the target is a name without its last dot, empty for `.`."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer.

    Attributes:
        records: addresses as text, or `SrvRecord`s; at least one.
        ttl: seconds, the smallest of the records and of the aliases (CNAME) on the way to them.
        additional: addresses that came along, by name (without the last dot) and type.
    """

    records: tuple[Any, ...]
    ttl: float
    additional: Mapping[tuple[str, RecordType], Answer] = field(default_factory=lambda: MappingProxyType({}))


def require_dns() -> None:
    """Import dnspython.

    Raises:
        ImportError: it is not installed; the message says how to change that.
    """
    _library()


def server_address(text: str, *, tls: bool) -> str:
    """A DNS server's address in canonical form, `ip:port`; the port may be left out.

    Raises:
        ValueError: it is none; a name is none, because nobody could be asked for its address.
    """
    where = canonical(text, default_port=853 if tls else 53)
    try:
        ipaddress.ip_address(split_host_port(where)[0])
    except ValueError:
        raise ValueError(f"a nameserver must be an IP address, with or without a port, not {text!r}") from None
    return where


class DnsClient:
    """Asks one set of DNS servers; there is nothing to be closed.

    A server that refuses, fails or does not answer in its share of `timeout` is passed over; the one that
    answered last is asked first the next time.

    Args:
        servers: `ip:port` each; none at all for those of /etc/resolv.conf, which is read now.
        search: whether names without a dot at their end are looked up in resolv.conf's search domains too.
        timeout: seconds for a question, with all retries.
        tcp: ask over TCP at once.
        tls: ask over TLS (RFC 7858).

    Raises:
        SourceError: the system's configuration or the certificates cannot be used now.
    """

    def __init__(
        self, servers: Sequence[str], *, search: bool, timeout: float, tcp: bool, tls: TLS | None
    ) -> None:
        library = _library()
        self._timeout = timeout
        self._search = search and not servers
        self._tcp, self._tls = tcp, tls is not None
        self._backend = library.backend()
        try:
            context = None if tls is None else tls.load()
            self._resolver = library.dns.asyncresolver.Resolver(configure=not servers)
            found = servers or [join_host_port(s, 853 if tls else 53) for s in self._resolver.nameservers]
            name = tls.server_name if tls else None
            made = [library.server(*split_host_port(each), context, name) for each in found]
        except (ValueError, library.dns.exception.DNSException) as error:
            raise SourceError(f"DNS: {error}") from error
        self._resolver.nameservers = made
        # A share for each server, and one more for a datagram that was lost.
        self._resolver.timeout = timeout / (len(made) + 1)
        self._resolver.use_edns(0, payload=_UDP_SIZE)

    async def ask(self, name: str, kind: RecordType) -> Answer:
        """The records of one type.

        Raises:
            Absent: there are none, say the servers.
            SourceError: nobody answered usefully.
        """
        resolver, exceptions = self._resolver, _library().dns.resolver
        try:
            # The resolver measures with the wall clock, which may be set; this limit does not care.
            async with asyncio.timeout(self._timeout + 0.5):
                answer = await resolver.resolve(
                    name,
                    kind,
                    tcp=self._tcp,
                    search=self._search,
                    lifetime=self._timeout,
                    backend=self._backend,
                )
        except exceptions.NXDOMAIN:
            raise Absent(f"DNS: {name} does not exist") from None
        except exceptions.NoAnswer:
            raise Absent(f"DNS: {name} has no {kind} records") from None
        except (exceptions.LifetimeTimeout, exceptions.NoNameservers) as error:
            raise SourceError(f"DNS: {kind} of {name}: {self._reasons(error.kwargs['errors'])}") from error
        except (_library().dns.exception.DNSException, OSError) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise SourceError(f"DNS: {kind} of {name}: {why}") from error
        self._prefer(answer.nameserver, answer.port)
        ttl = answer.chaining_result.minimum_ttl
        return Answer(
            records=tuple(map(_record, answer.rrset)), ttl=ttl, additional=_additional(answer.response.additional)
        )

    def _prefer(self, host: str, port: int) -> None:
        servers = self._resolver.nameservers
        self._resolver.nameservers = sorted(servers, key=lambda s: (s.address, s.port) != (host, port))

    def _reasons(self, errors: Iterable[tuple[str, bool, int, Any, Any]]) -> str:
        reasons = dict.fromkeys(
            f"{server}{' over TCP' if tcp and not self._tls else ''}: {_why(error)}"
            for server, tcp, _, error, _ in errors
        )
        return "; ".join(reasons) or f"no answer within {self._timeout:g} s"


def _why(error: object) -> str:
    """What one server did, in words."""
    dns = _library().dns
    match error:
        case dns.exception.Timeout():
            why = "no answer"
        case dns.message.Truncated():
            why = "its answer is too long for UDP"
        case ssl.SSLCertVerificationError():
            why = f"its TLS certificate is not accepted: {error.verify_message}"
        case ssl.SSLError():
            why = f"no TLS connection: {error.reason or error}"
        case EOFError():
            why = "it closed the connection"
        case OSError(errno=int(number)):
            # asyncio's own text repeats the address.
            why = os.strerror(number)
        case str():
            why = f"it answered {error}"
        case _:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return why


def _record(data: Any) -> str | SrvRecord:
    if hasattr(data, "target"):
        return SrvRecord(data.priority, data.weight, data.port, _text(data.target))
    return str(data.address)


def _text(name: Any) -> str:
    return str(name.to_text(omit_final_dot=True)).lower().removesuffix(".")


def _additional(section: Iterable[Any]) -> Mapping[tuple[str, RecordType], Answer]:
    found: dict[tuple[str, RecordType], Answer] = {}
    kinds: tuple[RecordType, ...] = ("A", "AAAA")
    for rrset in section:
        for kind in kinds:
            if rrset.rdtype.name == kind:
                found[_text(rrset.name), kind] = Answer(records=tuple(map(_record, rrset)), ttl=rrset.ttl)
    return MappingProxyType(found)


async def _ask_over_tcp(request: Any, host: str, port: int, tls: dict[str, Any], timeout: float) -> Any:  # noqa: ASYNC109
    dns = _library().dns
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port, **tls)
            try:
                writer.write(request.to_wire(prepend_length=True))
                wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            finally:
                # No farewell: with TLS a hung server would keep the socket for half a minute.
                writer.transport.abort()
    except TimeoutError as error:
        raise dns.exception.Timeout(timeout=timeout) from error
    # A record takes 50 us and more: a thousand of them in one go would hold up everything else.
    response = await asyncio.to_thread(dns.message.from_wire, wire)
    if not request.is_response(response):
        raise dns.query.BadResponse
    return response


class _Library(NamedTuple):
    """dnspython, and what is made of its classes."""

    dns: Any
    backend: Any
    server: Any


@functools.cache
def _library() -> _Library:
    try:
        import dns.asyncbackend  # noqa: PLC0415 - an extra
        import dns.asyncresolver  # noqa: PLC0415 - as above
        import dns.nameserver  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ImportError("DNS support is not installed: pip install 'lbclient[dns]'") from error

    class Connected(type(dns.asyncbackend.get_backend("asyncio"))):  # type: ignore[misc]
        """Connects its UDP sockets: a server that is not there is known at once, not after a time-out."""

        def datagram_connection_required(self) -> bool:
            return True

    class Server(dns.nameserver.Do53Nameserver):
        """One server. UDP is the package's business; over TCP an answer may be long, and is parsed in a thread."""

        def __init__(self, host: str, port: int, context: ssl.SSLContext | None, name: str | None) -> None:
            super().__init__(host, port)
            self._tls: dict[str, Any] = (
                {} if context is None else {"ssl": context, "server_hostname": name or host}
            )

        def __str__(self) -> str:
            return join_host_port(self.address, self.port)

        def is_always_max_size(self) -> bool:
            return bool(self._tls)

        async def async_query(  # type: ignore[override]
            self,
            request: Any,
            *,
            timeout: float,  # noqa: ASYNC109 - the package's own name for it
            max_size: bool,
            **more: Any,
        ) -> Any:
            if not max_size:
                return await super().async_query(request, timeout=timeout, max_size=False, **more)
            return await _ask_over_tcp(request, self.address, self.port, self._tls, timeout)

    return _Library(dns, Connected, Server)
