"""Options of `Ejection` are checked when they are given, and their defaults have an origin."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Any

import pytest

from lbclient import Ejection, SlowStart

NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("connect_failures", [-1, 1.5, True, "3"]),
        ("failures", [-1, 1.5, True, "3"]),
        ("gateway_failures", [-1, 1.5, False, "3"]),
        ("interval", [0, -1, NAN, INF, None, True]),
        ("success_rate_deviations", [-0.1, NAN, INF, "1.9", True]),
        ("success_rate_gap", [-0.1, 1.1, NAN, None, True]),
        ("success_rate_requests", [0, -1, 1.5, None, True]),
        ("failure_rate", [0, -1, 1.1, NAN, "1", True]),
        ("failure_rate_requests", [0, -1, 1.5, None, True]),
        ("min_nodes", [0, -1, 1.5, None, True]),
        ("base", [0, -1, NAN, INF, None, True]),
        ("cap", [0, -1, NAN, INF, None, True]),
        ("jitter", [-0.1, 1.1, NAN, None, True]),
        ("max_ejected", [-0.1, 1.1, NAN, None, True]),
        ("slow_start", [10, True]),
        ("enforce", [0, 1, None, "no"]),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_its_value(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"^{option} must be ") as caught:
            Ejection(**{option: value})
        assert repr(value) in str(caught.value)


def test_the_first_time_out_is_no_longer_than_the_longest() -> None:
    with pytest.raises(ValueError, match="need base <= cap, not base=10, cap=5"):
        Ejection(base=10, cap=5)


def test_every_rule_can_be_turned_off() -> None:
    for off in (None, 0):
        Ejection(connect_failures=off, failures=off, gateway_failures=off)
    Ejection(success_rate_deviations=None, failure_rate=None, slow_start=None, enforce=False, jitter=0)
    Ejection(failure_rate=1.0, success_rate_deviations=0, success_rate_gap=0, max_ejected=0)


def test_defaults_are_those_of_their_origin() -> None:
    """Envoy's `outlier_detection.proto`, and gRFC A50 where it has the same option."""
    options = Ejection()
    assert (options.connect_failures, options.failures, options.gateway_failures) == (3, 5, 5)
    assert (options.interval, options.base, options.cap, options.max_ejected) == (10, 30, 300, 0.1)
    assert (options.success_rate_deviations, options.success_rate_requests, options.min_nodes) == (1.9, 100, 5)
    assert (options.failure_rate, options.failure_rate_requests) == (None, 50)
    assert options.slow_start == SlowStart(window=10)


def test_options_are_values() -> None:
    assert Ejection() == Ejection()
    assert hash(Ejection()) == hash(Ejection())
    with pytest.raises(AttributeError):
        Ejection().base = 1.0  # type: ignore[misc]


def test_every_option_has_its_line_in_the_docstring() -> None:
    doc = inspect.getdoc(Ejection) or ""
    assert re.findall(r"^    (\w+): ", doc, re.MULTILINE) == [field.name for field in fields(Ejection)]
