"""`HealthCheck` says at construction what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lbclient import HealthCheck


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("path", "healthz"),
        ("path", "//evil/healthz"),
        ("path", "/a b"),
        ("path", "/a\r\nX: y"),
        ("path", 7),
        ("statuses", []),
        ("statuses", [99]),
        ("statuses", [600]),
        ("statuses", [True]),
        ("statuses", ["200"]),
        ("statuses", range(1000)),
        ("interval", 0),
        ("interval", -1),
        ("interval", math.inf),
        ("interval", math.nan),
        ("interval", "5"),
        ("jitter", -0.1),
        ("jitter", 1.1),
        ("timeout", 0),
        ("timeout", math.inf),
        ("unhealthy_threshold", 0),
        ("unhealthy_threshold", 1.5),
        ("unhealthy_threshold", True),
        ("healthy_threshold", 0),
        ("at_once", 0),
        ("per_second", 0),
        ("draining_header", "X Draining"),
        ("draining_header", ""),
    ],
)
def test_a_wrong_value_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{option} ") as caught:
        HealthCheck(**{option: value})
    assert repr(value) in str(caught.value) or option == "statuses"


@pytest.mark.parametrize(("option", "value"), [("statuses", 200), ("statuses", "200"), ("mandatory", 1)])
def test_a_value_of_a_wrong_type_is_named(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{option} .*{value!r}"):
        HealthCheck(**{option: value})


def test_a_tcp_check_cannot_see_that_a_draining_header_is_gone() -> None:
    with pytest.raises(ValueError, match="draining_header needs a path"):
        HealthCheck(path=None, draining_header="X-Draining")


def test_options_can_be_compared_and_hashed() -> None:
    assert HealthCheck(statuses=[200, 204]) == HealthCheck(statuses=(204, 200))
    assert hash(HealthCheck(statuses=[200])) == hash(HealthCheck(statuses={200}))
    assert HealthCheck(path="/up?deep=1", jitter=1, mandatory=True, draining_header="X-Draining").path is not None
