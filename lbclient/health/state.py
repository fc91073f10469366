"""`HealthState`: what the checks of one node add up to. Synchronous; it knows neither time nor sockets."""

from __future__ import annotations

from enum import Enum

from lbclient.health.health_check import HealthCheck

__all__ = ["HealthState", "Verdict"]


class Verdict(Enum):
    """What one check showed.

    | verdict | when | failures in a row | successes in a row | about to stop |
    |---|---|---|---|---|
    | OK | an expected status, or a connection | 0 | +1 | no |
    | FAILED | another status, no connection, silence, nonsense | +1 | 0 | as it was |
    | DRAINING | the node says that it is about to stop | 0 | 0 | yes |
    | UNKNOWN | it could not be made, for reasons of this process | as it was | as it was | as it was |
    """

    OK = "ok"
    FAILED = "failed"
    DRAINING = "draining"
    UNKNOWN = "unknown"


class HealthState:
    """The health of one node by its checks.

    Attributes:
        healthy: whether it is well.
        leaving: whether it said that it is about to stop.
        successes, failures: in a row, the last check included; one of them is 0.
    """

    __slots__ = ("_check", "_new", "failures", "healthy", "leaving", "successes")

    def __init__(self, check: HealthCheck) -> None:
        self._check = check
        # The first success of a node that waits for it suffices.
        self._new = check.mandatory
        self.healthy = not check.mandatory
        self.leaving = False
        self.successes = 0
        self.failures = 0

    def learn(self, verdict: Verdict) -> bool:
        """Take in a check; returns whether `healthy` or `leaving` changed."""
        before = self.healthy, self.leaving
        if verdict is Verdict.OK:
            self._succeed()
        elif verdict is Verdict.FAILED:
            self.successes = 0
            self.failures += 1
            if self.failures >= self._check.unhealthy_threshold:
                self.healthy = False
        elif verdict is Verdict.DRAINING:
            self.leaving = True
            self.successes = self.failures = 0
        return before != (self.healthy, self.leaving)

    def _succeed(self) -> None:
        self.leaving = False
        self.failures = 0
        self.successes += 1
        if self._new or self.successes >= self._check.healthy_threshold:
            self.healthy = True
        self._new = False
