"""`LoadReport`: how busy a server is, in one header.

The header is the one of ORCA (Open Request Cost Aggregation, gRPC A51 and envoy#6614), with two named metrics:

    endpoint-load-metrics: TEXT named_metrics.rif=3,named_metrics.latency=0.0123
    endpoint-load-metrics: JSON {"named_metrics": {"rif": 3, "latency": 0.0123}}
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

__all__ = ["HEADER", "LoadReport"]

HEADER = "endpoint-load-metrics"
_RIF = "named_metrics.rif"
_LATENCY = "named_metrics.latency"
# No server has more requests in flight, and none takes longer (seconds) for one: what says so is not believed.
_MOST = 1e6
_LONGEST = 3600.0
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)


class LoadReport(NamedTuple):
    """What a server says of itself.

    Attributes:
        rif: requests in flight there, of all clients.
        latency: seconds that a request takes with so many in flight; None if the server does not know.
    """

    rif: float
    latency: float | None = None

    def __str__(self) -> str:
        """The text form, as the header has it."""
        said = f"TEXT {_RIF}={self.rif:g}"
        return said if self.latency is None else f"{said},{_LATENCY}={self.latency:.6g}"

    @classmethod
    def parse(cls, header: str) -> LoadReport | None:
        """Read the text or the JSON form; None for a good report without `rif`. Other metrics are left aside.

        Raises:
            ValueError: for another form, for text or numbers that make no sense, and for numbers out of bounds.
        """
        form, _, content = header.strip().partition(" ")
        if form == "TEXT":
            metrics = _from_text(content)
        elif form == "JSON":
            metrics = _from_json(content)
        else:
            raise ValueError(f"a report begins with TEXT or JSON, unlike {header[:40]!r}")
        if _RIF not in metrics:
            return None
        rif = _bounded(_RIF, metrics[_RIF], _MOST)
        return cls(rif, _bounded(_LATENCY, metrics[_LATENCY], _LONGEST) if _LATENCY in metrics else None)


def _from_text(content: str) -> dict[str, object]:
    metrics: dict[str, object] = {}
    for pair in content.split(","):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair[:40]!r} is no name=value")
        value = value.strip()
        metrics[name.strip()] = float(value) if _NUMBER.fullmatch(value) else value
    return metrics


def _from_json(content: str) -> dict[str, object]:
    try:
        report = json.loads(content)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    named = report.get("named_metrics", {}) if isinstance(report, dict) else None
    if not isinstance(named, dict):
        raise ValueError(f"{content[:40]!r} is no object with named_metrics")  # noqa: TRY004 - a wrong value from outside
    return {f"named_metrics.{name}": value for name, value in named.items()}


def _bounded(name: str, value: object, most: float) -> float:
    # NaN is not within any bounds.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most:g}, not {str(value)[:40]!r}")
    return float(value)
