"""An authoritative DNS server (NSD) of its own on loopback, with one zone that can be changed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from lbclient.sandbox.binaries import find
from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.local import LocalServer
from lbclient.sandbox.ports import LOOPBACK, free_port
from lbclient.sandbox.server import Server

__all__ = ["DnsServer", "start_dns"]

_POLL = 0.01
_RELOAD_TIMEOUT = 10.0
_RELOAD_AGAIN = 0.5
_ASK_TIMEOUT = 0.5
# While it reloads, the process that goes may still take questions beside the one that comes.
_TIMES_IN_ROW = 5


async def start_dns(
    records: Iterable[str] = (), *, zone: str = "test", tls: tuple[Path | str, Path | str] | None = None
) -> "DnsServer":
    """Start a DNS server and wait until it answers; each test may change or kill its own.

    Args:
        records: The zone's records, see `DnsServer.set_records`.
        zone: The zone's name.
        tls: PEM files of a certificate and of its key: the server speaks DNS over TLS at `tls_address` too.

    Raises:
        ServerUnavailable: There is no way to run one here; the message says what to install.
        SandboxError: It did not start.
    """
    return await DnsServer.start(records, zone=zone, tls=tls)


class DnsServer(Server):
    """One DNS server on loopback, over UDP and TCP; it asks nobody else.

    Attributes:
        zone: The name of its zone.
        tls_address: Where it speaks DNS over TLS, "host:port"; empty if it was started without.
    """

    kind = "DNS server"

    def __init__(self, address: str, version: str, host: LocalServer, zone: str) -> None:
        super().__init__(address, version, host)
        self.zone = zone
        self.tls_address = ""
        self._folder = Path(host.data)
        self._local = host
        self._serial = 0
        self._written_at = 0
        self._records: tuple[str, ...] = ()

    @classmethod
    async def start(
        cls,
        records: Iterable[str] = (),
        *,
        zone: str = "test",
        tls: tuple[Path | str, Path | str] | None = None,
    ) -> Self:
        """Start one; see `start_dns`."""
        launcher = await asyncio.to_thread(find, "nsd")
        host = launcher.server()
        if not isinstance(host, LocalServer):
            raise SandboxError("the DNS server runs as a local process only")
        server = cls(f"{LOOPBACK}:{free_port()}", launcher.version, host, zone)
        try:
            server._configure(tls)
            server._write(records)
            await server._local.start(["-d", "-c", str(server._folder / "nsd.conf")], ())
            await server.wait_healthy()
        except BaseException:
            await server.stop()
            raise
        return server

    async def set_records(self, records: Iterable[str]) -> None:
        """Replace all records, and wait until the server tells the new ones (after its restart if it is down).

        Args:
            records: Lines such as "web 5 A 10.0.0.1" or "_http._tcp 5 SRV 0 1 80 web" in the format of zone
                files: name, TTL in seconds, type, data; names without a dot at their end are in the zone.

        Raises:
            SandboxError: The server does not take them.
        """
        self._write(records)
        if not self.running:
            return
        deadline = time.monotonic() + _RELOAD_TIMEOUT
        again_at = 0.0
        while not await self._tells_all():
            self._local.expect_running("telling the new records")
            now = time.monotonic()
            if now > deadline:
                raise SandboxError(f"{self.address} does not take the records\n{self._local.tail()}")
            if now > again_at:
                # One that comes while it still reloads may be forgotten.
                self._local.signal(signal.SIGHUP)
                again_at = now + _RELOAD_AGAIN
            await asyncio.sleep(_POLL)

    async def wipe(self, *, wait: bool = True) -> None:
        """Kill it and start it again with an empty zone.

        Args:
            wait: Return only when it answers.
        """
        await self.kill()
        self._write(())
        await self.restart(wait=wait)

    def _configure(self, tls: tuple[Path | str, Path | str] | None) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        host, _, port = self.address.partition(":")
        listen = [f"ip-address: {host}@{port}"]
        if tls is not None:
            tls_port = free_port()
            self.tls_address = f"{host}:{tls_port}"
            listen += [f"ip-address: {host}@{tls_port}", f"tls-port: {tls_port}"]
            listen += [f'tls-service-pem: "{tls[0]}"', f'tls-service-key: "{tls[1]}"']
        paths = {"zonesdir": "", "pidfile": "/pid", "xfrdfile": "/xfrd", "zonelistfile": "/zones", "xfrdir": ""}
        lines = [
            "server:",
            *listen,
            'username: ""',
            'chroot: ""',
            'database: ""',
            *(f'{name}: "{self._folder}{path}"' for name, path in paths.items()),
            "server-count: 1",
            "rrl-ratelimit: 0",
            "remote-control:",
            "control-enable: no",
            "zone:",
            f"name: {self.zone}.",
            "zonefile: zone",
        ]
        (self._folder / "nsd.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _write(self, records: Iterable[str]) -> None:
        self._serial += 1
        lines = [
            f"$ORIGIN {self.zone}.",
            f"@ 1 SOA ns admin {self._serial} 3600 600 86400 1",
            "@ 1 NS ns",
            f"ns 1 A {LOOPBACK}",
            *records,
        ]
        path = self._folder / "zone"
        new = self._folder / "zone.new"
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # It reads a file again only if its time has changed.
        self._written_at = max(time.time_ns(), self._written_at + 1_000_000)
        os.utime(new, ns=(self._written_at, self._written_at))
        new.replace(path)

    async def _healthy(self) -> bool:
        return await self._told_serial() == self._serial

    async def _tells_all(self) -> bool:
        """Whether nobody answers with the records of before."""
        for _ in range(_TIMES_IN_ROW):
            if await self._told_serial() != self._serial:
                return False
        return True

    async def _told_serial(self) -> int | None:
        """The serial of the zone as the server tells it; None if it tells nothing."""
        dns = _dnspython()
        host, _, port = self.address.partition(":")
        query = dns.message.make_query(f"{self.zone}.", "SOA")
        try:
            answer = await dns.asyncquery.udp(query, host, timeout=_ASK_TIMEOUT, port=int(port))
        except (dns.exception.DNSException, OSError):
            return None
        return int(answer.answer[0][0].serial) if answer.answer else None


def _dnspython() -> Any:
    try:
        import dns.asyncquery  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SandboxError("a DNS server of the sandbox needs dnspython: pip install 'lbclient[dns]'") from error
    return dns
