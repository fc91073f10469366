"""`SlowStart`: new nodes get their share bit by bit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SlowStart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart:
    """How a node that is new or comes back gets its share of the requests bit by bit (Envoy's formula).

    It holds for every policy: during its window a node takes at most `factor(age)` of its fair share of the
    requests, and the others take the rest. Where more than half of them are new, they take more than that: the
    older ones never get more than three times their share, and a set that is all new is not slowed at all. Neither
    are the nodes that are there from the beginning. Those that come back from an ejection, or are healthy again,
    are warmed up in any case: see `Ejection.slow_start`.

    Attributes:
        window: seconds until a node gets its whole share.
        floor: the least factor, 0 to 1 (Envoy: 10 %).
        aggression: above 0; 1 is a straight line, above 1 it rises faster in the beginning (Envoy: 1).
    """

    window: float = 30.0
    floor: float = 0.1
    aggression: float = 1.0

    def __post_init__(self) -> None:
        for name in ("window", "aggression"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0, not {value!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, (int, float)) or not 0 < self.floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, not {self.floor!r}")

    def factor(self, age: float) -> float:
        """The share of its requests that a node takes `age` seconds after it came."""
        if age >= self.window:
            return 1.0
        part: float = (max(age, 1.0) / self.window) ** (1.0 / self.aggression)
        return max(self.floor, part)
