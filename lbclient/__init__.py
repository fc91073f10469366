"""Client-side load balancing for asyncio: a balancer inside aiohttp's `ClientSession`."""

from lbclient.errors import AttemptsFailed, LBError, NoEndpoints
from lbclient.load_reporter import LoadReporter
from lbclient.outlier import Ejection
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
    "LoadReporter",
    "Maglev",
    "NoEndpoints",
    "Policy",
    "PowerOfTwo",
    "Prequal",
    "Random",
    "RingHash",
    "RoundRobin",
    "Routing",
    "SlowStart",
    "Sticky",
    "Subset",
    "WeightedRoundRobin",
    "attempts",
    "cookie",
    "header",
    "in_flight",
    "least_request",
    "path_part",
    "peak_ewma",
]
