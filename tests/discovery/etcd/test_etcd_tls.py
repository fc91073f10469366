"""Etcd over TLS, as etcd itself speaks it: private authorities, client certificates, names, renewed files."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from registry_certificates import Certificates
from registry_rig import Proxy, sees, stale, until

from discovery import TLS, Etcd, SourceError, Watcher, open_source
from lbclient.sandbox import EtcdCluster, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.parametrize("version", ["3.4", "3.5"])
async def test_a_private_authority_and_client_certificates(
    version: str, files: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Certificates(tmp_path_factory.mktemp("other"))
    async with await start_etcd(version, own=True, tls=files.server(of_clients=True)) as etcd:
        await etcd.put("p/a", "10.0.0.1:80")
        own = {"cert": files.client_cert, "key": files.client_key}
        async with Watcher(Etcd("p", hosts=etcd.addresses, tls=TLS(ca=files.ca, **own))) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await etcd.put("p/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        query = f"ca={files.ca}&cert={files.client_cert}&key={files.client_key}"
        async with Watcher(open_source(f"etcds://{etcd.address}/p/?{query}")) as watcher:
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        for tls, words in (
            (TLS(ca=files.ca), "client certificate"),
            (TLS(ca=files.ca, cert=other.client_cert, key=other.client_key), "client certificate"),
            (TLS(ca=other.ca, **own), "TLS certificate is not accepted"),
            (TLS(**own), "TLS certificate is not accepted"),
            (False, "does it want TLS on this port"),
        ):
            with pytest.raises(SourceError, match=words):
                await anext(Etcd("p", hosts=etcd.addresses, tls=tls).watch())


async def test_the_name_in_the_certificate(etcd: EtcdCluster, unique: str, tmp_path: Path) -> None:
    files = Certificates(tmp_path, "etcd.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.cert, files.key)
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    async with Proxy(etcd.address, server) as way:
        for name in (None, "etcd.other"):
            tls = TLS(ca=files.ca, server_name=name)
            with pytest.raises(SourceError, match="TLS certificate is not accepted"):
                await anext(Etcd(unique, hosts=[way.address], tls=tls).watch())
        url = f"etcds://{way.address}/{unique}/?ca={files.ca}&server_name=etcd.example"
        async with Watcher(open_source(url)) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await etcd.put(f"{unique}/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))


async def test_certificates_renewed_in_place_are_used_for_the_next_connection(
    files: Certificates,
) -> None:
    async with await start_etcd("3.5", own=True, tls=files.server(of_clients=True)) as etcd:
        await etcd.put("p/a", "10.0.0.1:80")
        tls = TLS(ca=files.ca, cert=files.client_cert, key=files.client_key)
        async with Watcher(Etcd("p", hosts=etcd.addresses, tls=tls)) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await etcd.kill()
            await until(watcher, stale)
            files.client_cert.write_text("half a certi")
            await until(watcher, lambda snapshot: f"certificate in '{files.client_cert}'" in snapshot.reason)
            files.renew()
            await etcd.restart()
            await until(watcher, sees("10.0.0.1"), 4)
