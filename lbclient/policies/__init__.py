"""How to choose: policies pick one node of a tuple, loads say how busy a node is."""

from lbclient.policies.keys import Key, cookie, hashed, header, path_part
from lbclient.policies.least_request import LeastRequest
from lbclient.policies.loads import Load, in_flight, least_request, peak_ewma
from lbclient.policies.maglev import Maglev
from lbclient.policies.names import DEFAULT, POLICIES, PolicyOption, policy_factories, policy_factory
from lbclient.policies.policy import Policy
from lbclient.policies.prequal import Prequal
from lbclient.policies.ring_hash import RingHash
from lbclient.policies.rotation import RoundRobin, WeightedRoundRobin
from lbclient.policies.sampling import PowerOfTwo, Random
from lbclient.policies.sticky import Sticky

__all__ = [
    "DEFAULT",
    "POLICIES",
    "Key",
    "LeastRequest",
    "Load",
    "Maglev",
    "Policy",
    "PolicyOption",
    "PowerOfTwo",
    "Prequal",
    "Random",
    "RingHash",
    "RoundRobin",
    "Sticky",
    "WeightedRoundRobin",
    "cookie",
    "hashed",
    "header",
    "in_flight",
    "least_request",
    "path_part",
    "peak_ewma",
    "policy_factories",
    "policy_factory",
]
