"""Client-side load balancing for asyncio: a balancer inside aiohttp's `ClientSession`."""

from lbclient.ejection import Ejection
from lbclient.errors import (
    AttemptsFailed,
    LBError,
    LimitReached,
    NoEndpoints,
    ResponseCut,
    SessionClosing,
    Throttled,
)
from lbclient.health import HealthCheck
from lbclient.hedging import Hedge
from lbclient.limits import Limits, Throttle
from lbclient.load_reporter import LoadReporter
from lbclient.outcome import Outcome
from lbclient.policies import (
    LeastRequest,
    Maglev,
    Policy,
    PowerOfTwo,
    Prequal,
    Random,
    RingHash,
    RoundRobin,
    Sticky,
    WeightedRoundRobin,
    cookie,
    header,
    in_flight,
    least_request,
    path_part,
    peak_ewma,
)
from lbclient.retrying import Budget, Retry
from lbclient.routing import Routing, SlowStart, Subset
from lbclient.session import BalancedSession
from lbclient.transport import BalancingMiddleware
from lbclient.tried import attempts

__all__ = [
    "AttemptsFailed",
    "BalancedSession",
    "BalancingMiddleware",
    "Budget",
    "Ejection",
    "HealthCheck",
    "Hedge",
    "LBError",
    "LeastRequest",
    "LimitReached",
    "Limits",
    "LoadReporter",
    "Maglev",
    "NoEndpoints",
    "Outcome",
    "Policy",
    "PowerOfTwo",
    "Prequal",
    "Random",
    "ResponseCut",
    "Retry",
    "RingHash",
    "RoundRobin",
    "Routing",
    "SessionClosing",
    "SlowStart",
    "Sticky",
    "Subset",
    "Throttle",
    "Throttled",
    "WeightedRoundRobin",
    "attempts",
    "cookie",
    "header",
    "in_flight",
    "least_request",
    "path_part",
    "peak_ewma",
]
