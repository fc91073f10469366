"""`Reason`: which rule took a node out."""

from __future__ import annotations

from enum import Enum

__all__ = ["Reason"]


class Reason(Enum):
    """Which rule of `Ejection` took a node out; the values are names in counters."""

    CONNECT_FAILURES = "connect_failures"
    FAILURES = "failures"
    GATEWAY_FAILURES = "gateway_failures"
    SUCCESS_RATE = "success_rate"
    FAILURE_RATE = "failure_rate"
    PROBE = "probe"
