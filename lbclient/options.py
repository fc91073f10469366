"""Checks of options: a wrong one fails at construction, with its name, its value, and what is allowed."""

from __future__ import annotations

from types import NoneType

from yarl import URL

__all__ = ["above_zero", "at_least", "of_type", "service_host", "whole"]


def service_host(name: str) -> str:
    """The name of a service as it appears in URLs; `ValueError` if it cannot."""
    try:
        valid = isinstance(name, str) and URL.build(scheme="http", host=name).raw_host == name.lower()
    except ValueError:
        valid = False
    if not valid or ":" in name:
        raise ValueError(f"a service name is a host name in URLs, as in http://users/; {name!r} cannot be one")
    return name.lower()


def whole(option: str, value: int) -> None:
    """Raise a `ValueError` that names the option unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{option} must be a whole number, 1 or more, not {value!r}")


def above_zero(option: str, value: float) -> None:
    """The same unless the value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{option} must be above 0, not {value!r}")


def at_least(option: str, value: float, least: float) -> None:
    """The same unless the value is a number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ValueError(f"{option} must be {least} or more, not {value!r}")


def of_type(option: str, value: object, kind: type) -> None:
    """Raise a `TypeError` that names the option unless the value is of that type or None."""
    if not isinstance(value, (kind, NoneType)):
        raise TypeError(f"{option} must be of type {kind.__name__}, not {value!r}")
