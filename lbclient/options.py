"""Checks of options: a wrong one fails at construction, with its name, its value, and what is allowed."""

from __future__ import annotations

import re
import sys
from types import NoneType

from yarl import URL

__all__ = [
    "above_zero",
    "at_least",
    "finite",
    "function",
    "header_name",
    "load_function",
    "of_type",
    "service_host",
    "url_path",
    "whole",
    "within",
]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def service_host(name: str) -> str:
    """The name of a service as it appears in URLs; `ValueError` if it cannot."""
    try:
        valid = isinstance(name, str) and URL.build(scheme="http", host=name).raw_host == name.lower()
    except ValueError:
        valid = False
    if not valid or ":" in name:
        raise ValueError(f"a service name is a host name in URLs, as in http://users/; {name!r} cannot be one")
    return name.lower()


def whole(option: str, value: int, least: int = 1) -> None:
    """Raise a `ValueError` that names the option unless the value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{option} must be a whole number, {least} or more, not {value!r}")


def above_zero(option: str, value: float) -> None:
    """The same unless the value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{option} must be above 0, not {value!r}")


def at_least(option: str, value: float, least: float) -> None:
    """The same unless the value is a number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ValueError(f"{option} must be {least} or more, not {value!r}")


def within(option: str, value: float, least: float, most: float) -> None:
    """The same unless the value is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{option} must be a number from {least:g} to {most:g}, not {value!r}")


def finite(option: str, value: float) -> None:
    """The same unless the number is one that a float can hold, and not infinite."""
    if not value <= sys.float_info.max:
        raise ValueError(f"{option} must be finite, not {value!r}")


def url_path(option: str, value: str) -> None:
    """The same unless the value can be the path of a URL, and nothing before it."""
    # What begins with two slashes is a host.
    rooted = isinstance(value, str) and value.startswith("/") and not value.startswith("//")
    if not rooted or " " in value or not value.isprintable():
        raise ValueError(f"{option} must begin with one slash and have no spaces or line ends, unlike {value!r}")


def header_name(option: str, value: str) -> None:
    """The same unless the value can be the name of a header (RFC 9110, section 5.6.2)."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(f"{option} must be the name of a header, not {value!r}")


def function(option: str, value: object, kind: str) -> None:
    """Raise a `TypeError` that names the option unless the value can be called; `kind` says how, and which do."""
    if not callable(value):
        raise TypeError(f"{option} must be a function {kind}, not {value!r}")


def load_function(option: str, value: object) -> None:
    """The same unless the value can be called, as a load is."""
    function(option, value, "of a node and the time, such as in_flight, least_request or peak_ewma")


def of_type(option: str, value: object, kind: type) -> None:
    """Raise a `TypeError` that names the option unless the value is of that type or None."""
    if not isinstance(value, (kind, NoneType)):
        raise TypeError(f"{option} must be of type {kind.__name__}, not {value!r}")
