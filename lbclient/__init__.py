"""Client-side load balancing for asyncio: a balancer inside aiohttp's `ClientSession`."""

from lbclient.errors import AttemptsFailed, LBError, NoEndpoints
from lbclient.outlier import Ejection
from lbclient.policies import (
    LeastRequest,
    Policy,
    PowerOfTwo,
    Random,
    RoundRobin,
    in_flight,
    least_request,
    peak_ewma,
)
from lbclient.routing import Routing, SlowStart, Subset
from lbclient.session import BalancedSession
from lbclient.transport import BalancingMiddleware, attempts

__all__ = [
    "AttemptsFailed",
    "BalancedSession",
    "BalancingMiddleware",
    "Ejection",
    "LBError",
    "LeastRequest",
    "NoEndpoints",
    "Policy",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "Routing",
    "SlowStart",
    "Subset",
    "attempts",
    "in_flight",
    "least_request",
    "peak_ewma",
]
