"""`Finding`: a node that should be out, and which rule says so."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from lbclient.node import Node

__all__ = ["Finding", "Reason"]


class Reason(Enum):
    """Which rule of `Ejection` it is; the values are names in counters."""

    CONNECT_FAILURES = "connect_failures"
    FAILURES = "failures"
    GATEWAY_FAILURES = "gateway_failures"
    SUCCESS_RATE = "success_rate"
    FAILURE_RATE = "failure_rate"
    PROBE = "probe"


class Finding(NamedTuple):
    """A node that should be out, and why, with the numbers in words."""

    node: Node
    reason: Reason
    because: str
