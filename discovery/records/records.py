"""`Records`: what was registered for one service as last seen, with the last good value of each record."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from discovery.endpoint import Endpoint

__all__ = ["Flaw", "Reader", "Records", "Weight"]

log = logging.getLogger(__name__)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Weight:
    """What a record may hold instead of endpoints: the weight of those in another record.

    Attributes:
        of: key of that other record, which may come later or never.
        value: finite and not negative.
    """

    of: str
    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= sys.float_info.max:
            raise ValueError(f"weight must be finite and not negative, not {self.value!r}")


@dataclass(frozen=True, slots=True)
class Flaw:
    """What a record may hold besides: something in it that could not be used, while the rest can.

    Attributes:
        why: for a log line.
    """

    why: str


Reader = Callable[[str, V], Iterable[Endpoint | Weight | Flaw]]
"""What is in a record, given key and value; any exception says why it cannot be read."""

_LONGEST_REASON = 300  # characters; a reason may quote a value, and a value may be megabytes
_STEP = 25  # records, parsed in 1 to 2 ms


class Records(Generic[V]):
    """The records of one service as last seen, and the endpoints in them.

    A caller may rely on: whatever a record contains, nothing is raised; a change costs the parsing of what
    changed and no more; `endpoints` is the same object as long as nothing changed. A record that cannot
    be read is skipped and logged once, until it was good in between; if it was good before, its last
    good content stays. A flaw is logged likewise. In which order records come makes no difference. Endpoints
    are neither sorted nor free of duplicates: the watcher does that.

    Args:
        read: what is in one record, given key and value; nothing at all is fine, any exception says why not.
        source: what log lines call the place the records come from.
    """

    def __init__(self, read: Reader[V], *, source: str = "") -> None:
        self._read = read
        self._source = source
        self._values: dict[str, V] = {}
        self._good: dict[str, tuple[Endpoint | Weight, ...]] = {}
        self._weights: dict[str, dict[str, float]] = {}  # key of endpoints -> key of a weight -> that weight
        self._shown: dict[str, tuple[Endpoint, ...]] = {}
        self._skipped: dict[str, str] = {}
        self._flawed: set[str] = set()
        self._endpoints: Sequence[Endpoint] | None = ()

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """All endpoints of all readable records; not to be modified."""
        if self._endpoints is None:
            self._endpoints = tuple(chain.from_iterable(self._shown.values()))
        return self._endpoints

    @property
    def skipped(self) -> Mapping[str, str]:
        """The keys of the records that cannot be read now, and why."""
        return MappingProxyType(self._skipped)

    def put(self, key: str, value: V) -> None:
        """Apply one new or changed record."""
        if key in self._values and _same(self._values[key], value):
            return
        self._values[key] = value
        try:
            found = tuple(self._read(key, value))
        except Exception as error:  # noqa: BLE001 - what others wrote may be broken in any way
            self._skip(key, error)
            return
        self._skipped.pop(key, None)
        self._apply(key, self._without_flaws(key, found))

    def delete(self, key: str) -> None:
        """Forget one record; an unknown key is fine."""
        self._values.pop(key, None)
        self._skipped.pop(key, None)
        self._flawed.discard(key)
        self._apply(key, ())

    def replace(self, records: Mapping[str, V]) -> None:
        """Make this the complete set of records; only the values that changed are parsed."""
        for _ in self.replacing(records):
            pass

    def replacing(self, records: Mapping[str, V]) -> Iterator[None]:
        """The same in steps of a few records each, between which the caller may do something else."""
        for number, key in enumerate(self._values.keys() - records.keys(), 1):
            self.delete(key)
            if not number % _STEP:
                yield
        for number, (key, value) in enumerate(records.items(), 1):
            self.put(key, value)
            if not number % _STEP:
                yield

    def copy(self) -> Records[V]:
        """An independent copy with the same memory of what was good and what was logged."""
        twin = Records(self._read, source=self._source)
        twin._values, twin._good, twin._skipped = self._values.copy(), self._good.copy(), self._skipped.copy()
        twin._flawed = self._flawed.copy()
        twin._shown, twin._weights = self._shown.copy(), {key: each.copy() for key, each in self._weights.items()}
        twin._endpoints = self.endpoints
        return twin

    def _without_flaws(
        self, key: str, found: tuple[Endpoint | Weight | Flaw, ...]
    ) -> tuple[Endpoint | Weight, ...]:
        """What can be used; flaws are logged, once until the record had none in between."""
        useful = tuple(each for each in found if not isinstance(each, Flaw))
        if len(useful) == len(found):
            self._flawed.discard(key)
        elif key not in self._flawed:
            self._flawed.add(key)
            why = next(each.why for each in found if isinstance(each, Flaw))
            self._log(key, " read in part", _printable(why))
        return useful

    def _apply(self, key: str, found: tuple[Endpoint | Weight, ...]) -> None:
        """Make this the good content of a record."""
        before = self._good.get(key, ())
        if found == before:
            return
        if found:
            self._good[key] = found
        else:
            del self._good[key]
        for weight in before:
            if isinstance(weight, Weight):
                self._weights.get(weight.of, {}).pop(key, None)
                self._show(weight.of)
        for weight in found:
            if isinstance(weight, Weight):
                self._weights.setdefault(weight.of, {})[key] = weight.value
                self._show(weight.of)
        self._show(key)

    def _show(self, key: str) -> None:
        """Make the endpoints of one record anew, with the weight that another one has for them."""
        found = tuple(each for each in self._good.get(key, ()) if isinstance(each, Endpoint))
        if weights := self._weights.get(key):
            # Two weights for one record make no sense; which one is taken must not depend on the order in time.
            weight = weights[min(weights)]
            found = tuple(replace(endpoint, weight=weight) for endpoint in found)
        elif weights is not None:
            del self._weights[key]
        if found == self._shown.get(key, ()):
            return
        self._endpoints = None
        if found:
            self._shown[key] = found
        else:
            del self._shown[key]

    def _skip(self, key: str, error: Exception) -> None:
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reason = _printable(reason)
        if key not in self._skipped:
            self._log(key, " skipped, its last good value stays" if self._good.get(key) else " skipped", reason)
        self._skipped[key] = reason

    def _log(self, key: str, what: str, why: str) -> None:
        where = f"{self._source}: " if self._source else ""
        log.warning("%srecord %a%s: %s", where, key, what, why)


def _printable(reason: str) -> str:
    # A value that is quoted must not be able to write log lines of its own.
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in reason)


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:  # JSON that is nested too deeply to be compared; reading it again says so
        return False
