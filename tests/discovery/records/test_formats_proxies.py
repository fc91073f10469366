"""What proxies and name servers read from etcd, each from the example in its documents or code."""

from __future__ import annotations

from typing import Any

import pytest
from records_rig import filled, one, read, records, shown, why

from discovery import Endpoint

# SkyDNS and CoreDNS


def test_skydns() -> None:
    """CoreDNS, plugin/etcd/README.md, "SRV record"; its answer there has the weight 100."""
    record = {"host": "skydns-local.server", "ttl": 60, "priority": 10, "port": 8080}
    endpoint = one("/skydns/local/skydns/x5", record, "skydns")
    assert endpoint == Endpoint(
        host="skydns-local.server",
        port=8080,
        weight=100,
        priority=10,
        metadata={"priority": "10", "ttl": "60", "name": "x5.skydns.local"},
        id="/skydns/local/skydns/x5",
    )


def test_skydns_weights_and_addresses() -> None:
    record = {"host": "2003::8:1", "port": 80, "weight": 20, "text": "any", "mail": False}
    endpoint = one("/other/local/x3", record, "skydns")
    assert (endpoint.address, endpoint.weight) == ("[2003::8:1]:80", 20)
    assert endpoint.metadata == {"text": "any"}
    assert one("/other/local/x3", {**record, "weight": 0}, "skydns").weight == 100


@pytest.mark.parametrize(("registered", "priority"), [({"priority": 3}, 3), ({"priority": 0}, 10), ({}, 10)])
def test_skydns_priorities(registered: dict[str, int], priority: int) -> None:
    """CoreDNS, plugin/etcd/etcd.go: 10 where none is set; lower ones are preferred, as in every SRV record."""
    assert one("/skydns/x3", {"host": "10.0.0.1", "port": 80, **registered}, "skydns").priority == priority


@pytest.mark.parametrize(
    ("record", "missing"),
    [
        ({"host": "1.1.1.1", "ttl": 60}, "port"),
        ({"host": "1.1.1.1", "port": 0}, "port"),
        ({"ttl": 60, "text": "this is a random text message."}, "host"),
    ],
)
def test_skydns_records_of_other_types(record: dict[str, Any], missing: str) -> None:
    """CoreDNS, plugin/etcd/README.md: an address record without a port, and "TXT record"."""
    assert why(record, "skydns", "/skydns/local/skydns/x6") == f"a record without a {missing} names no server"


# Traefik

TRAEFIK = "traefik/http/services/myservice/loadbalancer/"
SERVER = f"{TRAEFIK}servers/0/"


def test_traefik() -> None:
    """Traefik, "KV" routing reference: the keys of a service's servers and of its other settings."""
    values = {
        f"{SERVER}url": "http://10.0.0.4:80/",
        f"{SERVER}weight": "3",
        f"{SERVER}preservePath": "true",
        f"{TRAEFIK}servers/1/url": "https://10.0.0.5:8443",
        f"{TRAEFIK}passhostheader": "true",
        f"{TRAEFIK}healthcheck/path": "/health",
    }
    assert shown(filled(values, "traefik")) == [("http://10.0.0.4:80", 3), ("https://10.0.0.5:8443", 1)]
    servers = {key: value for key, value in values.items() if "/servers/" in key}
    assert shown(filled(servers)) == [("http://10.0.0.4:80", 3), ("https://10.0.0.5:8443", 1)]
    (endpoint, _) = filled(servers).endpoints
    assert endpoint.id == f"{SERVER}url"


def test_traefik_before_version_2() -> None:
    """Traefik 1.7, "Key-value Store Configuration": backends with named servers."""
    backend = "/traefik/backends/backend1/servers/server1/"
    assert shown(filled({f"{backend}url": "http://172.17.0.2:80", f"{backend}weight": "10"})) == [
        ("http://172.17.0.2:80", 10)
    ]


def test_a_traefik_server_grows_and_shrinks_key_by_key(caplog: pytest.LogCaptureFixture) -> None:
    found = records("traefik", **{f"{TRAEFIK}servers/9/url": "http://10.0.0.9:80"})
    before = found.endpoints
    found.put(f"{SERVER}weight", b"3")
    found.put(f"{SERVER}weight", b"4")
    assert found.endpoints is before
    found.delete(f"{TRAEFIK}servers/9/url")
    assert shown(found) == []
    found.put(f"{SERVER}url", b"http://10.0.0.4:80")
    assert shown(found) == [("http://10.0.0.4:80", 4)]
    found.put(f"{SERVER}weight", b"5")
    assert shown(found) == [("http://10.0.0.4:80", 5)]
    found.put(f"{SERVER}url", b"http://10.0.0.5:80")
    assert shown(found) == [("http://10.0.0.5:80", 5)]
    found.delete(f"{SERVER}url")
    assert shown(found) == []
    found.put(f"{SERVER}url", b"http://10.0.0.4:80")
    assert shown(found) == [("http://10.0.0.4:80", 5)]
    found.delete(f"{SERVER}weight")
    assert shown(found) == [("http://10.0.0.4:80", 1)]
    found.replace({f"{SERVER}weight": b"6", f"{SERVER}url": b"http://10.0.0.4:80"})
    assert shown(found) == [("http://10.0.0.4:80", 6)]
    assert caplog.messages == []


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "1e999", "", " ", "heavy", "{}"])
def test_a_bad_weight_of_traefik_is_skipped_and_the_last_good_one_stays(weight: str) -> None:
    found = filled({f"{SERVER}url": "http://10.0.0.4:80", f"{SERVER}weight": "3"}, "traefik")
    found.put(f"{SERVER}weight", weight.encode())
    if not weight.strip():  # a placeholder
        assert shown(found) == [("http://10.0.0.4:80", 1)]
        return
    assert [endpoint.weight for endpoint in found.endpoints] == [3]
    assert list(found.skipped) == [f"{SERVER}weight"]
    fresh = filled({f"{SERVER}url": "http://10.0.0.4:80", f"{SERVER}weight": weight}, "traefik")
    assert [endpoint.weight for endpoint in fresh.endpoints] == [1]
    found.put(f"{SERVER}url", b"broken")
    assert [(endpoint.address, endpoint.weight) for endpoint in found.endpoints] == [("10.0.0.4:80", 3)]
    assert len(found.skipped) == 2


# APISIX


def test_apisix() -> None:
    """APISIX, "Upstream": the chash example, as it is stored under /apisix/upstreams/1."""
    record = {
        "id": "1",
        "type": "chash",
        "key": "remote_addr",
        "create_time": 1658976786,
        "nodes": {"127.0.0.1:80": 1, "foo.com:80": 2},
    }
    found = read("/apisix/upstreams/1", record, "apisix")
    assert [(e.address, e.weight, e.tls) for e in found] == [("127.0.0.1:80", 1, False), ("foo.com:80", 2, False)]


def test_apisix_with_a_list() -> None:
    """APISIX, Admin API, Upstream: nodes as a list with host, port, weight and priority."""
    record = {
        "nodes": [
            {"host": "127.0.0.1", "port": 1980, "weight": 2000, "priority": -1},
            {"host": "::1", "port": 1981, "weight": 0, "metadata": {"zone": "eu-1"}},
            {"host": "[::1]", "port": 1982, "weight": 0, "metadata": {"zone": "eu-1"}},
            {"host": "web.example", "weight": 1},
        ],
        "scheme": "https",
        "labels": {"env": "prod"},
    }
    found = read("/apisix/upstreams/2", record, "apisix")
    assert all(endpoint.tls for endpoint in found)
    # apisix/balancer/priority.lua: the highest first.
    assert [(e.address, e.weight, e.priority, e.zone) for e in found] == [
        ("127.0.0.1:1980", 2000, 1, ""),
        ("[::1]:1981", 0, 0, "eu-1"),
        ("[::1]:1982", 0, 0, "eu-1"),
        ("web.example:443", 1, 0, ""),
    ]
    assert [dict(e.metadata) for e in found] == [
        {"env": "prod", "priority": "-1"},
        {"env": "prod", "zone": "eu-1"},
        {"env": "prod", "zone": "eu-1"},
        {"env": "prod"},
    ]


def test_apisix_schemes_and_ports() -> None:
    """APISIX, apisix/upstream.lua: 80 for http and grpc, 443 for https and grpcs where a node has no port."""
    for scheme, port in (("http", 80), ("https", 443), ("grpc", 80), ("grpcs", 443)):
        endpoint = one(
            "/apisix/upstreams/3", {"nodes": {"foo.com": 1}, "scheme": scheme}, "apisix", schemes=scheme
        )
        assert (endpoint.port, endpoint.tls) == (port, port == 443)
    assert (
        why({"nodes": {"foo.com:80": 1}, "scheme": "grpc"}, "apisix") == "scheme must be http or https, not 'grpc'"
    )


@pytest.mark.parametrize("value", ["init_dir", {"nodes": {}}, {"nodes": [], "labels": []}])
def test_apisix_without_nodes(value: Any) -> None:
    """APISIX, apisix/cli/etcd.lua: directories are keys with the value init_dir."""
    assert read("/apisix/upstreams/", value, "apisix") == []


def test_nodes_that_apisix_finds_itself() -> None:
    for name in ("apisix", "auto"):
        assert "discovery_type" in why({"service_name": "web", "discovery_type": "nacos"}, name)
