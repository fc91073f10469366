"""The filter on endpoints, and what happens when nothing matches."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from discovery import Endpoint, Memory
from lbclient import BalancedSession, NoEndpoints, Routing


def endpoint(number: int, **metadata: str) -> Endpoint:
    return Endpoint(host=f"10.0.0.{number}", port=80, metadata=metadata, zone=f"z{number}")


ALL = (
    endpoint(1, version="v1", canary="true"),
    endpoint(2, version="v2"),
    endpoint(3, version="v2", canary="true"),
    endpoint(4),
)


def used(**options: Any) -> list[int]:
    return [int(each.host[-1]) for each in Routing(**options).narrow(ALL)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, [1, 2, 3, 4]),
        ({}, [1, 2, 3, 4]),
        ({"version": "v2"}, [2, 3]),
        ({"version": ["v1", "v2"]}, [1, 2, 3]),
        ({"version": {"v2"}, "canary": "true"}, [3]),
        (lambda each: each.zone == "z4", [4]),
        (lambda each: each.metadata.get("canary"), [1, 3]),
    ],
)
def test_only_what_matches_is_used(where: Any, expected: list[int]) -> None:
    assert used(where=where, fallback="none") == expected


@pytest.mark.parametrize("where", [{"version": "v3"}, {"version": "v"}, {"Version": "v2"}, lambda _: False])
def test_the_fallback_is_for_when_nothing_matches(where: Any) -> None:
    assert used(where=where) == [1, 2, 3, 4]
    assert used(where=where, fallback="none") == []


def test_the_subset_is_taken_of_what_matches() -> None:
    assert used(where={"version": "v2"}, subset=2) == [2, 3]


def test_an_endpoint_on_which_the_function_fails_does_not_match(caplog: pytest.LogCaptureFixture) -> None:
    routing = Routing(where=lambda each: each.metadata["version"] == "v2", fallback="none")
    for _ in range(3):
        assert [int(each.host[-1]) for each in routing.narrow(ALL)] == [2, 3]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "10.0.0.4" in record.getMessage()
    assert "KeyError: 'version'" in caplog.text


def test_a_condition_does_not_change_with_the_mapping_it_was_made_of() -> None:
    values = ["v1"]
    routing = Routing(where={"version": values})
    values.append("v2")
    assert [int(each.host[-1]) for each in routing.narrow(ALL)] == [1]


@pytest.mark.parametrize("where", ["version=v2", 5, ["version"], {"version": 2}, {"version": [2]}, {1: "v2"}])
def test_a_condition_of_another_kind_is_refused(where: Any) -> None:
    with pytest.raises(TypeError, match=r"where must be metadata such as \{'version': 'v2'\}"):
        Routing(where=where)


def test_a_condition_that_nothing_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"where must allow at least one value for version, not \[\]"):
        Routing(where={"version": []})


async def test_the_error_says_how_many_are_known_and_how_many_match() -> None:
    routing = Routing(where={"version": "v3"}, fallback="none")
    async with BalancedSession(Memory(ALL), name="users", routing=routing) as users:
        with pytest.raises(NoEndpoints, match="4 known, 0 matching, 0 healthy, 0 tried"):
            await users.get("/")
