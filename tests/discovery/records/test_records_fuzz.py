"""Whatever is written to etcd: nothing raises, and only the last good value of each key matters."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import Endpoint
from discovery.etcd.view import View
from discovery.etcd.wire import b64
from discovery.records import Records
from discovery.records.formats import FORMATS, reader


def records(name: str) -> Records[bytes]:
    return Records(reader(name))


# What others may write: nothing, parts of every format, and whatever JSON can spell.

SERVER = "x/loadbalancer/servers/0/"
keys = st.sampled_from(
    [
        "a",
        "b",
        "",
        "/",
        "x/tcp@10.0.0.1:80",
        "x/udp@[::1]:1",
        "Arith",
        "skydns/a/b",
        f"{SERVER}url",
        f"{SERVER}weight",
    ]
)
fragments = st.sampled_from(
    [b'{"Addr":', b'{"Op":', b'"Metadata":', b"null", b'"', b"10.0.0.1:80", b"{", b"}", b"9" * 400, b"https://",
     b"?isSecure=true", b"weight=", b"state=inactive", b"&", b"init_dir", b"NaN", b"-1", b"0", b"%ff", b"[", b"@"]
)  # fmt: skip
addresses_of_any = st.sampled_from(
    ["10.0.0.1:80", "http://10.0.0.1:80", "grpc://10.0.0.1:90", "http://a:1?isSecure=true", "[::1]:1", "a:0", ""]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), addresses_of_any,
    st.sampled_from([0, 1, 80, -1, 10**400, "tcp", "grpc", "https", "\ud800", "5", "1e999"]),
)  # fmt: skip
names = st.sampled_from(
    ["Addr", "Op", "Metadata", "endpoints", "metadata", "nodes", "address", "network", "weight", "tags", "host",
     "port", "priority", "ttl", "text", "scheme", "labels", "protocol", "version", "zone", "discovery_type"]
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)
good = st.sampled_from(
    [
        {"Addr": "10.0.0.1:80", "Metadata": {"weight": 2}},
        {"endpoints": ["http://10.0.0.1:80", "grpc://10.0.0.1:90"], "metadata": {"zone": "a"}, "version": "v1"},
        {"nodes": [{"address": "10.0.0.1:80", "metadata": {"protocol": "https"}}], "metadata": {}},
        {"network": "tcp", "address": "10.0.0.1:80", "weight": 10, "tags": {"zone": "a"}},
        {"host": "10.0.0.1", "port": 80, "priority": 1, "weight": 5, "text": "a"},
        {"nodes": {"10.0.0.1:80": 1, "10.0.0.2:80": 0}, "scheme": "https", "labels": {}},
        {"nodes": [{"host": "10.0.0.1", "port": 80, "weight": 2, "priority": 1}]},
    ]
)
# A good record, or one with a field or two that are something else.
nearly = st.builds(lambda record, other: {**record, **other}, good, st.dictionaries(names, anything, max_size=2))
documents = st.one_of(st.dictionaries(names, anything, max_size=6), good, nearly).map(json.dumps).map(str.encode)
doubled = st.tuples(documents, documents).map(lambda two: two[0][:-1] + b"," + two[1][1:])
values = st.one_of(
    st.sampled_from([b"", b"10.0.0.1:80", b"10.0.0.2:80", b"http://10.0.0.3:80", b"weight=2", b"3", b"4", b"-1"]),
    st.binary(),
    st.lists(fragments).map(b"".join),
    documents,
    doubled,
)


def changes_of(keys: st.SearchStrategy[str], values: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Any]]:
    put = st.tuples(st.just("put"), keys, values)
    delete = st.tuples(st.just("delete"), keys, st.none())
    replace = st.tuples(st.just("replace"), st.dictionaries(keys, values, max_size=6), st.none())
    return st.lists(st.one_of(put, put, delete, replace))


@given(changes_of(keys, values), st.sampled_from(["auto", *FORMATS]))
def test_only_the_last_good_values_matter(changes: list[Any], name: str) -> None:
    follow(changes, name)


servers = st.sampled_from(["url", "weight"]).flatmap(
    lambda field: st.sampled_from([f"{SERVER}{field}", f"{SERVER.replace('0', '1')}{field}"])
)
urls_and_weights = st.sampled_from(
    [b"http://10.0.0.1:80", b"http://10.0.0.2:80", b"grpc://10.0.0.1:80", b"broken", b"", b"0", b"3", b"4", b"-1"]
)


@given(changes_of(servers, urls_and_weights))
def test_only_the_last_good_values_matter_of_keys_that_belong_together(changes: list[Any]) -> None:
    follow(changes, "traefik")


def follow(changes: list[Any], name: str) -> None:
    """After any changes the endpoints are those of fresh records with the last good value of each key."""
    read = reader(name)
    found, good, last = records(name), dict[str, bytes](), dict[str, bytes]()

    def put(key: str, value: bytes) -> None:
        last[key] = value
        with contextlib.suppress(Exception):
            tuple(read(key, value))
            good[key] = value

    def delete(key: str) -> None:
        last.pop(key, None)
        good.pop(key, None)

    for what, one, other in changes:
        before = found.endpoints
        if what == "put":
            found.put(one, other)
            put(one, other)
        elif what == "delete":
            found.delete(one)
            delete(one)
        else:
            found.replace(one)
            for key in last.keys() - one.keys():
                delete(key)
            for key, value in one.items():
                put(key, value)
        assert (found.endpoints is before) == (sets(found.endpoints) == sets(before))
    fresh = records(name)
    fresh.replace(good)
    assert not fresh.skipped
    assert sets(found.endpoints) == sets(fresh.endpoints)
    assert found.skipped.keys() == {key for key, value in last.items() if good.get(key) != value}
    assert all(reason and reason.isprintable() and len(reason) < 400 for reason in found.skipped.values())
    json.dumps([endpoint.as_dict() for endpoint in found.endpoints], ensure_ascii=False).encode()


def sets(endpoints: Iterable[Endpoint]) -> list[str]:
    return sorted(map(repr, endpoints))


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 1_000_000, b"." * 1_000_000, b"1" * 1_000_000, b":" * 1_000_000, b"[" * 100_000, b"&" * 100_000,
        b'{"nodes":' * 100_000, b'{"endpoints":' + b"[" * 100_000, b'{"Addr":"' + b"a." * 500_000 + b'"}',
        b'{"host":"a","port":' + b"9" * 4000 + b"}", b'{"host":"a","port":1,"weight":1e400}',
        b'{"Addr":"a:1","Metadata":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"endpoints":["' + b"grpc://a:1" + b'","grpc://a:1"' * 50_000 + b"]}",
        b'{"nodes":{"a:1":1},"nodes":{"b:1":1}}', b'{"Addr":"\\ud800:1"}',
    ],
    ids=range(15),
)  # fmt: skip
def test_monsters(value: bytes) -> None:
    some = ["k", "x/tcp@10.0.0.1:80", f"{SERVER}url", f"{SERVER}weight", "k" * 100_000, "\ud800"]
    for name, key in itertools.product(["auto", *FORMATS], some):
        found = records(name)
        found.put(key, value)
        found.put(key, value + b" ")
        assert len(found.endpoints) + len(found.skipped) <= 1 + 1
        found.delete(key)
        assert (found.endpoints, dict(found.skipped)) == ((), {})


@given(st.lists(st.tuples(st.binary(max_size=8), values, st.booleans())), st.sampled_from(["auto", *FORMATS]))
def test_no_bytes_raise_out_of_the_view_of_etcd(changes: list[tuple[bytes, bytes, bool]], name: str) -> None:
    found = records(name)
    view = View("http://h:1", found, "7", 1)
    for revision, (key, value, put) in enumerate(changes, 2):
        pair = {"key": b64(key), "mod_revision": str(revision), **({"value": b64(value)} if put else {})}
        kind = {} if put else {"type": "DELETE"}
        for event in view.events({"result": {"header": {"cluster_id": "7"}, "events": [{"kv": pair, **kind}]}}):
            view.apply(event)
    assert view.revision == len(changes) + 1
    assert len(found.skipped) <= len(view.keys)
