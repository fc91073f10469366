"""Client-side load balancing for asyncio: a balancer inside aiohttp's `ClientSession`."""

from lbclient.errors import AttemptsFailed, LBError, NoEndpoints
from lbclient.load_reporter import LoadReporter
from lbclient.outlier import Ejection
from lbclient.policies import (
    LeastRequest,
    Policy,
    PowerOfTwo,
    Prequal,
    Random,
    RoundRobin,
    in_flight,
    least_request,
    peak_ewma,
)
from lbclient.routing import Routing, SlowStart
from lbclient.session import BalancedSession
from lbclient.transport import BalancingMiddleware, attempts

__all__ = [
    "AttemptsFailed",
    "BalancedSession",
    "BalancingMiddleware",
    "Ejection",
    "LBError",
    "LeastRequest",
    "LoadReporter",
    "NoEndpoints",
    "Policy",
    "PowerOfTwo",
    "Prequal",
    "Random",
    "RoundRobin",
    "Routing",
    "SlowStart",
    "attempts",
    "in_flight",
    "least_request",
    "peak_ewma",
]
