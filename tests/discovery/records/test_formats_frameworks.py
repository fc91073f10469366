"""What frameworks for services write to etcd, each from the example in its documents or code."""

from __future__ import annotations

import json

import pytest
from records_rig import KRATOS, one, read, records, shown, why

from discovery import Endpoint

# Kratos

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
    found.put("k", json.dumps({**KRATOS, "endpoints": ["http://127.0.0.1:8001", "http://127.0.0.1:0"]}).encode())
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


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "heavy", "1e999"])
def test_a_bad_weight_of_rpcx_is_refused(weight: str) -> None:
    assert why(f"weight={weight}", "rpcx", RPCX_KEY).startswith("weight must be a number")
