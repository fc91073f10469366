"""`Settings`: how one client treats one service."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from lbclient.ejection import Ejection
from lbclient.health import HealthCheck
from lbclient.hedging import Hedge
from lbclient.limits import Limits, Throttle
from lbclient.options import above_zero, function, header_name, of_type
from lbclient.outcome import Classifier
from lbclient.retrying import Retry
from lbclient.routing import Routing, SlowStart

__all__ = ["PerService", "Settings", "for_each"]

# How to write what is probably meant.
_EXAMPLES = {
    "retry": "Retry(attempts=1) for no retries",
    "limits": "Limits(per_node=0) for no limit",
    "ejection": "Ejection(enforce=False) to take out no node",
}
_Option = TypeVar("_Option")
# An option for all services, or a mapping from the names of some of them; the others have the default.
PerService: TypeAlias = _Option | Mapping[str, _Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options that may differ from service to service; `BalancedSession` says what each is for."""

    routing: Routing | None = None
    slow_start: SlowStart | None = None
    attempt_timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    hedge: Hedge | None = None
    limits: Limits = field(default_factory=Limits)
    throttle: Throttle | None = None
    ejection: Ejection = field(default_factory=Ejection)
    health_check: HealthCheck | None = None
    classify: Classifier | None = None
    deadline_header: str | None = None
    # Whether requests may get headers that the caller has not set.
    adds_headers: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        of_type("routing", self.routing, Routing)
        of_type("slow_start", self.slow_start, SlowStart)
        of_type("hedge", self.hedge, Hedge)
        of_type("throttle", self.throttle, Throttle)
        of_type("health_check", self.health_check, HealthCheck)
        for name, cls in (("retry", Retry), ("limits", Limits), ("ejection", Ejection)):
            if not isinstance(getattr(self, name), cls):
                wrong = getattr(self, name)
                raise TypeError(f"{name} must be of type {cls.__name__}, not {wrong!r}; see {_EXAMPLES[name]}")
        if self.attempt_timeout is not None:
            above_zero("attempt_timeout", self.attempt_timeout)
        if self.classify is not None:
            kind = "of a response or an exception that returns an Outcome or None"
            function("classify", self.classify, kind)
            if inspect.iscoroutinefunction(self.classify):
                raise TypeError(f"classify must be a function {kind} at once, not {self.classify!r}")
        if self.deadline_header is not None:
            header_name("deadline_header", self.deadline_header)
        adds_headers = self.deadline_header is not None or self.retry.idempotency_key is not None
        object.__setattr__(self, "adds_headers", adds_headers)


def for_each(services: Collection[str], options: Mapping[str, Any]) -> dict[str, Settings]:
    """The settings of each service, where each option may be a mapping from some of their names.

    Options that are None have the default.

    Raises:
        ValueError, TypeError: for a wrong value, and for a mapping with a name that is no service.
    """
    for option, value in options.items():
        unknown = [name for name in value if name not in services] if isinstance(value, Mapping) else []
        if unknown:
            raise ValueError(f"{option} has {unknown[0]!r}, which is no service; there are {', '.join(services)}")
    return {name: _settings(name, options) for name in services}


def _settings(name: str, options: Mapping[str, Any]) -> Settings:
    chosen = {o: v.get(name) if isinstance(v, Mapping) else v for o, v in options.items()}
    try:
        return Settings(**{option: value for option, value in chosen.items() if value is not None})
    except (ValueError, TypeError) as error:
        error.add_note(f"for the service {name!r}")
        raise
