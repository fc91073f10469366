"""`Retry-After`: the seconds that a server asks for before the next try."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["retry_after"]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds (RFC 9110, section 10.2.3); 0 if the answer names none, or none that can be read.

    A moment is compared with the answer's own `Date`, so that it matters little whose clock is wrong.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    until = _moment(value)
    if until is None:
        return 0.0
    return max(0.0, until - (_moment(headers.get("Date", "")) or time.time()))


def _moment(value: str) -> float | None:
    # What the function below makes of a lone number is no date.
    if not value[:3].isalpha():
        return None
    try:
        moment: datetime = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # One of the three formats has no zone; all of them are in Greenwich's time.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
