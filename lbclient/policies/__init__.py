"""How to choose: policies pick one node of a tuple, loads say how busy a node is."""

from lbclient.policies.least_request import LeastRequest
from lbclient.policies.loads import Load, in_flight, least_request, peak_ewma
from lbclient.policies.names import POLICIES, PolicyOption, policy_factory
from lbclient.policies.policy import Policy
from lbclient.policies.prequal import Prequal
from lbclient.policies.rotation import RoundRobin
from lbclient.policies.sampling import PowerOfTwo, Random

__all__ = [
    "POLICIES",
    "LeastRequest",
    "Load",
    "Policy",
    "PolicyOption",
    "PowerOfTwo",
    "Prequal",
    "Random",
    "RoundRobin",
    "in_flight",
    "least_request",
    "peak_ewma",
    "policy_factory",
]
