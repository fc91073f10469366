"""Each format of etcd records, from the example in its writer's documents or code."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import pytest
from registry_rig import sees, until

from discovery import Endpoint, Etcd, Watcher, open_source
from discovery.formats import FORMATS, reader
from discovery.records import Records
from lbclient.sandbox import EtcdCluster


def records(name: str = "auto", schemes: str = "http,https", **values: Any) -> Records[bytes]:
    return filled(values, name, schemes)


def filled(values: dict[str, Any], name: str = "auto", schemes: str = "http,https") -> Records[bytes]:
    found = Records(reader(name, schemes=schemes), source="here")
    found.replace({key: encoded(value) for key, value in values.items()})
    return found


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


def shown(found: Records[bytes]) -> list[tuple[str, float]]:
    assert not found.skipped
    return sorted((f"{endpoint.scheme}://{endpoint.address}", endpoint.weight) for endpoint in found.endpoints)


def read(key: str, value: Any, *names: str, schemes: str = "http,https") -> list[Endpoint]:
    """What is in one record; under each of the names and detected it must be the same."""
    sets = [filled({key: value}, name, schemes) for name in (*names, "auto")]
    assert all(not each.skipped for each in sets)
    assert all(each.endpoints == sets[0].endpoints for each in sets)
    assert all(endpoint.id == key for endpoint in sets[0].endpoints)
    return list(sets[0].endpoints)


def one(key: str, value: Any, *names: str, schemes: str = "http,https") -> Endpoint:
    (endpoint,) = read(key, value, *names, schemes=schemes)
    return endpoint


def why(value: Any, name: str, key: str = "services/web/1") -> str:
    """Why a record is skipped."""
    found = filled({key: value}, name)
    assert not found.endpoints
    return found.skipped[key]


# Addresses


@pytest.mark.parametrize(
    ("value", "address", "tls"),
    [
        ("10.0.0.1:8080", "10.0.0.1:8080", False),
        (" 10.0.0.1:8080\n", "10.0.0.1:8080", False),
        ("[2001:DB8::1]:80", "[2001:db8::1]:80", False),
        ("http://web.example", "web.example:80", False),
        ("https://web.example", "web.example:443", True),
        ("https://web.example:8443/", "web.example:8443", True),
    ],
)
def test_addresses_and_urls(value: str, address: str, tls: bool) -> None:
    endpoint = one("services/users/1", value, "address")
    assert (endpoint.address, endpoint.tls) == (address, tls)


def test_go_zero() -> None:
    """go-zero, core/discov: the value of a key `<service>/<lease id>` is the address."""
    assert one("user.rpc/7587870460981677828", "10.0.0.5:8081", "address").address == "10.0.0.5:8081"


def test_registrator_and_go_kit() -> None:
    """Registrator, user guide, etcd: `/services/<service>/<id>` is `<address>:<port>`; go-kit, sd/etcdv3: URLs."""
    key = "/services/redis/i-0:redis:6379"
    assert one(key, "192.168.1.102:6379", "address").address == "192.168.1.102:6379"
    assert one("/services/foosvc/1.2.3.4:8080", "http://1.2.3.4:8080", "address").address == "1.2.3.4:8080"


def test_one_address_of_another_scheme_is_said() -> None:
    assert why("grpc://10.0.0.1:9000", "address") == "scheme must be http or https, not 'grpc'"
    assert one("k", "grpc://10.0.0.1:9000", "address", schemes="grpc").address == "10.0.0.1:9000"
    assert one("k", "grpcs://10.0.0.1", "address", schemes="http,grpcs") == Endpoint(
        host="10.0.0.1", port=443, tls=True, id="k"
    )
    assert one("k", "10.0.0.1:80", "address", schemes="grpc").address == "10.0.0.1:80"


# etcd's own


@pytest.mark.parametrize("operation", [{}, {"Op": 0}, {"Op": None}])
def test_etcd_naming(operation: dict[str, Any]) -> None:
    """etcd, "gRPC naming and discovery": foo/bar/my-service/e1 has Addr, Metadata; Op is in client/v3/naming."""
    endpoint = one("foo/bar/my-service/e1", {**operation, "Addr": "1.2.3.4:80", "Metadata": None}, "etcd")
    assert endpoint == Endpoint(host="1.2.3.4", port=80, id="foo/bar/my-service/e1")


def test_a_deletion_of_etcd_naming() -> None:
    assert read("foo/bar/my-service/e1", {"Op": 1, "Addr": "1.2.3.4:80"}, "etcd") == []


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"weight": 5, "zone": "eu-1", "v": True}, (5.0, "eu-1", {"weight": "5", "zone": "eu-1", "v": "true"})),
        ({"weight": "2.5"}, (2.5, "", {"weight": "2.5"})),
        ({"weight": 0}, (0.0, "", {"weight": "0"})),
        ({"weight": -1, "zone": 7}, (1.0, "", {"weight": "-1", "zone": "7"})),
        ({"weight": "heavy"}, (1.0, "", {"weight": "heavy"})),
        ({"weight": True, "none": None}, (1.0, "", {"weight": "true"})),
        ({"weight": float("nan")}, (1.0, "", {"weight": "NaN"})),
        ({"weight": 10**400}, (1.0, "", {"weight": str(10**400)})),
        ({"nested": {"a": [1]}}, (1.0, "", {"nested": '{"a": [1]}'})),
        ("text", (1.0, "", {"Metadata": "text"})),
        ([1, "a"], (1.0, "", {"Metadata": '[1, "a"]'})),
        ({"lone \ud800": "\udfff", "ü": "ö"}, (1.0, "", {"lone ?": "?", "ü": "ö"})),
    ],
)
def test_metadata_of_etcd_naming(metadata: Any, expected: tuple[float, str, dict[str, str]]) -> None:
    """It is free-form: what is no weight or zone is somebody's own use of the word, not an error."""
    endpoint = one("k", {"Addr": "1.2.3.4:80", "Metadata": metadata}, "etcd")
    assert (endpoint.weight, endpoint.zone, dict(endpoint.metadata)) == expected


# Kratos

KRATOS = {
    "id": "d9c7a3b2",
    "name": "helloworld",
    "version": "v1.0.0",
    "metadata": {},
    "endpoints": ["http://127.0.0.1:8000?isSecure=false", "grpc://127.0.0.1:9000?isSecure=false"],
}
KRATOS_KEY = "/microservices/helloworld/d9c7a3b2"


def test_kratos() -> None:
    """Kratos, registry/registry.go, ServiceInstance: the two URLs are those of its comment on Endpoints."""
    endpoint = one(KRATOS_KEY, KRATOS, "kratos")
    assert endpoint == Endpoint(
        host="127.0.0.1", port=8000, weight=100, metadata={"version": "v1.0.0"}, id=KRATOS_KEY
    )


def test_kratos_with_tls() -> None:
    """Kratos, internal/endpoint: `isSecure` in older versions, the scheme itself in newer ones."""
    for url in ("http://127.0.0.1:8000?isSecure=true", "https://127.0.0.1:8000"):
        record = {**KRATOS, "endpoints": ["grpc://127.0.0.1:9000", url]}
        assert one(KRATOS_KEY, record, "kratos").tls
        assert read(KRATOS_KEY, record, "kratos", schemes="http") == []


def test_kratos_lists_one_server_for_each_protocol() -> None:
    assert read(KRATOS_KEY, {**KRATOS, "endpoints": ["grpc://127.0.0.1:9000?isSecure=false"]}, "kratos") == []
    assert read(KRATOS_KEY, {**KRATOS, "endpoints": None}, "kratos") == []
    both = read(KRATOS_KEY, KRATOS, "kratos", schemes="http,grpc")
    assert [endpoint.address for endpoint in both] == ["127.0.0.1:8000", "127.0.0.1:9000"]
    secured = ["https://127.0.0.1:8000", "grpcs://127.0.0.1:9000"]
    both = read(KRATOS_KEY, {**KRATOS, "endpoints": secured}, "kratos", schemes="https,grpcs")
    assert [endpoint.tls for endpoint in both] == [True, True]


@pytest.mark.parametrize(("weight", "expected"), [("50", 50), ("0", 0), ("heavy", 100), ("-1", 100), (None, 100)])
def test_weight_and_zone_of_kratos(weight: str | None, expected: float) -> None:
    """Kratos, selector/default_node.go: the weight is metadata; selector/node/direct: 100 where there is none."""
    metadata = {"weight": weight, "zone": "eu-1", "version": "own"}
    endpoint = one(KRATOS_KEY, {**KRATOS, "metadata": metadata}, "kratos")
    assert (endpoint.weight, endpoint.zone, endpoint.metadata["version"]) == (expected, "eu-1", "own")


def test_one_broken_url_of_kratos_is_no_half_record() -> None:
    found = records("kratos", k=KRATOS)
    found.put("k", encoded({**KRATOS, "endpoints": ["http://127.0.0.1:8001", "http://127.0.0.1:0"]}))
    assert [endpoint.port for endpoint in found.endpoints] == [8000]
    assert "port must be" in found.skipped["k"]


# go-micro

MICRO_KEY = "/micro/registry/greeter/greeter-4b3dd5ae"
MICRO_NODE = {
    "id": "greeter-4b3dd5ae",
    "address": "10.0.0.7:33451",
    "metadata": {"broker": "http", "protocol": "http", "registry": "etcd", "server": "http", "transport": "http"},
}
MICRO = {
    "name": "greeter",
    "version": "latest",
    "metadata": None,
    "endpoints": [{"name": "Greeter.Hello", "request": None, "response": None, "metadata": {}}],
    "nodes": [MICRO_NODE],
}


def test_go_micro() -> None:
    """go-micro, registry/etcd/etcd.go: a `Service` with one node under /micro/registry/<name>/<node id>."""
    endpoint = one(MICRO_KEY, MICRO, "go-micro")
    assert endpoint == Endpoint(
        host="10.0.0.7",
        port=33451,
        metadata={**MICRO_NODE["metadata"], "version": "latest"},  # type: ignore[dict-item]
        id=MICRO_KEY,
    )


def test_go_micro_nodes() -> None:
    """Their `protocol` is what go-micro's own servers write there: mucp, grpc, http; https is http over TLS."""
    nodes = [
        {"id": "a", "address": "10.0.0.1:80", "metadata": {"weight": "3", "zone": "eu-1"}},
        {"id": "b", "address": "10.0.0.2:80", "metadata": {"protocol": "https", "zone": "eu-2"}},
        {"id": "c", "address": "10.0.0.3:80", "metadata": {"protocol": "grpc"}},
        {"id": "d", "address": "10.0.0.4:80", "metadata": {"protocol": "mucp"}},
        {"id": "e", "address": "[2001:db8::1]:80", "metadata": None},
    ]
    record = {**MICRO, "metadata": {"zone": "everywhere", "weight": "many"}, "nodes": nodes}
    found = read(MICRO_KEY, record, "go-micro")
    assert [(e.address, e.tls, e.weight, e.zone) for e in found] == [
        ("10.0.0.1:80", False, 3, "eu-1"),
        ("10.0.0.2:80", True, 1, "eu-2"),
        ("[2001:db8::1]:80", False, 1, "everywhere"),
    ]
    assert [e.port for e in read(MICRO_KEY, {**MICRO, "nodes": nodes[2:4]}, "go-micro", schemes="mucp")] == [80]


# Kitex

KITEX_KEY = "kitex/registry-etcd/Hello/127.0.0.1:8888"


@pytest.mark.parametrize(
    ("registered", "weight"), [({"weight": 10}, 10), ({"weight": 66}, 66), ({"weight": 0}, 10), ({}, 10)]
)
def test_kitex(registered: dict[str, int], weight: float) -> None:
    """Kitex, registry-etcd, common.go, instanceInfo; etcd_resolver.go: a weight of 0 is 10."""
    record = {"network": "tcp", "address": "127.0.0.1:8888", **registered, "tags": {"zone": "eu-1", "idc": "x"}}
    endpoint = one(KITEX_KEY, record, "kitex")
    expected = {"zone": "eu-1", "idc": "x"}
    assert (endpoint.address, endpoint.weight, endpoint.zone) == ("127.0.0.1:8888", weight, "eu-1")
    assert endpoint.metadata == expected
    assert one(KITEX_KEY, {**record, "tags": None}, "kitex").metadata == {}


def test_kitex_over_other_networks() -> None:
    record = {"network": "unix", "address": "/run/kitex.sock", "weight": 10, "tags": None}
    for name in ("kitex", "auto"):
        assert why(record, name) == "network must be tcp, not 'unix'"
    assert one(KITEX_KEY, {**record, "network": "tcp6", "address": "[::1]:8888"}, "kitex").address == "[::1]:8888"


# rpcx

RPCX_KEY = "/rpcx_test/Arith/tcp@127.0.0.1:8972"


@pytest.mark.parametrize(
    ("value", "weight", "metadata"),
    [
        ("", 1, {}),
        ("weight=7", 7, {"weight": "7"}),
        ("group=test&zone=eu-1&calls=0.00", 1, {"group": "test", "zone": "eu-1", "calls": "0.00"}),
        ("weight=7&weight=3&name=a%20b+c", 7, {"weight": "7", "name": "a b c"}),
        ("state=active&weight=0", 0, {"state": "active", "weight": "0"}),
    ],
)
def test_rpcx(value: str, weight: float, metadata: dict[str, str]) -> None:
    """rpcx-etcd, serverplugin/etcdv3.go: BasePath/service/ServiceAddress, the value is a URL's query.

    The address is the example of the plugin's test; the weight that of the examples for WeightedRoundRobin.
    """
    endpoint = one(RPCX_KEY, value, "rpcx")
    assert (endpoint.address, endpoint.weight, dict(endpoint.metadata)) == ("127.0.0.1:8972", weight, metadata)
    assert endpoint.zone == metadata.get("zone", "")


def test_rpcx_that_is_inactive() -> None:
    found = records("rpcx", **{RPCX_KEY: "weight=5"})
    found.put(RPCX_KEY, b"state=inactive&weight=5")
    assert (found.endpoints, dict(found.skipped)) == ((), {})
    found.put(RPCX_KEY, b"")
    assert shown(found) == [("http://127.0.0.1:8972", 1)]


def test_rpcx_over_other_networks() -> None:
    """rpcx, "Registry": the network may be tcp, http, unix, quic or kcp."""
    for name in ("rpcx", "auto"):
        assert why("", name, "/rpcx_test/Arith/quic@127.0.0.1:8972") == "network must be tcp, not quic"
    assert one("/rpcx_test/Arith/tcp6@[::1]:8972", "", "rpcx").address == "[::1]:8972"


def test_what_rpcx_writes_for_directories() -> None:
    """rpcx-etcd, serverplugin/etcdv3.go: the key of a service has its name as value."""
    found = records("rpcx", **{"/rpcx_test/Arith": "Arith", "/rpcx_test/": "", RPCX_KEY: ""})
    assert shown(found) == [("http://127.0.0.1:8972", 1)]
    assert why("Other", "rpcx", "/rpcx_test/Arith") == "the key must end in network@host:port"


# SkyDNS and CoreDNS


def test_skydns() -> None:
    """CoreDNS, plugin/etcd/README.md, "SRV record"; its answer there has the weight 100."""
    record = {"host": "skydns-local.server", "ttl": 60, "priority": 10, "port": 8080}
    endpoint = one("/skydns/local/skydns/x5", record, "skydns")
    assert endpoint == Endpoint(
        host="skydns-local.server",
        port=8080,
        weight=100,
        metadata={"priority": "10", "ttl": "60", "name": "x5.skydns.local"},
        id="/skydns/local/skydns/x5",
    )


def test_skydns_weights_and_addresses() -> None:
    record = {"host": "2003::8:1", "port": 80, "weight": 20, "text": "any", "mail": False}
    endpoint = one("/other/local/x3", record, "skydns")
    assert (endpoint.address, endpoint.weight) == ("[2003::8:1]:80", 20)
    assert endpoint.metadata == {"text": "any"}
    assert one("/other/local/x3", {**record, "weight": 0}, "skydns").weight == 100


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
    assert [(e.address, e.weight, e.zone) for e in found] == [
        ("127.0.0.1:1980", 2000, ""),
        ("[::1]:1981", 0, "eu-1"),
        ("[::1]:1982", 0, "eu-1"),
        ("web.example:443", 1, ""),
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


# All


@pytest.mark.parametrize(
    "weight", ["-1", "-0.1", "NaN", "Infinity", "-Infinity", "1e999", "true", '"heavy"', "[1]"]
)
@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("kitex", '{"network": "tcp", "address": "10.0.0.1:80", "weight": %s}'),
        ("skydns", '{"host": "10.0.0.1", "port": 80, "weight": %s}'),
        ("apisix", '{"nodes": {"10.0.0.2:80": 1, "10.0.0.1:80": %s}}'),
        ("apisix", '{"nodes": [{"host": "10.0.0.1", "port": 80, "weight": %s}]}'),
    ],
)
def test_a_registered_weight_that_is_none_is_refused(
    name: str, record: str, weight: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = filled({"k": record % "5"}, name)
    assert 5 in [endpoint.weight for endpoint in found.endpoints]
    found.put("k", (record % weight).encode())
    found.put("k", (record % weight).encode() + b" ")
    assert 5 in [endpoint.weight for endpoint in found.endpoints]
    assert found.skipped["k"].startswith("weight must be a number, finite and not negative, not ")
    (message,) = caplog.messages
    assert "'k'" in message


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "heavy", "1e999"])
def test_a_bad_weight_of_rpcx_is_refused(weight: str) -> None:
    assert why(f"weight={weight}", "rpcx", RPCX_KEY).startswith("weight must be a number")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("address", b"nonsense", "host:port"),
        ("address", b"10.0.0.1:0", "port must be"),
        ("address", b"0.0.0.0:80", "listening address"),
        ("address", b"\xff\xfe", "utf-8"),
        ("address", b"http://user:s3cret@host/", "credentials"),
        ("address", b"user:s3cret@host:80", "credentials"),
        ("address", b"user:s3cret@http://host:80", "credentials"),
        ("address", b"http://host/?a=http://user:s3cret@host", "credentials"),
        ("address", b"http://10.0.0.1:80/path", "without a path"),
        ("address", b"http://10.0.0.1:80?x=1", "query"),
        ("address", b'{"Addr":"1.2.3.4:80"}', "got a JSON object"),
        ("etcd", b"1.2.3.4:80", "got plain text"),
        ("etcd", b'{"Addr":7}', "Addr must be a string"),
        ("etcd", b'{"Addr":"a:1","Op":7}', "Op must be 0"),
        ("etcd", b'{"Addr":"a:1","Op":"x"}', "Op must be 0"),
        ("kratos", b"1.2.3.4:80", "got plain text"),
        ("kratos", b'{"endpoints":{}}', "must be a list"),
        ("kratos", b'{"endpoints":[7]}', "must be a text, not 7"),
        ("kratos", b'{"endpoints":["http://a:1"],"metadata":7}', "metadata must be an object"),
        ("go-micro", b"1.2.3.4:80", "got plain text"),
        ("go-micro", b'{"nodes":[{"address":null},7]}', "nodes must be a list of objects"),
        ("go-micro", b'{"nodes":[{"address":7}]}', "must be a text, not 7"),
        ("kitex", b"1.2.3.4:80", "got plain text"),
        ("kitex", b'{"network":"tcp","address":null}', "address must be a string"),
        ("rpcx", b"{}", "the key must end in"),
        ("skydns", b"1.2.3.4:80", "got plain text"),
        ("skydns", b'{"host":"a","port":"80"}', "port must be"),
        ("apisix", b"1.2.3.4:80", "got plain text"),
        ("apisix", b'{"nodes":7}', "nodes must be a list of objects"),
        ("apisix", b'{"nodes":{"a:1":1},"scheme":7}', "scheme must be a string"),
        ("apisix", b'{"nodes":[{"host":"a","port":"80"}]}', "port must be a number"),
        ("apisix", b'{"nodes":[{"host":7}]}', "host must be a string"),
        ("apisix", b'{"nodes":{"a:1":1},"labels":7}', "labels must be an object"),
        ("auto", b'{"Addr"', "broken JSON"),
        ("auto", b'{"a":' * 100_000, "nested too deeply"),
        ("auto", b'{"Addr":"a:1","Op":' + b"9" * 5000 + b"}", "broken JSON"),
        ("auto", b'{"a":1}', "none of the known formats (address, etcd, kratos"),
        ("auto", b"[]", "host:port"),
    ],
)
def test_broken_records_are_skipped_with_a_reason(
    name: str, value: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = why(value, name)
    assert reason in said
    assert len(said) < 400
    assert "s3cret" not in said + caplog.text


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"auto, address, etcd, kratos, .*, apisix, not 'yaml'"):
        reader("yaml")


@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_an_empty_value_is_a_placeholder(name: str) -> None:
    for value in (b"", b" \n"):
        found = filled({"services/web/": value}, name)
        assert (found.endpoints, dict(found.skipped)) == ((), {})


@pytest.mark.parametrize(
    ("schemes", "error", "words"),
    [
        ("", ValueError, "not ''"),
        ((), ValueError, "at least one"),
        ("http,", ValueError, "not ''"),
        ("HTTP", ValueError, "lower case.*'HTTP'"),
        (["http", "a b"], ValueError, "'a b'"),
        ([7], TypeError, "not 7"),
    ],
)
def test_wrong_schemes_are_refused(schemes: Any, error: type[Exception], words: str) -> None:
    for refuse in (reader, functools.partial(Etcd, "users")):
        with pytest.raises(error, match=words):
            refuse(schemes=schemes)


@pytest.mark.usefixtures("nothing_leaks")
async def test_formats_on_a_real_server(etcd: EtcdCluster, unique: str) -> None:
    """Keys that belong together come one by one, an upstream is several endpoints, a bad update changes none."""
    server = f"{unique}/loadbalancer/servers/0/"
    await etcd.put(f"{server}weight", "3")
    await etcd.put(f"{unique}/kratos", json.dumps(KRATOS))
    await etcd.put(f"{unique}/tcp@10.0.0.2:8972", "")
    source = open_source(f"etcd://{','.join(etcd.addresses)}/{unique}/?schemes=http,https")
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.2", "127.0.0.1"))
        async with Watcher(Etcd(unique, hosts=etcd.addresses, records="kratos", schemes="grpc")) as other:
            assert [endpoint.port for endpoint in (await until(other, sees("127.0.0.1"))).endpoints] == [9000]
            assert other.snapshot.skipped == 1
        await etcd.put(f"{server}url", "https://10.0.0.1/")
        snapshot = await until(watcher, sees("10.0.0.1", "10.0.0.2", "127.0.0.1"))
        first = snapshot.endpoints[0]
        assert (first.port, first.weight, first.tls) == (443, 3, True)
        await etcd.put(f"{server}weight", "-1")
        snapshot = await until(watcher, lambda snapshot: snapshot.skipped == 1)
        assert snapshot.endpoints[0].weight == 3
        await etcd.delete(f"{server}weight")
        await until(watcher, lambda snapshot: snapshot.endpoints[0].weight == 1 and not snapshot.skipped)
        await etcd.delete(f"{server}url")
        await etcd.put(f"{unique}/kratos", json.dumps({"nodes": {"10.0.0.3:80": 1, "10.0.0.4:80": 0}}))
        await until(watcher, sees("10.0.0.2", "10.0.0.3", "10.0.0.4"))
