"""Dns against a real server: what is in the zone reaches the snapshot, whatever happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from loop_gaps import loop_gaps
from patience import Stopwatch, patience
from registry_rig import hosts, sees, stale, until

from discovery import TLS, Dns, Endpoint, SourceError, Watcher, open_source
from lbclient.sandbox import DnsServer, free_port, start_dns

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[DnsServer]:
    async with await start_dns() as server:
        yield server


@pytest_asyncio.fixture
async def own() -> AsyncIterator[DnsServer]:
    """One that may be killed."""
    async with await start_dns(["web 0 A 10.0.0.1"]) as server:
        yield server


# The records have a TTL of 0 where it does not matter: they are asked for five times a second.
def addresses(server: DnsServer, name: str = "web.test", **more: Any) -> Dns:
    return Dns(name, 80, nameservers=[server.address], **{"min_ttl": 0.2, **more})


def services(server: DnsServer, **more: Any) -> Dns:
    return Dns("_http._tcp.test", kind="srv", nameservers=[server.address], **{"min_ttl": 0.2, **more})


async def first(source: Dns) -> list[Endpoint]:
    """The first set that a source yields, sorted."""
    sets = source.watch()
    try:
        return sorted(await anext(sets), key=lambda endpoint: (endpoint.address, endpoint.weight))
    finally:
        await sets.aclose()


async def test_a_changing_zone_reaches_the_snapshot(shared: DnsServer) -> None:
    await shared.set_records(["web 1 A 10.0.0.1", "web 1 A 10.0.0.2", "web 1 AAAA fd00::1"])
    async with Watcher(addresses(shared)) as watcher:
        snapshot = await until(watcher, sees("10.0.0.1", "10.0.0.2", "fd00::1"))
        assert [endpoint.address for endpoint in snapshot.endpoints][-1] == "[fd00::1]:80"
        assert all(dict(endpoint.metadata) == {"name": "web.test"} for endpoint in snapshot.endpoints)
        await shared.set_records(["web 1 A 10.0.0.2", "web 1 A 10.0.0.3"])
        await until(watcher, sees("10.0.0.2", "10.0.0.3"), 3)
        version = watcher.snapshot.version
        # An equal answer is a sign of life, and no change.
        received_at = watcher.snapshot.received_at or 0
        await until(watcher, lambda snapshot: (snapshot.received_at or 0) > received_at + 1, 5)
        assert watcher.snapshot.version == version


@pytest.mark.parametrize(("family", "expected"), [("ipv4", ["10.0.0.1"]), ("ipv6", ["fd00::1"])])
async def test_one_family_on_request(shared: DnsServer, family: Any, expected: list[str]) -> None:
    await shared.set_records(["web 0 A 10.0.0.1", "web 0 AAAA fd00::1"])
    assert [endpoint.host for endpoint in await first(addresses(shared, family=family))] == expected
    await shared.set_records(["_http._tcp 0 SRV 0 0 80 web", "web 0 A 10.0.0.1", "web 0 AAAA fd00::1"])
    assert [endpoint.host for endpoint in await first(services(shared, family=family))] == expected


async def test_the_other_family_is_asked_for_where_the_answer_brought_one_only(shared: DnsServer) -> None:
    await shared.set_records(["_http._tcp 0 SRV 0 0 80 web", "web 0 A 10.0.0.1"])
    with pytest.raises(SourceError, match=r"no target in the SRV records of _http\._tcp\.test exists"):
        await first(services(shared, family="ipv6"))


async def test_aliases_and_their_ttl(shared: DnsServer) -> None:
    await shared.set_records(["web 0 CNAME blue", "blue 300 A 10.0.0.1", "green 300 A 10.0.0.2"])
    async with Watcher(addresses(shared)) as watcher:
        assert (await until(watcher, sees("10.0.0.1"))).endpoints[0].id == "web.test"
        await shared.set_records(["web 0 CNAME green", "blue 300 A 10.0.0.1", "green 300 A 10.0.0.2"])
        await until(watcher, sees("10.0.0.2"), 3)


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_hundred_addresses(shared: DnsServer, tcp: bool) -> None:
    await shared.set_records([f"web 0 A 10.0.0.{number}" for number in range(1, 101)])
    assert len(await first(addresses(shared, tcp=tcp))) == 100
    targets = [f"_http._tcp 0 SRV 0 1 80 t{number}" for number in range(1, 101)]
    await shared.set_records(targets + [f"t{number} 1 A 10.0.0.{number}" for number in range(1, 101)])
    assert len(await first(services(shared, tcp=tcp))) == 100


async def test_thousands_of_addresses_do_not_hold_up_the_loop(shared: DnsServer) -> None:
    await shared.set_records([f"web 0 A 10.0.{number >> 8}.{number & 255}" for number in range(3000)])
    async with loop_gaps(time.thread_time) as gaps:
        assert len(await first(addresses(shared))) == 3000
    # Parsed in one go they take 130 ms and more, else 7 at a time; the test itself sorts them.
    assert gaps[0] < 0.05


async def test_srv_has_ports_weights_and_priorities(shared: DnsServer) -> None:
    await shared.set_records(
        [
            "_http._tcp 0 SRV 10 60 8080 big",
            "_http._tcp 0 SRV 10 40 8081 small",
            "_http._tcp 0 SRV 10 0 8082 big",
            "_http._tcp 0 SRV 20 1 8083 backup",
            "big 0 A 10.0.0.1",
            "big 0 A 10.0.0.2",
            "small 0 A 10.0.0.3",
            "backup 0 A 10.0.0.9",
        ]
    )
    found = await first(services(shared))
    assert [(endpoint.address, endpoint.weight, endpoint.priority) for endpoint in found] == [
        ("10.0.0.1:8080", 30, 10),
        ("10.0.0.1:8082", 0.5, 10),
        ("10.0.0.2:8080", 30, 10),
        ("10.0.0.2:8082", 0.5, 10),
        ("10.0.0.3:8081", 40, 10),
        ("10.0.0.9:8083", 1, 20),
    ]
    assert dict(found[-1].metadata) == {"name": "backup.test", "priority": "20"}


async def test_targets_that_do_not_exist_are_skipped_and_other_priorities_serve(
    shared: DnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    backup = ["_http._tcp 0 SRV 20 1 82 backup", "backup 0 A 10.0.0.9"]
    records = ["_http._tcp 0 SRV 10 1 80 web", "_http._tcp 0 SRV 10 1 81 gone", *backup]
    await shared.set_records([*records, "web 0 A 10.0.0.1"])
    source = services(shared)
    async with Watcher(source) as watcher:
        assert (await until(watcher, sees("10.0.0.1", "10.0.0.9"))).skipped == 1
        assert dict(source.skipped) == {"gone.test": "DNS: gone.test. does not exist"}
        received_at = watcher.snapshot.received_at or 0
        await until(watcher, lambda snapshot: (snapshot.received_at or 0) > received_at + 0.5)
        assert len([message for message in caplog.messages if "gone.test skipped" in message]) == 1
        await shared.set_records(records)
        await until(watcher, sees("10.0.0.9"))
        await shared.set_records([*records, "web 0 A 10.0.0.1", "gone 0 A 10.0.0.2"])
        assert (await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.9"))).skipped == 0


async def test_a_target_outside_of_the_zone_is_asked_for_elsewhere(shared: DnsServer) -> None:
    await shared.set_records(["_http._tcp 0 SRV 0 1 80 web.elsewhere."])
    with pytest.raises(SourceError, match=r"A of web\.elsewhere\.: .*it answered REFUSED"):
        await first(services(shared))


async def test_a_dot_says_that_there_is_no_service(shared: DnsServer) -> None:
    await shared.set_records(["_http._tcp 0 SRV 0 1 80 web", "web 0 A 10.0.0.1"])
    async with Watcher(services(shared)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await shared.set_records(["_http._tcp 0 SRV 0 0 0 ."])
        await until(watcher, sees(), 3)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "DNS: web.test does not exist"),
        (['web 0 TXT "x"'], "DNS: web.test has no A records"),
        (["web 0 A 0.0.0.0"], "DNS: nothing at web.test can be used: 0.0.0.0 is no address of a server"),
    ],
)
async def test_negative_answers_do_not_wipe(shared: DnsServer, records: list[str], words: str) -> None:
    await shared.set_records(["web 0 A 10.0.0.1"])
    async with Watcher(addresses(shared)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await shared.set_records(records)
        away = await until(watcher, stale, 3)
        assert (hosts(away), away.version, away.reason.partition(";")[0]) == (["10.0.0.1"], 1, words)
        await shared.set_records(["web 0 A 10.0.0.2"])
        await until(watcher, sees("10.0.0.2"), 4)


async def test_a_negative_answer_is_not_asked_for_again_at_once(shared: DnsServer) -> None:
    await shared.set_records([])
    for source in (addresses(shared, min_ttl=2), services(shared, min_ttl=2)):
        with pytest.raises(SourceError) as caught:
            await first(source)
        assert caught.value.retry_after == 2


async def test_killed_and_restarted(own: DnsServer) -> None:
    async with Watcher(addresses(own)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await own.kill()
        away = await until(watcher, lambda snapshot: "refused" in snapshot.reason, 6)
        assert (hosts(away), away.state) == (["10.0.0.1"], "stale")
        await own.set_records(["web 0 A 10.0.0.2"])
        await own.restart()
        await until(watcher, sees("10.0.0.2"), 3)


async def test_a_hung_server_is_noticed_when_it_is_asked(own: DnsServer) -> None:
    async with Watcher(addresses(own, timeout=0.6)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await own.pause()
        away = await until(watcher, stale, 3)
        assert away.reason == f"DNS: A of web.test: {own.address}: no answer"
        await own.resume()
        await until(watcher, sees("10.0.0.1"), 4)


@pytest.mark.parametrize(("dead", "lifetime", "passed_over_after"), [("refuses", 30, 0), ("hangs", 6, 2)])
async def test_of_two_servers_one_is_enough(
    shared: DnsServer, own: DnsServer, dead: str, lifetime: float, passed_over_after: float
) -> None:
    await shared.set_records(["web 0 A 10.0.0.1"])
    if dead == "hangs":
        await own.pause()
    other = own.address if dead == "hangs" else f"127.0.0.1:{free_port()}"
    source = Dns("web.test", 80, nameservers=[other, shared.address], timeout=lifetime, min_ttl=0.1)
    sets = source.watch()
    try:
        with Stopwatch() as watch:
            assert len(await anext(sets)) == 1
        assert watch.seconds < passed_over_after + (0.4 if dead == "refuses" else 0.5)
        # The one that answered is asked first from now on.
        with Stopwatch() as watch:
            assert len(await anext(sets)) == 1
        assert watch.seconds < 0.4
    finally:
        await sets.aclose()


async def test_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "dns.test")
    cert, key, ca = (str(tmp_path / name) for name in ("cert", "key", "ca"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    async with await start_dns(["web 0 A 10.0.0.1"], tls=(cert, key)) as server:
        where = server.tls_address
        for tls in (TLS(ca=ca), TLS(ca=ca, server_name="dns.test")):
            source = Dns("web.test", 80, nameservers=[where], tls=tls)
            assert [endpoint.host for endpoint in await first(source)] == ["10.0.0.1"]
        for tls, words in (
            (True, "TLS certificate is not accepted"),
            (TLS(ca=ca, server_name="other.test"), "TLS certificate is not accepted: Hostname mismatch"),
        ):
            with pytest.raises(SourceError, match=words):
                await first(Dns("web.test", 80, nameservers=[where], tls=tls))


async def test_by_url(shared: DnsServer) -> None:
    await shared.set_records(["web 0 A 10.0.0.1", "_http._tcp 0 SRV 0 0 81 web"])
    at = shared.address
    for url, expected in (
        (f"dns://web.test:80?nameserver={at}&family=ipv4&min_ttl=1&max_ttl=9&timeout=1&tcp=1", "10.0.0.1:80"),
        (f"dns://{at}/web.test:80", "10.0.0.1:80"),
        (f"srv://_http._tcp.test?nameserver={at}", "10.0.0.1:81"),
        (f"srv://{at}/_http._tcp.test", "10.0.0.1:81"),
    ):
        async with Watcher(open_source(url)) as watcher:
            async with patience(3):
                found = await watcher.ready(10)
            assert [endpoint.address for endpoint in found.endpoints] == [expected]


async def test_stopping_leaves_nothing_in_the_middle_of_a_question(own: DnsServer) -> None:
    await own.pause()
    for source in (addresses(own, timeout=30), addresses(own, tcp=True, timeout=30), services(own, timeout=30)):
        watcher = Watcher(source)
        watcher.start()
        await asyncio.sleep(0.05)
        with Stopwatch() as watch:
            await watcher.stop()
        assert watch.seconds < 0.1


async def test_search_domains_and_servers_come_from_the_system(
    shared: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes names its services without their domain."""
    import dns.resolver  # noqa: PLC0415 - what is patched

    configuration = tmp_path / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\nsearch nowhere.test svc.test\noptions ndots:5\n")
    real = dns.resolver.BaseResolver.read_resolv_conf
    monkeypatch.setattr(
        dns.resolver.BaseResolver, "read_resolv_conf", lambda self, _: real(self, str(configuration))
    )
    monkeypatch.setattr("discovery.dns.client.join_host_port", lambda *_: shared.address)
    await shared.set_records(["web.svc 0 A 10.0.0.1", "web 0 A 10.0.0.2"])
    assert [endpoint.host for endpoint in await first(Dns("web", 80))] == ["10.0.0.1"]
    assert [endpoint.host for endpoint in await first(Dns("web.test.", 80))] == ["10.0.0.2"]
    with pytest.raises(SourceError, match=r"does not exist|REFUSED"):
        await first(Dns("web", 80, search=False))
    configuration.write_text("# nobody\n")
    with pytest.raises(SourceError, match="no nameservers"):
        await first(Dns("web", 80))
