"""What others wrote: every rule of `Records` and each format, on plain bytes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import Endpoint
from discovery.records import FORMATS, Records, reader


def records(name: str = "auto") -> Records[bytes]:
    return Records(reader(name), source="here")


def addresses(found: Sequence[Endpoint]) -> list[str]:
    return sorted(endpoint.address for endpoint in found)


def one(value: bytes | str | dict[str, Any], name: str = "auto") -> Endpoint:
    """The only endpoint in a record."""
    data = json.dumps(value) if isinstance(value, dict) else value
    found = records(name)
    found.put("services/users/1", data if isinstance(data, bytes) else data.encode())
    assert not found.skipped
    (endpoint,) = found.endpoints
    return endpoint


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
@pytest.mark.parametrize("name", ["auto", "address"])
def test_addresses_and_urls(value: str, address: str, tls: bool, name: str) -> None:
    endpoint = one(value, name)
    assert (endpoint.address, endpoint.tls, endpoint.id) == (address, tls, "services/users/1")


@pytest.mark.parametrize("operation", [{}, {"Op": 0}, {"Op": None}])
@pytest.mark.parametrize("name", ["auto", "etcd"])
def test_etcd_naming(operation: dict[str, Any], name: str) -> None:
    endpoint = one({**operation, "Addr": "1.2.3.4:80", "Metadata": None}, name)
    assert endpoint == Endpoint(host="1.2.3.4", port=80, id="services/users/1")


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
    endpoint = one({"Addr": "1.2.3.4:80", "Metadata": metadata})
    assert (endpoint.weight, endpoint.zone, dict(endpoint.metadata)) == expected


@pytest.mark.parametrize("value", [b"", b" \n", b'{"Op":1,"Addr":"1.2.3.4:80"}'])
def test_placeholders_and_deletions_are_no_endpoints_and_no_errors(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    found = records()
    found.put("k", b"10.0.0.1:80")
    found.put("k", value)
    assert (found.endpoints, dict(found.skipped), caplog.messages) == ((), {}, [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"nonsense", "host:port"),
        (b"10.0.0.1:0", "port must be"),
        (b"0.0.0.0:80", "listening address"),
        (b"\xff\xfe", "utf-8"),
        (b'{"Addr"', "broken JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"Addr":"a:1","Op":' + b"9" * 5000 + b"}", "broken JSON"),
        (b'{"host":"a"}', "none of the known formats (address, etcd)"),
        (b'{"Addr":7}', "Addr must be a string"),
        (b'{"Addr":"a:1","Op":7}', "Op must be 0"),
        (b'{"Addr":"a:1","Op":"x"}', "Op must be 0"),
        (b"http://user:secret@host/", "credentials"),
    ],
)
def test_broken_records_are_skipped_with_a_reason(value: bytes, reason: str) -> None:
    found = records()
    found.put("good", b"10.0.0.1:80")
    found.put("bad", value)
    assert addresses(found.endpoints) == ["10.0.0.1:80"]
    assert reason in found.skipped["bad"]
    assert len(found.skipped["bad"]) < 400
    assert "secret" not in found.skipped["bad"]


def test_a_named_format_takes_nothing_else() -> None:
    for name, value in (("address", b'{"Addr":"1.2.3.4:80"}'), ("etcd", b"1.2.3.4:80")):
        found = records(name)
        found.put("k", value)
        assert (found.endpoints, list(found.skipped)) == ((), ["k"])


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"auto, address, etcd.*, not 'yaml'"):
        reader("yaml")
    for name in ("auto", *FORMATS):
        assert reader(name)("k", b"") == ()


def test_a_bad_update_keeps_the_last_good_value() -> None:
    found = records()
    found.put("k", b"10.0.0.1:80")
    found.put("k", b"broken")
    assert addresses(found.endpoints) == ["10.0.0.1:80"]
    assert list(found.skipped) == ["k"]
    found.replace({"k": b"still broken"})
    assert addresses(found.endpoints) == ["10.0.0.1:80"]
    found.put("k", b"10.0.0.2:80")
    assert addresses(found.endpoints) == ["10.0.0.2:80"]
    assert not found.skipped
    found.put("k", b"broken")
    found.delete("k")
    assert (found.endpoints, dict(found.skipped)) == ((), {})
    found.put("k", b"broken")
    assert found.endpoints == ()


def test_logged_once_until_it_was_good_in_between(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found = records()
    found.put("k\n1", b"1:2:3\nfaked line")
    found.put("k\n1", b"bad: 2")
    found.replace({"k\n1": b"bad: 3"})
    (message,) = caplog.messages
    assert message.startswith("here: record 'k\\n1' skipped: ")
    assert "\n" not in message
    found.put("k\n1", b"10.0.0.1:80")
    found.put("k\n1", b"bad: 4")
    assert len(caplog.messages) == 2
    assert "its last good value stays" in caplog.messages[1]
    found.delete("k\n1")
    found.put("k\n1", b"bad: 5")
    assert len(caplog.messages) == 3


def test_replace_takes_away_what_is_not_named() -> None:
    found = records()
    found.replace({"a": b"10.0.0.1:80", "b": b"10.0.0.2:80", "c": b"broken"})
    assert (addresses(found.endpoints), list(found.skipped)) == (["10.0.0.1:80", "10.0.0.2:80"], ["c"])
    found.replace({"b": b"10.0.0.3:80"})
    assert (addresses(found.endpoints), list(found.skipped)) == (["10.0.0.3:80"], [])
    found.delete("unknown")
    assert addresses(found.endpoints) == ["10.0.0.3:80"]


def test_only_what_changed_is_parsed() -> None:
    parsed = []

    def read(key: str, value: int) -> Iterable[Endpoint]:
        parsed.append(key)
        return (Endpoint(host="10.0.0.1", port=value),)

    found = Records(read)
    every = {f"k{number}": number + 1 for number in range(10_000)}
    found.replace(every)
    assert len(parsed) == len(found.endpoints) == 10_000
    parsed.clear()
    found.put("k7", 20_000)
    found.replace(every | {"k8": 20_001})
    assert sorted(parsed) == ["k7", "k7", "k8"]


def test_the_same_object_until_something_changed() -> None:
    found = records()
    found.replace({"a": b"10.0.0.1:80", "empty": b""})
    before = found.endpoints
    found.put("a", b" 10.0.0.1:80 ")
    found.put("b", b"broken")
    found.delete("b")
    found.delete("empty")
    assert found.endpoints is before
    found.put("b", b"10.0.0.2:80")
    assert found.endpoints is not before
    assert addresses(before) == ["10.0.0.1:80"]


def test_whatever_a_format_raises_is_a_reason() -> None:
    def read(_: str, value: object) -> Iterable[Endpoint]:
        raise value if isinstance(value, Exception) else RuntimeError

    found = Records(read)
    found.replace({"a": KeyError("Addr"), "b": 1})
    assert dict(found.skipped) == {"a": "KeyError: 'Addr'", "b": "RuntimeError: "}


def test_one_record_may_be_several_endpoints() -> None:
    def read(_: str, value: str) -> Iterable[Endpoint]:
        return (Endpoint.parse(each) for each in value.split())

    found = Records(read)
    found.put("k", "10.0.0.1:1 10.0.0.1:2")
    assert addresses(found.endpoints) == ["10.0.0.1:1", "10.0.0.1:2"]
    found.put("k", "10.0.0.1:1 broken")
    assert addresses(found.endpoints) == ["10.0.0.1:1", "10.0.0.1:2"]
    found.delete("k")
    assert found.endpoints == ()


def test_a_copy_is_independent_and_remembers(caplog: pytest.LogCaptureFixture) -> None:
    found = records()
    found.replace({"a": b"10.0.0.1:80", "bad": b"broken"})
    twin = found.copy()
    assert twin.endpoints is found.endpoints
    twin.put("a", b"broken")
    twin.put("bad", b"broken still")
    assert addresses(twin.endpoints) == ["10.0.0.1:80"]
    assert list(found.skipped) == ["bad"]
    twin.replace({})
    assert addresses(found.endpoints) == ["10.0.0.1:80"]
    assert len(caplog.messages) == 2


fragments = st.sampled_from(
    [b'{"Addr":', b'{"Op":', b'"Metadata":', b"null", b'"', b"10.0.0.1:80", b"{", b"}", b"9" * 400]
)
values = st.one_of(st.binary(), st.lists(fragments).map(b"".join), st.from_type(float).map(str).map(str.encode))
metadata = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["weight", "zone"]), inner),
    max_leaves=10,
)


@given(st.lists(st.tuples(st.sampled_from("abc"), values)), st.sampled_from(["auto", *FORMATS]))
def test_no_bytes_raise_and_none_are_lost(changes: list[tuple[str, bytes]], name: str) -> None:
    found = records(name)
    for key, value in changes:
        found.put(key, value)
    last = dict(changes)
    fresh = records(name)
    fresh.replace(last)
    assert found.skipped.keys() == fresh.skipped.keys() <= last.keys()
    assert all(reason and reason.isprintable() for reason in found.skipped.values())
    # Beyond what a fresh look finds there are only last good values of what is broken now.
    assert {e for e in found.endpoints if e.id not in found.skipped} == set(fresh.endpoints)


@given(metadata)
def test_no_metadata_breaks_a_record(value: Any) -> None:
    endpoint = one({"Addr": "1.2.3.4:80", "Metadata": value})
    assert endpoint.weight >= 0
    json.dumps(endpoint.as_dict()).encode()
