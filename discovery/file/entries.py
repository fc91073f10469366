"""One entry of a file -> `Endpoint`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from discovery.endpoint import Endpoint

__all__ = ["NO_LIST", "Broken", "Entry", "as_endpoint"]

Entry = tuple[int, Any]  # line, and the value; an exception in place of a value that cannot be

NO_LIST = "expected a list of endpoints, or a mapping with such a list as `endpoints`"
_KEYS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "address": (str, "text"),
        "host": (str, "text"),
        "port": (int, "a whole number"),
        "weight": ((int, float), "a number"),
        "priority": (int, "a whole number"),
        "zone": (str, "text"),
        "tls": (bool, "true or false"),
        "metadata": (Mapping, "a mapping"),
        "id": (str, "text"),
    }
)


class Broken(ValueError):  # noqa: N818 - it says what the text is
    """The text as a whole cannot be read; the message begins with line and column."""

    def __init__(self, why: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {why}")


def as_endpoint(entry: Any) -> Endpoint:
    """The endpoint in one entry: `host:port`, a URL, or a mapping.

    Raises:
        ValueError: it is none; the message says why.
    """
    if isinstance(entry, Exception):
        raise entry
    if isinstance(entry, str):
        return Endpoint.parse(_clean(entry))
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected host:port or a mapping, not {_shown(entry)}")  # noqa: TRY004 - one type for all
    given = {key: _checked(key, value) for key, value in entry.items() if value is not None}
    address = given.pop("address", None)
    if address is None:
        if not {"host", "port"} <= given.keys():
            raise ValueError("either address, or host and port, must be there")
        return Endpoint(**given)
    if {"host", "port"} & given.keys() or ("://" in address and "tls" in given):
        raise ValueError("address says it already: no host, port or, with a URL, tls beside it")
    return Endpoint.parse(address, **given)


def _checked(key: Any, value: Any) -> Any:
    if key not in _KEYS:
        raise ValueError(f"unknown key {_shown(key)}; known ones are {', '.join(_KEYS)}")
    kind, name = _KEYS[key]
    # For Python True is a number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} must be {name}, not {_shown(value)}")
    if key == "metadata":
        return _metadata(value)
    return _clean(value) if isinstance(value, str) else value


def _metadata(given: Mapping[Any, Any]) -> dict[str, str]:
    found = {}
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | None):
            name = f"metadata {_shown(key)}"
            raise ValueError(f"{name} must be text or a number, not {_shown(value)}")  # noqa: TRY004 - as above
        found[_clean(key)] = _clean(value) if isinstance(value, str) else json.dumps(value)
    return found


def _shown(value: Any) -> str:
    """A value in a message: never a whole tree."""
    return repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _clean(text: str) -> str:
    """Without lone surrogates: JSON may spell them, and they fail later, wherever the text is written out."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
