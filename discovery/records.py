"""What others registered -> `Endpoint`s: a table of formats, and `Records`, which applies changes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from discovery.endpoint import Endpoint

__all__ = ["FORMATS", "Format", "Records", "reader"]

log = logging.getLogger(__name__)

V = TypeVar("V")
Reader = Callable[[str, V], Iterable[Endpoint]]

_LONGEST_REASON = 300  # characters; a reason may quote a value, and a value may be megabytes


class Records(Generic[V]):
    """The records of one service as last seen, and the endpoints in them.

    A caller may rely on: whatever a record contains, nothing is raised; a change costs the parsing of what
    changed and no more; `endpoints` is the same object as long as nothing changed. A record that cannot
    be read is skipped and logged once, until it was good in between; if it was good before, its last
    good endpoints stay. Endpoints are neither sorted nor free of duplicates: the watcher does that.

    Args:
        read: endpoints in one record, given key and value; none at all is fine, any exception says why not.
        source: what log lines call the place the records come from.
    """

    def __init__(self, read: Reader[V], *, source: str = "") -> None:
        self._read = read
        self._source = source
        self._values: dict[str, V] = {}
        self._good: dict[str, tuple[Endpoint, ...]] = {}
        self._skipped: dict[str, str] = {}
        self._endpoints: Sequence[Endpoint] | None = ()

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """All endpoints of all readable records; not to be modified."""
        if self._endpoints is None:
            self._endpoints = tuple(endpoint for found in self._good.values() for endpoint in found)
        return self._endpoints

    @property
    def skipped(self) -> Mapping[str, str]:
        """The keys of the records that cannot be read now, and why."""
        return MappingProxyType(self._skipped)

    def put(self, key: str, value: V) -> None:
        """Apply one new or changed record."""
        if key in self._values and self._values[key] == value:
            return
        self._values[key] = value
        try:
            found = tuple(self._read(key, value))
        except Exception as error:  # noqa: BLE001 - what others wrote may be broken in any way
            self._skip(key, error)
            return
        self._skipped.pop(key, None)
        if found != self._good.get(key, ()):
            self._good[key] = found
            self._endpoints = None

    def delete(self, key: str) -> None:
        """Forget one record; an unknown key is fine."""
        self._values.pop(key, None)
        self._skipped.pop(key, None)
        if self._good.pop(key, ()):
            self._endpoints = None

    def replace(self, records: Mapping[str, V]) -> None:
        """Make this the complete set of records; only the values that changed are parsed."""
        for key in self._values.keys() - records.keys():
            self.delete(key)
        for key, value in records.items():
            self.put(key, value)

    def copy(self) -> Records[V]:
        """An independent copy with the same memory of what was good and what was logged."""
        twin = Records(self._read, source=self._source)
        twin._values, twin._good, twin._skipped = self._values.copy(), self._good.copy(), self._skipped.copy()
        twin._endpoints = self.endpoints
        return twin

    def _skip(self, key: str, error: Exception) -> None:
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        # A value that is quoted must not be able to write log lines of its own.
        reason = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in reason)
        if key not in self._skipped:
            kept = ", its last good value stays" if self._good.get(key) else ""
            where = f"{self._source}: " if self._source else ""
            log.warning("%srecord %a skipped%s: %s", where, key, kept, reason)
        self._skipped[key] = reason


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which others write down a server.

    A record's value reaches both functions as a dict if it is a JSON object, else as stripped text, never empty.

    Attributes:
        fits: whether a record, given key and value, looks like this format; asked for `records="auto"` only.
        parse: the endpoints in a record; `ValueError` says why it cannot be read.
    """

    fits: Callable[[str, Any], bool]
    parse: Callable[[str, Any], Iterable[Endpoint]]


def reader(name: str = "auto") -> Reader[bytes]:
    """The function that reads records of the named format, or of any format for `auto`.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name == "auto":
        return _read_any
    if name not in FORMATS:
        raise ValueError(f"records must be one of auto, {', '.join(FORMATS)}, not {name!r}")
    parse = FORMATS[name].parse

    def read(key: str, value: bytes) -> Iterable[Endpoint]:
        # An empty value is a placeholder: some writers create the "directory" that way.
        return parse(key, _decoded(value)) if value.strip() else ()

    return read


def _read_any(key: str, value: bytes) -> Iterable[Endpoint]:
    if not value.strip():
        return ()
    record = _decoded(value)
    for known in FORMATS.values():
        if known.fits(key, record):
            return known.parse(key, record)
    raise ValueError(f"looks like none of the known formats ({', '.join(FORMATS)})")


def _decoded(value: bytes) -> Any:
    text = value.decode().strip()
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("broken JSON: nested too deeply") from error


def _parse_address(key: str, record: Any) -> Iterable[Endpoint]:
    if not isinstance(record, str):
        raise ValueError("expected host:port or a URL, got a JSON object")  # noqa: TRY004 - one type for bad records
    return (Endpoint.parse(record, id=key),)


def _parse_etcd_naming(key: str, record: Any) -> Iterable[Endpoint]:
    """`Update` of go.etcd.io/etcd/client/v3/naming: Op (0 add, 1 delete), Addr, Metadata of any kind."""
    if not isinstance(record, dict):
        raise ValueError('expected {"Op": 0, "Addr": "host:port"}, got plain text')  # noqa: TRY004 - as above
    operation, address, metadata = record.get("Op", 0), record.get("Addr"), record.get("Metadata")
    if operation == 1:
        return ()
    if operation not in (0, None):
        raise ValueError(f"Op must be 0 (add) or 1 (delete), not {operation!r}")
    if not isinstance(address, str):
        raise ValueError(f"Addr must be a string host:port, not {address!r}")  # noqa: TRY004 - as above
    more: dict[str, Any] = {}
    if isinstance(metadata, dict):
        more = {"metadata": {_clean(k): _text(v) for k, v in metadata.items() if v is not None}}
        more["weight"] = _weight(metadata.get("weight"))
        zone = metadata.get("zone")
        more["zone"] = _clean(zone) if isinstance(zone, str) else ""
        if metadata.get("tls") is True and "://" not in address:
            more["tls"] = True
    elif metadata is not None:
        more = {"metadata": {"Metadata": _text(metadata)}}
    return (Endpoint.parse(address, id=key, **more),)


def _weight(value: object) -> float:
    """The weight if it is one; metadata is free-form, so anything else is somebody's own use of the word."""
    try:
        weight = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 1.0
    except (ValueError, OverflowError):
        return 1.0
    return weight if math.isfinite(weight) and weight >= 0 else 1.0


def _text(value: Any) -> str:
    return _clean(value) if isinstance(value, str) else json.dumps(value)


def _clean(text: str) -> str:
    """Without lone surrogates: JSON may spell them, and they fail later, wherever the text is written out."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "address": Format(fits=lambda _, record: isinstance(record, str), parse=_parse_address),
        "etcd": Format(
            fits=lambda _, record: isinstance(record, dict) and "Addr" in record,
            parse=_parse_etcd_naming,
        ),
    }
)
"""In the order in which `auto` tries them."""
