"""What is an endpoint and what is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
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


def test_a_snapshot_says_what_is_known() -> None:
    assert str(Snapshot()) == "0 endpoints, starting"
    stale = Snapshot(version=3, state="stale", reason="refused", received_at=0.0, skipped=2)
    assert "0 endpoints, stale for" in str(stale)
    assert str(stale).endswith("2 unreadable records skipped (refused)")
    assert stale.as_dict()["age"] > 0
