"""Checks of options: a wrong one fails at construction, with its name, its value, and what is allowed."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Collection, Iterable
from types import NoneType
from typing import Any

from yarl import URL

__all__ = [
    "above_zero",
    "at_least",
    "error_classes",
    "finite",
    "function",
    "header_name",
    "known_options",
    "load_function",
    "methods",
    "of_type",
    "service_host",
    "statuses",
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


def known_options(owner: str, options: Collection[str], classes: Collection[type]) -> None:
    """Raise a `TypeError` that names the first option that no class takes, and one that is meant perhaps."""
    known = {name for cls in classes for name in inspect.signature(cls).parameters}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=5, cutoff=0.5)
            # The beginning of a word is what is remembered best.
            meant = max(near, key=lambda name: name[:3] == option[:3], default=None)
            hint = "" if meant is None else f"; did you mean {meant!r}?"
            raise TypeError(f"{owner} has no option {option!r}{hint}")


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


def methods(option: str, values: Collection[str]) -> frozenset[str]:
    """The names of HTTP methods in upper case; an error that names the option unless all of them can be such."""
    wanted = "a collection of HTTP methods, such as {'GET', 'PUT'}"
    return frozenset(
        _checked(option, wanted, v, isinstance(v, str) and _TOKEN.fullmatch(v)).upper()
        for v in _collection(option, values, wanted)
    )


def statuses(option: str, values: Collection[int]) -> frozenset[int]:
    """The same for statuses of answers that are errors."""
    wanted = "a collection of statuses from 400 to 599"
    return frozenset(
        _checked(option, wanted, v, type(v) is int and 400 <= v <= 599)  # noqa: PLR2004 - it says so
        for v in _collection(option, values, wanted)
    )


def error_classes(option: str, values: Collection[type[Exception]]) -> tuple[type[Exception], ...]:
    """The same for classes of exceptions."""
    wanted = "a collection of subclasses of Exception"
    return tuple(
        _checked(option, wanted, v, isinstance(v, type) and issubclass(v, Exception))
        for v in _collection(option, values, wanted)
    )


def _collection(option: str, values: Any, wanted: str) -> Iterable[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection):
        raise TypeError(f"{option} must be {wanted}, not {values!r}")
    return values


def _checked(option: str, wanted: str, value: Any, valid: object) -> Any:
    if not valid:
        raise ValueError(f"{option} must be {wanted}; {value!r} is none")
    return value
