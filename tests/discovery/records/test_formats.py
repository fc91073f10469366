"""The rules of all formats of etcd records, and the formats of plain addresses and of etcd itself."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any
from urllib.parse import urlencode

import pytest
from records_rig import KRATOS, encoded, filled, one, read, why
from registry_rig import sees, until

from discovery import Endpoint, Etcd, Watcher, open_source
from discovery.records.formats import FORMATS, reader
from lbclient.sandbox import EtcdCluster

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


@pytest.mark.parametrize("registered", [5, "5", "+5", -5, "-5", 0])
def test_a_priority_in_metadata(registered: Any) -> None:
    for name, record in in_metadata({"priority": registered}):
        assert [e.priority for e in read("k/tcp@10.0.0.1:80", record, name)] == [int(registered)], name


@pytest.mark.parametrize("registered", ["high", "1.5", 1.5, True, "", "\u0665", None, [1], "9" * 5000])
def test_what_is_no_whole_number_is_no_priority(registered: Any) -> None:
    for name, record in in_metadata({"priority": registered}):
        assert [e.priority for e in read("k/tcp@10.0.0.1:80", record, name)] == [0], name


@pytest.mark.parametrize("weight", ["-1", "-0.1", "nan", "inf", "-inf", "1e999", -1, float("nan"), float("-inf")])
def test_a_number_in_metadata_that_is_no_weight_is_logged_once_with_the_key(
    weight: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server itself is good, so it stays, with the weight of those that have none."""
    for name, record in in_metadata({"weight": weight}):
        if name in ("rpcx", "kitex"):
            continue  # the weight there is no free-form metadata, and a bad one an error
        caplog.clear()
        found = filled({"some/key": record}, name)
        without = filled({"some/key": next(other for kind, other in in_metadata({}) if kind == name)}, name)
        assert [e.weight for e in found.endpoints] == [e.weight for e in without.endpoints], name
        found.put("some/key", encoded({**record, "seen": 1}))
        found.copy().put("some/key", encoded({**record, "seen": 2}))
        (message,) = caplog.messages
        assert message.startswith("here: record 'some/key' read in part: weight must be a number, finite"), name


def in_metadata(metadata: dict[str, Any]) -> list[tuple[str, Any]]:
    """A record of each format that has free-form metadata, with these in it."""
    address, url = "10.0.0.1:80", "http://10.0.0.1:80"
    return [
        ("etcd", {"Addr": address, "Metadata": metadata}),
        ("kratos", {"endpoints": [url], "metadata": metadata}),
        ("go-micro", {"nodes": [{"address": address, "metadata": metadata}]}),
        ("kitex", {"network": "tcp", "address": address, "tags": metadata}),
        ("rpcx", urlencode({name: value for name, value in metadata.items() if isinstance(value, (int, str))})),
    ]


# All


@pytest.mark.parametrize("priority", ["1.5", "NaN", "Infinity", "true", '"high"', "[1]"])
@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("skydns", '{"host": "10.0.0.1", "port": 80, "priority": %s}'),
        ("apisix", '{"nodes": [{"host": "10.0.0.1", "port": 80, "weight": 1, "priority": %s}]}'),
    ],
)
def test_a_registered_priority_that_is_none_is_refused(name: str, record: str, priority: str) -> None:
    assert why(record % priority, name).startswith("priority must be a whole number")


def test_a_negative_priority_of_skydns_is_refused() -> None:
    assert (
        why({"host": "10.0.0.1", "port": 80, "priority": -1}, "skydns") == "priority must not be negative, not -1"
    )


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
