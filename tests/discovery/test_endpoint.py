"""What is an endpoint and what is not."""

from __future__ import annotations

import copy
import dataclasses
import ipaddress
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from discovery import Endpoint, Snapshot
from discovery.endpoint import endpoint_tuple


@pytest.mark.parametrize(
    ("text", "address", "tls"),
    [
        ("10.0.0.1:8080", "10.0.0.1:8080", False),
        ("Example.COM.:80", "example.com:80", False),
        ("my_service:80", "my_service:80", False),
        ("[2001:DB8::0:1]:443", "[2001:db8::1]:443", False),
        ("http://a.b", "a.b:80", False),
        ("https://a.b", "a.b:443", True),
        ("https://[::1]:8443/", "[::1]:8443", True),
        (" 10.0.0.1:80\n", "10.0.0.1:80", False),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example:80", False),
    ],
)
def test_an_address_is_stored_in_one_canonical_form(text: str, address: str, tls: bool) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.address, endpoint.tls) == (address, tls)
    assert endpoint.scheme == ("https" if tls else "http")
    assert Endpoint.parse(endpoint.address).address == address


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:\uff18\uff10", "host:8 0", "a b:80",
        "127.1:80", "2130706433:80", "0x7f.1:80", "0177.0.0.1:80", "256.0.0.1:80", "0.0.0.0:80", "[::]:80",
        "224.0.0.1:80", "::1:80", "[::1", "[::1]80", "[fe80::1%eth0]:80", "-a:80", "a-:80", "a..b:80",
        "ü:80", "a/b:80", "a@b:80",
        "ftp://a:21", "http://user:secret@a", "http://a/path", "http://a?x", "x" * 64 + ":80", "a." * 130 + "b:80",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - any message, but never a secret
        Endpoint.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": "80"}, {"port": True}, {"port": 80.0}, {"weight": -1}, {"weight": float("nan")},
        {"weight": float("inf")}, {"weight": 10**400}, {"weight": "5"}, {"weight": True},
        {"priority": 1.0}, {"priority": "1"}, {"priority": True}, {"priority": None}, {"priority": float("nan")},
        {"host": 7}, {"host": None},
    ],
)  # fmt: skip
def test_wrong_values_are_named(wrong: dict[str, Any]) -> None:
    (value,) = wrong.values()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the value is looked for in the text
        Endpoint(**{"host": "h", "port": 80, **wrong})
    assert str(value) in str(caught.value)


@given(st.text())
def test_any_text_is_an_endpoint_or_a_value_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert Endpoint.parse(endpoint.address) == Endpoint(host=endpoint.host, port=endpoint.port)


digits = st.one_of(st.integers(0, 300).map(str), st.sampled_from(["", "00", "01", "1e1", "\u0661", "0x7f"]))
hosts = st.one_of(
    st.lists(digits, min_size=1, max_size=5).map(".".join),
    st.ip_addresses().map(str),
    st.text(alphabet="0123456789abcdef.:%x-_\n ", max_size=20),
    st.text(),
)


@given(hosts)
@example("0.0.0.1")
@example("223.255.255.255")
@example("224.0.0.0")
@example("239.255.255.255")
@example("240.0.0.0")
@example("255.255.255.255")
@example("1.2.3.256")
@example("01.2.3.4")
@example("1.2.3.00")
def test_a_host_is_what_the_standard_library_says(host: str) -> None:
    """Addresses are not parsed with `ipaddress` where that can be avoided; nothing else may change by it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    no_server = address is not None and (
        address.is_unspecified or address.is_multicast or bool(getattr(address, "scope_id", None))
    )
    try:
        found = Endpoint(host=host, port=80).host
    except ValueError:
        assert address is None or no_server
    else:
        assert not no_server
        assert found == (str(address) if address else host.lower().removesuffix("."))
        assert address or not re.search(r":|(^|\.)([0-9]+|0x[0-9a-f]*)$", found)


def test_an_endpoint_cannot_be_changed() -> None:
    metadata = {"a": 1}
    endpoint = Endpoint(host="h", port=80, metadata=metadata)  # type: ignore[arg-type]
    metadata["a"] = 2
    assert endpoint.metadata == {"a": "1"}
    with pytest.raises(TypeError):
        endpoint.metadata["a"] = "2"  # type: ignore[index]
    with pytest.raises(AttributeError):
        endpoint.port = 81  # type: ignore[misc]
    assert hash(endpoint) == hash(Endpoint(host="h", port=80, metadata={"a": "1"}))
    assert endpoint != Endpoint(host="h", port=80)
    assert copy.copy(endpoint) == endpoint


def test_a_set_is_sorted_and_has_one_endpoint_per_address() -> None:
    ids = "cab"
    endpoints = [Endpoint(host="10.0.0.2", port=80, id=i) for i in ids] + [Endpoint(host="10.0.0.1", port=90)]
    result = endpoint_tuple(endpoints)
    assert [(e.address, e.id) for e in result] == [("10.0.0.1:90", ""), ("10.0.0.2:80", "a")]
    assert endpoint_tuple(reversed(endpoints)) == result


places = st.builds(
    Endpoint,
    host=st.sampled_from(["10.0.0.1", "10.0.0.10", "10.0.0.2", "::1", "1::", "a", "a.b", "a-b", "ab"]),
    port=st.sampled_from([1, 9, 10, 80, 8080, 65535]),
    id=st.sampled_from(["", "a", "b"]),
    weight=st.sampled_from([1.0, 2.0]),
)


@given(st.lists(places))
def test_sets_are_sorted_by_host_and_port_as_numbers_and_the_first_id_stays(endpoints: list[Endpoint]) -> None:
    expected: dict[str, Endpoint] = {}
    for endpoint in sorted(endpoints, key=lambda e: (e.host, e.port, e.id)):
        expected.setdefault(endpoint.address, endpoint)
    result = endpoint_tuple(endpoints)
    assert list(map(id, result)) == list(map(id, expected.values()))
    assert list(map(id, endpoint_tuple(iter(result)))) == list(map(id, result))


def test_a_priority_is_part_of_the_description_and_may_be_negative() -> None:
    plain, last = Endpoint(host="a", port=80), Endpoint(host="a", port=80, priority=-10)
    assert (plain.priority, last.priority) == (0, -10)
    assert plain != last
    assert last.as_dict()["priority"] == -10


def test_a_changed_copy_is_sorted_by_what_it_is_now() -> None:
    one, two = Endpoint(host="10.0.0.1", port=80), Endpoint(host="10.0.0.2", port=80)
    moved = dataclasses.replace(one, host="10.0.0.3")
    assert endpoint_tuple([moved, two]) == (two, moved)
    assert copy.copy(moved) == Endpoint(host="10.0.0.3", port=80)
    assert "place" not in repr(moved)


def test_a_snapshot_says_what_is_known() -> None:
    assert str(Snapshot()) == "0 endpoints, starting"
    stale = Snapshot(version=3, state="stale", reason="refused", received_at=0.0, skipped=2)
    assert "0 endpoints, stale for" in str(stale)
    assert str(stale).endswith("2 unreadable records skipped (refused)")
    assert stale.as_dict()["age"] > 0
