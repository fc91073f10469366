"""`Where`: which endpoints match a filter on what is known about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from discovery import Endpoint

__all__ = ["Condition", "Where"]

log = logging.getLogger(__name__)

Condition = Mapping[str, str | Collection[str]] | Callable[[Endpoint], bool]

_EXPECTED = "metadata such as {'version': 'v2'} or {'version': ['v1', 'v2']}, or a function of an endpoint"


class Where:
    """Selects the endpoints that meet a condition.

    Args:
        condition: metadata that an endpoint must have, each with one text or with several of which one must be
            there; or a function of the endpoint. One that raises for an endpoint does not match it, which is
            logged the first time.

    Raises:
        TypeError: it is neither.
        ValueError: no value is allowed for some metadata.
    """

    def __init__(self, condition: Condition) -> None:
        if isinstance(condition, Mapping):
            self._matches = _has({name: _allowed(name, value) for name, value in condition.items()})
        elif callable(condition):
            self._matches = condition
        else:
            raise TypeError(f"where must be {_EXPECTED}, not {condition!r}")
        self._has_failed = False

    def select(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """Those that match, in the same order."""
        try:
            return tuple(filter(self._matches, endpoints))
        except Exception:  # noqa: BLE001 - it is somebody else's function; which endpoint it was comes out below
            return tuple(filter(self._matches_without_error, endpoints))

    def _matches_without_error(self, endpoint: Endpoint) -> bool:
        try:
            return bool(self._matches(endpoint))
        except Exception:
            if not self._has_failed:
                said = "where=%r fails for %r, which does not match then"
                log.warning(said, self._matches, endpoint, exc_info=True)
            self._has_failed = True
            return False


def _has(wanted: Mapping[str, frozenset[str]]) -> Callable[[Endpoint], bool]:
    def matches(endpoint: Endpoint) -> bool:
        metadata = endpoint.metadata
        for name, allowed in wanted.items():  # noqa: SIM110 - all() takes twice as long, for thousands at every change
            if metadata.get(name) not in allowed:
                return False
        return True

    return matches


def _allowed(name: object, value: object) -> frozenset[str]:
    if not isinstance(name, str):
        raise TypeError(f"where must be {_EXPECTED}; {name!r} is no name of metadata")
    allowed = [value] if isinstance(value, str) else value
    if not isinstance(allowed, Collection) or not all(isinstance(each, str) for each in allowed):
        raise TypeError(f"where must be {_EXPECTED}; for {name} it cannot be {value!r}: metadata are texts")
    if not allowed:
        raise ValueError(f"where must allow at least one value for {name}, not {value!r}")
    return frozenset(allowed)
