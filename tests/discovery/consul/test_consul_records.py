"""The conventions of those who register in Consul, on entries as /v1/health/service shows them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from consul_rig import ENTRY, NAMES, entry, one, read, why
from registry_rig import sees, until

from discovery import Consul, Endpoint, Watcher, open_source
from discovery.consul.conventions import by_key, reader
from discovery.records import Records
from lbclient.sandbox import ConsulServer

# Plain


def test_plain() -> None:
    """Consul, API, "List Service Instances for Service": the sample response, with a zone."""
    endpoint = one(ENTRY, "plain", "registrator")
    meta = {"redis_version": "4.0", "zone": "eu-1"}
    assert endpoint == Endpoint(host="10.1.10.12", port=8000, weight=10, zone="eu-1", metadata=meta, id="n/1")


@pytest.mark.parametrize(
    ("checks", "passing", "weight"),
    [
        ([], True, 10),
        (["passing", "passing"], True, 10),
        (["passing", "warning"], True, None),
        (["warning", "passing"], False, 1),
        (["warning", "critical"], False, None),
        (["critical", "warning"], False, None),
        (["maintenance"], False, None),
        ([None], False, None),
    ],
)
def test_the_worst_check_decides(checks: list[Any], passing: bool, weight: float | None) -> None:
    for name in NAMES:
        found = list(reader(name, passing=passing)("n/1", entry([*checks])))
        scale = 100 if name == "kratos" else 1
        assert [endpoint.weight for endpoint in found] == ([] if weight is None else [weight * scale])


@pytest.mark.parametrize("name", NAMES)
def test_what_may_be_null(name: str) -> None:
    assert [e.weight for e in reader(name)("n/1", entry(Weights=[]))] == [100 if name == "kratos" else 1]
    null = dict.fromkeys(("Tags", "TaggedAddresses", "Meta", "Weights"))
    made = entry(**null, Address="") | {"Checks": None}
    (endpoint,) = reader(name)("n/1", made)
    assert (endpoint.address, dict(endpoint.metadata), endpoint.zone) == ("10.1.10.12:8000", {}, "")
    assert endpoint.weight == (100 if name == "kratos" else 1)
    for missing in null:
        del made["Service"][missing]
    assert list(reader(name)("n/1", made)) == [endpoint]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (entry(Port=0), "port must be"),
        (entry(Port=None), "port must be"),
        (entry(Address="not an address"), "neither an IP address nor a DNS name"),
        (entry(Address="0.0.0.0"), "listening address"),
        (entry(Address=7), "host must be"),
        (entry(Weights={"Passing": -1}), "weight must be a number"),
        (entry(Weights={"Passing": float("nan")}), "weight must be a number"),
        (entry(Weights={"Passing": 10**400}), "weight must be a number"),
        (entry(Weights={"Passing": float("inf")}), "weight must be a number"),
        (entry(Weights={"Passing": "heavy"}), "weight must be a number"),
        (entry(Weights=[1]), "Weights must be an object"),
        (entry(Meta=[1]), "Meta must be an object"),
        (entry(Tags="a"), "Tags must be a list of strings"),
        (entry(Tags=[1]), "Tags must be a list of strings"),
        (entry(TaggedAddresses=[1]), "TaggedAddresses must be an object"),
        (ENTRY | {"Checks": [1]}, "Checks must be a list of objects"),
        (ENTRY | {"Checks": {"Status": "passing"}}, "Checks must be a list of objects"),
        (ENTRY | {"Checks": [{"Status": "passing"}, {}]}, "a check has no Status"),
        (ENTRY | {"Checks": 7}, "Checks must be a list of objects, not 7"),
        (ENTRY | {"Node": None}, "Node must be an object"),
        ({"Node": {}}, "Service must be an object"),
        (7, "Service must be an object"),
        (None, "Service must be an object"),
    ],
    ids=range(23),
)
def test_what_is_no_endpoint_has_a_reason(name: str, made: Any, reason: str) -> None:
    assert reason in why(made, name)


def test_an_id_is_unique_on_its_node_only() -> None:
    other = copy.deepcopy(ENTRY)
    other["Node"]["Node"] = "t2.321"
    lone = copy.deepcopy(ENTRY)
    lone["Node"]["Node"] = "\ud800"
    broken = [7, {"Node": {"Node": []}, "Service": {"ID": "x"}}, {"Node": {}, "Service": {}}]
    assert list(by_key([ENTRY, other, lone, *broken])) == [
        "t2.320/redis1",
        "t2.321/redis1",
        "?/redis1",
        "entry 3",
        "entry 4",
        "entry 5",
    ]


# Registrator


def test_registrator() -> None:
    """Registrator, user guide, "Services": the ID is <host>:<container>:<port>; nothing else is special."""
    made = entry(ID="dev:redis.0:6379", Tags=None, Meta={})
    made["Node"]["Node"] = "dev"
    ((key, instance),) = by_key([made]).items()
    assert key == "dev/dev:redis.0:6379"
    assert one(instance, "plain", "registrator").address == "10.1.10.12:8000"


# Kratos


def kratos(*urls: str, **service: Any) -> dict[str, Any]:
    """contrib/registry/consul/client.go of Kratos: each URL under its scheme; Consul adds its own addresses."""
    tagged = {url.partition("://")[0]: {"Address": url, "Port": 8000} for url in urls}
    own = {"lan_ipv4": {"Address": "127.0.0.1", "Port": 8000}, "wan_ipv4": {"Address": "127.0.0.1", "Port": 8000}}
    plain = {"Tags": ["version=v1.0.0"], "Weights": {"Passing": 1, "Warning": 1}, "Meta": {}}
    return entry(**{**plain, "Address": "127.0.0.1", "TaggedAddresses": {**tagged, **own}, **service})


def test_kratos() -> None:
    """Kratos, registry/registry.go, ServiceInstance: the two URLs are those of its comment on Endpoints."""
    made = kratos("grpc://127.0.0.1:9000?isSecure=false", "http://127.0.0.1:8000?isSecure=false")
    endpoint = one(made, "kratos")
    assert endpoint == Endpoint(host="127.0.0.1", port=8000, weight=100, metadata={"version": "v1.0.0"}, id="n/1")
    assert sorted(e.port for e in read(made, "kratos", schemes="http,grpc")) == [8000, 9000]
    assert read(made, "kratos", schemes="https") == []


def test_kratos_with_tls_weight_and_zone() -> None:
    for url in ("http://127.0.0.1:8000?isSecure=true", "https://127.0.0.1:8000"):
        made = kratos(url, "grpcs://127.0.0.1:9000", Meta={"weight": "50", "zone": "eu-1"})
        endpoint = one(made, "kratos")
        assert (endpoint.tls, endpoint.weight, endpoint.zone) == (True, 50, "eu-1")
        assert endpoint.metadata["version"] == "v1.0.0"
    made = kratos("http://a:1", Weights={"Passing": 1, "Warning": 0.5}) | {"Checks": [{"Status": "warning"}]}
    assert one(made, "kratos", passing=False).weight == 50


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_a_bad_weight_in_meta_of_kratos_is_logged_once(weight: str, caplog: pytest.LogCaptureFixture) -> None:
    found = Records(reader("kratos"))
    for tags in ([], ["any"]):
        found.put("n/1", kratos("http://a:1", Meta={"weight": weight}, Tags=tags))
    assert [endpoint.weight for endpoint in found.endpoints] == [100]
    (message,) = caplog.messages
    assert message.startswith("record 'n/1' read in part: weight must be a number")


@pytest.mark.parametrize(("registered", "priority"), [("2", 2), ("-2", -2), ("high", 0), ("0.5", 0)])
def test_a_priority_in_meta(registered: str, priority: int) -> None:
    meta = {"priority": registered}
    for name, made in (
        ("plain", entry(Meta=meta)),
        ("spring", entry(Meta=meta | {"secure": "true"})),
        ("kratos", kratos("http://a:1", Meta=meta)),
        ("fabio", entry(Meta=meta, Tags=["urlprefix-/"])),
    ):
        assert one(made, name).priority == priority


def test_kratos_without_urls() -> None:
    """Kratos, contrib/registry/consul/client.go, defaultResolver: HTTP at the address of the service."""
    (endpoint,) = reader("kratos")("n/1", kratos())
    assert (endpoint.address, endpoint.weight) == ("127.0.0.1:8000", 100)


def test_a_broken_url_of_kratos() -> None:
    assert "port must be" in why(kratos("http://a:0"))
    assert read(kratos("grpc://a:0"), "kratos") == []


# Spring Cloud


@pytest.mark.parametrize(
    "service",
    [
        {"Meta": {"secure": "true", "zone": "zone1", "group": "g"}, "Tags": ["any"]},
        {"Meta": {"secure": "TRUE", "zone": "zone1", "group": "g"}, "Tags": ["secure=false", "zone=zone2"]},
        {"Meta": None, "Tags": ["secure=true", "zone=zone1", "group=g", "any"]},
    ],
)
def test_spring(service: dict[str, Any]) -> None:
    """Spring Cloud Consul, ConsulServiceInstance: `secure` in Meta; before 2.2 metadata was in the tags.

    "Instance zones" in its reference: the zone is metadata called zone, unless that was configured otherwise.
    """
    endpoint = one(entry(**service), "spring")
    assert (endpoint.tls, endpoint.zone, endpoint.weight) == (True, "zone1", 10)
    assert {"secure", "zone", "group"} == endpoint.metadata.keys()
    assert endpoint.metadata["group"] == "g"
    assert why(entry(**service), schemes="http") == "scheme must be http, not 'https'"
    (plain,) = reader("plain")("n/1", entry(**service))
    assert not plain.tls


def test_spring_without_tls() -> None:
    made = entry(Meta={"secure": "false"})
    assert not one(made, "spring", "plain").tls
    assert not one(entry(Meta={"secure": "perhaps"}), "spring", "plain").tls
    assert "not 'http'" in why(made, schemes="https")
    assert not one(entry(Meta={"secure": "perhaps"}), "plain", schemes="https").tls


# Fabio


@pytest.mark.parametrize(
    ("tags", "scheme", "weight"),
    [
        (["urlprefix-/css"], "http", 10),
        (["urlprefix-i.com/static", "a"], "http", 10),
        (["a", " urlprefix-/foo/bar proto=https"], "https", 10),
        (["urlprefix-/foo/bar proto=https tlsskipverify=true weight=0.5"], "https", 5),
        (["urlprefix-/foo/bar strip=/foo weight=0.05"], "http", 0.5),
        (["urlprefix-/foo weight=0"], "http", 10),
        (["urlprefix-:3306 proto=tcp", "urlprefix-/foo weight=1"], "http", 10),
        (["urlprefix-/old redirect=301,https://b.example", "urlprefix-/foo"], "http", 10),
    ],
)
def test_fabio(tags: list[str], scheme: str, weight: float) -> None:
    """Fabio, "Quickstart": the examples of tags; "Traffic Shaping": a weight is a share of the traffic."""
    endpoint = one(entry(Tags=tags), "fabio")
    assert (endpoint.scheme, endpoint.weight, endpoint.zone) == (scheme, weight, "eu-1")


def test_shares_of_fabio_are_relative_weights() -> None:
    shares = [one(entry(Tags=[f"urlprefix-/ weight={share}"]), "fabio").weight for share in (0.2, 0.8)]
    assert shares == [2, 8]


@pytest.mark.parametrize(
    ("tags", "schemes"),
    [
        (["urlprefix-:3306 proto=tcp pxyproto=true"], "http,https"),
        (["urlprefix-/my.service proto=grpcs grpcservername=my.service"], "http,https"),
        (["urlprefix-/foo/bar proto=https"], "http"),
        (["urlprefix-/old redirect=301,https://b.example"], "http,https"),
    ],
)
def test_routes_of_fabio_for_others(tags: list[str], schemes: str) -> None:
    assert read(entry(Tags=tags), "fabio", schemes=schemes) == []


def test_fabio_over_grpc() -> None:
    assert one(entry(Tags=["urlprefix-/my.service proto=grpcs"]), "fabio", schemes="grpcs").tls


@pytest.mark.parametrize("weight", ["-0.1", "nan", "inf", "much"])
def test_a_share_that_is_none_is_refused(weight: str) -> None:
    assert "weight must be a number" in why(entry(Tags=[f"urlprefix-/foo weight={weight}"]))


# Real servers


@pytest.mark.usefixtures("nothing_leaks")
async def test_what_a_real_agent_makes_of_them(consul: ConsulServer, unique: str) -> None:
    """Registered as the writers do, with what Consul itself adds."""
    bodies: list[dict[str, Any]] = [
        {"ID": f"{unique}-plain", "Address": "10.0.0.1", "Port": 80, "Tags": ["a"]},
        {
            "ID": f"{unique}-kratos",
            "Address": "10.0.0.2",
            "Port": 9000,
            "TaggedAddresses": {
                "grpc": {"Address": "grpc://10.0.0.2:9000", "Port": 9000},
                "https": {"Address": "https://10.0.0.2:8000", "Port": 8000},
            },
            "Meta": {"weight": "50"},
        },
        {"ID": f"{unique}-spring", "Address": "10.0.0.3", "Port": 80, "Meta": {"secure": "true", "zone": "eu-1"}},
        {"ID": f"{unique}-fabio", "Address": "10.0.0.4", "Port": 80, "Tags": ["urlprefix-/ weight=0.5"]},
        {"ID": f"{unique}-tcp", "Address": "10.0.0.5", "Port": 80, "Tags": ["urlprefix-:1 proto=tcp"]},
        {"ID": f"{unique}-none", "Address": "10.0.0.6", "Port": 0},
    ]
    for body in bodies:
        await consul._ask("PUT", "/v1/agent/service/register", {"Name": unique, **body})
    source = Consul(unique, address=consul.address)
    async with Watcher(source) as watcher:
        snapshot = await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
        assert [(f"{e.scheme}:{e.port}", e.weight, e.zone) for e in snapshot.endpoints] == [
            ("http:80", 1, ""),
            ("https:8000", 50, ""),
            ("https:80", 1, "eu-1"),
            ("http:80", 0.5, ""),
        ]
        assert [key.rpartition("-")[2] for key in source.skipped] == ["none"]
        assert snapshot.skipped == 1
    url = f"consul://{consul.address}/{unique}?records=kratos&schemes=grpc"
    async with Watcher(open_source(url)) as watcher:
        found = (await watcher.ready(5)).endpoints
        assert "10.0.0.2:9000" in [endpoint.address for endpoint in found]
    for body in bodies:
        await consul.deregister(body["ID"])


# All


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="auto, plain, kratos, spring, fabio, registrator, not 'etcd'"):
        Consul("web", records="etcd")
    with pytest.raises(ValueError, match="not 'h t'"):
        open_source("consul://h/web?schemes=http,h%20t")
    with pytest.raises(TypeError, match="not 7"):
        Consul("web", schemes=[7])  # type: ignore[list-item]
    open_source("consul://h/web?records=fabio&schemes=http,grpc&passing=0")
