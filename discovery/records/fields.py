"""What the fields of a record mean, whoever wrote it: addresses and URLs, weights, metadata."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from discovery.endpoint import Endpoint, split_host_port
from discovery.records.records import Flaw

__all__ = [
    "SCHEMES",
    "RecordError",
    "clean",
    "endpoint_at",
    "endpoints_at",
    "expect_scheme",
    "objects",
    "priority_in",
    "registered_priority",
    "registered_weight",
    "suggested",
    "suggested_weight",
    "texts",
    "valid_schemes",
    "zone_in",
]

SCHEMES = ("http", "https")
"""The URL schemes that are taken if nothing else is asked for: those of aiohttp's client."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_SECURED = {"http": "https", "ws": "wss", "grpc": "grpcs"}
_OVER_TLS = frozenset(_SECURED.values())
_PORTS = {"http": 80, "ws": 80, "grpc": 80, "https": 443, "wss": 443, "grpcs": 443}
_YES = frozenset({"1", "t", "true"})  # what Go's strconv.ParseBool takes for true, in lower case
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_LONGEST_QUOTE = 60  # characters of a value that a reason repeats


class RecordError(ValueError):
    """A record cannot be read; the message says why, for a log line."""


def valid_schemes(schemes: str | Iterable[str]) -> frozenset[str]:
    """The schemes, given as names or as one text with commas.

    Raises:
        ValueError: there is none, or one that is no URL scheme.
        TypeError: they are no texts.
    """
    names = schemes.split(",") if isinstance(schemes, str) else list(schemes)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"schemes must be texts such as http, not {name!r}")
        if not _SCHEME.fullmatch(name):
            raise ValueError(f"schemes must be URL schemes in lower case, such as http or https, not {name!r}")
    if not names:
        raise ValueError("schemes must name at least one, such as http")
    return frozenset(names)


def endpoint_at(text: Any, schemes: frozenset[str], **more: Any) -> Endpoint:
    """The endpoint at a URL or at plain `host:port`.

    `?isSecure=true` means the scheme's variant over TLS: Kratos wrote that until it wrote https. Keyword
    arguments are passed on to `Endpoint`.

    Raises:
        ValueError: it is neither, or the URL has another scheme, or something that would be ignored in silence:
            credentials, a path.
    """
    found = _endpoint_or_scheme(text, schemes, more)
    if isinstance(found, str):
        raise _other_scheme(found, schemes)
    return found


def endpoints_at(urls: Iterable[Any], schemes: frozenset[str], **more: Any) -> list[Endpoint]:
    """The endpoints at those of a server's URLs that have one of the schemes; else as `endpoint_at`."""
    found = (_endpoint_or_scheme(url, schemes, more) for url in urls)
    return [endpoint for endpoint in found if isinstance(endpoint, Endpoint)]


def expect_scheme(scheme: str, schemes: frozenset[str]) -> None:
    """Raise `ValueError` if the scheme is not wanted."""
    if scheme not in schemes:
        raise _other_scheme(scheme, schemes)


def _other_scheme(scheme: str, schemes: frozenset[str]) -> RecordError:
    return RecordError(f"scheme must be {' or '.join(sorted(schemes))}, not {_quoted(scheme)}")


def _endpoint_or_scheme(text: Any, schemes: frozenset[str], more: dict[str, Any]) -> Endpoint | str:
    """The endpoint, or the scheme if it is not wanted: common enough to be no exception."""
    if not isinstance(text, str):
        raise RecordError(f"an address must be a text, not {_quoted(text)}")
    if "@" in text:
        raise RecordError("an address must not have credentials")
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        host, port = split_host_port(scheme)
        return Endpoint(host=host, port=port, **more)
    rest, _, query = rest.partition("?")
    name, _, secure = query.partition("=")
    if name == "isSecure" and secure.lower() in _YES:
        scheme = _SECURED.get(scheme, scheme)
    if scheme not in schemes:
        return scheme
    rest = rest.removesuffix("/")
    if "/" in rest or "#" in rest or "&" in query or name not in ("", "isSecure"):
        raise RecordError("an endpoint URL must be scheme://host[:port] without a path, query or fragment")
    host, port = split_host_port(rest, default_port=_PORTS.get(scheme))
    return Endpoint(host=host, port=port, tls=scheme in _OVER_TLS, **more)


def registered_weight(value: Any, *, absent: float = 1.0) -> float:
    """The weight in a field that is there for weights; `absent` if it is None.

    Raises:
        ValueError: it is no number, negative, infinite, or NaN.
    """
    if value is None:
        return absent
    try:
        weight = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= sys.float_info.max:
        raise RecordError(f"weight must be a number, finite and not negative, not {_quoted(value)}")
    return weight


def registered_priority(value: Any, *, absent: int = 0) -> int:
    """The priority in a field that is there for priorities; `absent` if it is None.

    Raises:
        ValueError: it is no whole number.
    """
    if value is None:
        return absent
    if type(value) is not int:
        raise RecordError(f"priority must be a whole number, not {_quoted(value)}")
    return value


def suggested_weight(value: Any, *, absent: float = 1.0) -> tuple[float, tuple[Flaw, ...]]:
    """The weight in free-form metadata, and what is wrong with it.

    What is none counts as `absent`. A number that cannot be a weight is a flaw of the record; other text is
    somebody's own use of the word.
    """
    try:
        return registered_weight(value, absent=absent), ()
    except ValueError as error:
        return absent, (Flaw(f"{error}: it counts as {absent:g}"),) if _is_number(value) else ()


def priority_in(metadata: Mapping[str, Any]) -> int:
    """The priority in metadata: the whole number under `priority`, 0 if there is none."""
    value = metadata.get("priority")
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else 0
    return value if type(value) is int else 0


def suggested(metadata: Mapping[str, Any], *, weight: float = 1.0) -> tuple[dict[str, Any], tuple[Flaw, ...]]:
    """What free-form metadata says of weight, priority and zone, as arguments of `Endpoint`; and what is wrong.

    `weight` is the one of a record without.
    """
    found, flaws = suggested_weight(metadata.get("weight"), absent=weight)
    return {"weight": found, "priority": priority_in(metadata), "zone": zone_in(metadata)}, flaws


def texts(value: Any, what: str = "metadata") -> dict[str, str]:
    """A JSON object as metadata, its values as text; nothing, or Lua's empty list, is an empty one.

    Raises:
        ValueError: it is something else.
    """
    if not value:
        return {}
    if not isinstance(value, dict):
        raise RecordError(f"{what} must be an object, not {_quoted(value)}")
    return {
        clean(k): v if isinstance(v, str) and v.isascii() else _text(v) for k, v in value.items() if v is not None
    }


def objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A JSON list of objects; None is an empty one. Raises `ValueError` if it is something else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RecordError(f"{what} must be a list of objects, not {_quoted(value)}")
    return value


def zone_in(metadata: Mapping[str, Any]) -> str:
    """The zone in metadata: the text under `zone`, if there is one."""
    zone = metadata.get("zone")
    return clean(zone) if isinstance(zone, str) else ""


def clean(text: str) -> str:
    """Without lone surrogates: JSON may spell them, and they fail later, wherever the text is written out."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) is not None
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, int)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return clean(value)
    return str(value) if type(value) is int else json.dumps(value)


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
