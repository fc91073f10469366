"""`Retry-After`: the seconds that a server asks for before the next try."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["retry_after"]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds (RFC 9110, section 10.2.3); 0 if the answer has none that can be read."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdecimal() else 0.0
