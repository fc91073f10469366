"""The DNS server of the sandbox tells what it was given, and can be broken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.message
import pytest
import pytest_asyncio
import trustme

from lbclient.sandbox import DnsServer, SandboxError, ServerUnavailable, binaries, debian, start_dns


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[DnsServer]:
    async with await start_dns() as started:
        yield started


async def ask(server: DnsServer, name: str, kind: str = "A", *, tcp: bool = False) -> list[str]:
    host, _, port = server.address.partition(":")
    carry = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    answer = await carry(dns.message.make_query(name, kind), host, timeout=10, port=int(port))
    return sorted(record.to_text() for rrset in answer.answer for record in rrset)


async def test_records_are_told_once_they_are_set(server: DnsServer) -> None:
    for number in range(1, 20):
        await server.set_records([f"web 1 A 10.0.0.{number}", "web 1 AAAA fd00::1", "_x._tcp 1 SRV 1 2 3 web"])
        assert await ask(server, "web.test") == [f"10.0.0.{number}"]
    assert await ask(server, "web.test", "AAAA", tcp=True) == ["fd00::1"]
    assert await ask(server, "_x._tcp.test", "SRV") == ["1 2 3 web.test."]
    await server.set_records([])
    assert await ask(server, "web.test") == []


async def test_records_that_are_none_are_an_error(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbclient.sandbox.dns._RELOAD_TIMEOUT", 0.3)
    with pytest.raises(
        SandboxError, match=r"(?s)does not take the records.*invalid IPv4 address 'not-an-address'"
    ):
        await server.set_records(["web 1 A not-an-address"])


async def test_killing_pausing_restarting_wiping(server: DnsServer) -> None:
    await server.set_records(["web 1 A 10.0.0.1"])
    await server.pause()
    with pytest.raises(dns.exception.Timeout):
        await ask(server, "web.test")
    await server.resume()
    assert await ask(server, "web.test") == ["10.0.0.1"]
    await server.kill()
    assert not server.running
    await server.set_records(["web 1 A 10.0.0.2"])
    await server.restart()
    assert await ask(server, "web.test") == ["10.0.0.2"]
    await server.wipe()
    assert await ask(server, "web.test") == []
    assert server.killable


async def test_over_tls(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    files = tmp_path / "cert", tmp_path / "key"
    issued.cert_chain_pems[0].write_to_path(str(files[0]))
    issued.private_key_pem.write_to_path(str(files[1]))
    async with await start_dns(["web 1 A 10.0.0.1"], tls=files) as server:
        host, _, port = server.tls_address.partition(":")
        query = dns.message.make_query("web.test", "A")
        assert (await dns.asyncquery.tls(query, host, 10, int(port), verify=False)).answer


async def test_one_that_dies_says_why(tmp_path: Path) -> None:
    began_at = time.monotonic()
    with pytest.raises(SandboxError, match="exited with"):
        await start_dns(tls=(tmp_path / "none", tmp_path / "none"))
    assert time.monotonic() - began_at < 5


async def test_without_one_the_message_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ServerUnavailable) as caught:
        await start_dns()
    for words in ("no nsd to run here", "put the program nsd on PATH", "not run in Docker", "no apt-get"):
        assert words in str(caught.value)
    assert "LBCLIENT" not in str(caught.value)


async def test_its_libraries_are_unpacked_beside_it() -> None:
    launcher = await asyncio.to_thread(binaries.find, "nsd")
    if launcher.way == "Debian":
        assert launcher.libraries is not None
        assert list(launcher.libraries.glob("libevent-2.1.so.*"))
    assert debian.library_folder(debian.PACKAGES["consul"][0], Path("/a/usr/bin/consul")) is None
