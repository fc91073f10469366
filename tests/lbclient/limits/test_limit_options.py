"""Wrong limits are refused at construction, by an error that names the option, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from lbclient import Limits, Throttle

NO_NUMBERS = ("3", None, True, float("nan"), [])


@pytest.mark.parametrize("option", ["per_node", "per_service", "waiting"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, 2.5])
def test_counts_are_whole_numbers_from_0(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a whole number, 0 or more") as caught:
        Limits(**{option: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("option", ["wait", "connection_age"])
@pytest.mark.parametrize("value", ["3", True, float("nan"), [], 0, -1, float("inf")])
def test_times_are_above_0_and_finite_or_none(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be (above 0|finite)") as caught:
        Limits(**{option: value})
    assert repr(value) in str(caught.value)
    assert getattr(Limits(**{option: None}), option) is None


@pytest.mark.parametrize("value", ["3", True, float("nan"), [], 0, -1, 2.5])
def test_requests_of_a_connection_are_a_whole_number_from_1(value: Any) -> None:
    with pytest.raises(ValueError, match="connection_requests must be a whole number, 1 or more") as caught:
        Limits(connection_requests=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.1, 1.1])
def test_jitter_is_a_share(value: Any) -> None:
    with pytest.raises(ValueError, match="jitter must be a number from 0 to 1") as caught:
        Limits(jitter=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0.9, -1, float("inf")])
def test_k_is_1_or_more(value: Any) -> None:
    with pytest.raises(ValueError, match=r"k must be (1 or more|finite)") as caught:
        Throttle(k=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, float("inf")])
def test_the_window_is_above_0(value: Any) -> None:
    with pytest.raises(ValueError, match=r"window must be (above 0|finite)") as caught:
        Throttle(window=value)
    assert repr(value) in str(caught.value)
