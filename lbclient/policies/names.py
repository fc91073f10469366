"""What may be given as `policy=`: a name, a class, a function, or a policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from weakref import WeakValueDictionary

from lbclient.policies.least_request import LeastRequest
from lbclient.policies.loads import peak_ewma
from lbclient.policies.maglev import Maglev
from lbclient.policies.policy import Policy
from lbclient.policies.prequal import Prequal
from lbclient.policies.ring_hash import RingHash
from lbclient.policies.rotation import RoundRobin, WeightedRoundRobin
from lbclient.policies.sampling import PowerOfTwo, Random
from lbclient.policies.sticky import Sticky

__all__ = ["DEFAULT", "POLICIES", "PolicyOption", "policy_factories", "policy_factory"]

PolicyOption = str | Policy | Callable[[], Policy]

# The names that stand for policies at the command line and in configurations.
POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "weighted_round_robin": WeightedRoundRobin,
    "random": Random,
    "least_request": LeastRequest,
    "power_of_two": PowerOfTwo,
    "peak_ewma": partial(PowerOfTwo, load=peak_ewma),
    "ring_hash": RingHash,
    "maglev": Maglev,
    "sticky": Sticky,
    "prequal": Prequal,
}


# What `benchmarks/simulate.py` shows to be the best of those that need nothing from servers: see docs/policies.md.
DEFAULT = "peak_ewma"


# Policy objects that some service uses, by their ids: they need be neither hashable nor equal to themselves only.
_IN_USE: WeakValueDictionary[int, Policy] = WeakValueDictionary()


class _Copies:
    """The object itself for the first who ever asks; others must not share its position and tables: copies."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._pristine = copy.deepcopy(policy)

    def __call__(self) -> Policy:
        if id(self._policy) in _IN_USE:
            return copy.deepcopy(self._pristine)
        try:
            _IN_USE[id(self._policy)] = self._policy
        except TypeError:
            # With __slots__ and no place for weak references nobody can tell whether it is in use.
            return copy.deepcopy(self._pristine)
        return self._policy


def policy_factory(policy: PolicyOption) -> Callable[[], Policy]:
    """A function that makes a policy for each service and each group of its nodes.

    Raises:
        ValueError: for a name that stands for no policy.
        TypeError: for what is neither a policy nor makes one.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        return POLICIES[policy]
    if isinstance(policy, Policy) and not isinstance(policy, type):
        return _Copies(policy)
    if not callable(policy):
        raise TypeError(f"policy must be a policy, a function that makes one, or a name, not {policy!r}")
    made = policy()
    if isinstance(made, type) or not isinstance(made, Policy):
        raise TypeError(f"policy must have a method pick(nodes, call), {made!r} has none")
    return policy


def policy_factories(
    policy: PolicyOption | Mapping[str, PolicyOption], services: Collection[str]
) -> dict[str, Callable[[], Policy]]:
    """A factory for each service, where the policy may be a mapping from some of their names.

    Raises:
        ValueError, TypeError: as `policy_factory`, and for a name that is no service.
    """
    if not isinstance(policy, Mapping):
        return dict.fromkeys(services, policy_factory(policy))
    if unknown := [name for name in policy if name not in services]:
        raise ValueError(f"policy has {unknown[0]!r}, which is no service; there are {', '.join(services)}")
    return {name: policy_factory(policy.get(name, DEFAULT)) for name in services}
