"""What others wrote: every rule of `Records`, and that nothing they write breaks it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from discovery import Endpoint
from discovery.records import Records, Weight
from discovery.records.formats import reader


def records(name: str = "auto") -> Records[bytes]:
    return Records(reader(name), source="here")


def addresses(found: Sequence[Endpoint]) -> list[str]:
    return sorted(endpoint.address for endpoint in found)


@pytest.mark.parametrize("value", [b"", b" \n", b'{"Op":1,"Addr":"1.2.3.4:80"}'])
def test_placeholders_and_deletions_are_no_endpoints_and_no_errors(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    found = records()
    found.put("k", b"10.0.0.1:80")
    found.put("k", value)
    assert (found.endpoints, dict(found.skipped), caplog.messages) == ((), {}, [])


def test_what_is_broken_does_not_hide_what_is_good() -> None:
    found = records()
    found.put("good", b"10.0.0.1:80")
    found.put("bad", b"x" * 1_000_000)
    assert addresses(found.endpoints) == ["10.0.0.1:80"]
    assert len(found.skipped["bad"]) < 400


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


def weighted(key: str, value: Any) -> Iterable[Endpoint | Weight]:
    """Numbers are weights of the record that is named like theirs in lower case, texts are endpoints."""
    if isinstance(value, str):
        return tuple(Endpoint.parse(each) for each in value.split())
    return (Weight(of=key.lower(), value=value),)


def weights(found: Records[Any]) -> list[tuple[str, float]]:
    return sorted((endpoint.address, endpoint.weight) for endpoint in found.endpoints)


def test_a_weight_in_a_record_of_its_own() -> None:
    found = Records(weighted)
    found.put("A", 3)
    assert found.endpoints == ()
    found.put("a", "10.0.0.1:1 10.0.0.1:2")
    assert weights(found) == [("10.0.0.1:1", 3), ("10.0.0.1:2", 3)]
    before = found.endpoints
    found.put("A", 3.0)
    assert found.endpoints is before
    found.put("A", float("nan"))
    found.put("A", -1)
    assert found.endpoints is before
    assert list(found.skipped) == ["A"]
    twin = found.copy()
    twin.delete("A")
    assert weights(twin) == [("10.0.0.1:1", 1), ("10.0.0.1:2", 1)]
    assert weights(found) == [("10.0.0.1:1", 3), ("10.0.0.1:2", 3)]
    found.put("a", "10.0.0.1:1")
    assert weights(found) == [("10.0.0.1:1", 3)]
    found.put("a", "10.0.0.1:1 10.0.0.1:2")
    found.put("a", "broken")
    found.put("A", 4)
    assert weights(found) == [("10.0.0.1:1", 4), ("10.0.0.1:2", 4)]
    found.delete("a")
    assert found.endpoints == ()


def test_two_weights_for_one_record_do_not_depend_on_the_order() -> None:
    for order in (("AB", "aB"), ("aB", "AB")):
        found = Records(weighted)
        found.put("ab", "10.0.0.1:1")
        for key in order:
            found.put(key, {"AB": 2, "aB": 3}[key])
        assert weights(found) == [("10.0.0.1:1", 2)]
        found.delete("AB")
        assert weights(found) == [("10.0.0.1:1", 3)]


def test_values_that_cannot_be_compared_are_read_again() -> None:
    found = Records(weighted)
    deep = [nested(100_000), nested(100_000)]
    for value in deep:
        found.put("a", value)
    assert list(found.skipped) == ["a"]
    for value in deep:
        while value:
            value[:] = value.pop()  # taken apart by hand: some releases of Python would overflow their stack


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made
