from __future__ import annotations

import math
from typing import Any

import pytest

from lbclient import BalancedSession, Hedge


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("after", -0.1, "0 or more"),
        ("after", math.nan, "0 or more"),
        ("after", math.inf, "finite"),
        ("after", "1", "0 or more"),
        ("after", True, "0 or more"),
        ("percentile", 95, "from 0 to 1"),
        ("percentile", -0.1, "from 0 to 1"),
        ("percentile", None, "from 0 to 1"),
        ("linger", -1, "0 or more"),
        ("linger", math.inf, "finite"),
        ("linger", None, "0 or more"),
    ],
)
def test_a_wrong_value_is_refused_by_name(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option} must be .*{allowed}"):
        Hedge(**{option: value})


@pytest.mark.parametrize("options", [{}, {"after": 0}, {"percentile": 1.0}, {"percentile": 0}, {"linger": 0}])
def test_the_limits_of_what_is_allowed_are_allowed(options: dict[str, float]) -> None:
    assert Hedge(**options)


async def test_there_is_none_by_default() -> None:
    async with BalancedSession("static://127.0.0.1:1", name="service") as session:
        assert session._balancing._services["service"].hedging is None
