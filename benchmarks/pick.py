"""What a pick costs: every policy at 3, 100 and 10 000 nodes, and what it costs to take in 10 000, or one change.

Batches of all cases take turns, so that a machine that slows down slows down all of them; medians are printed, and
ratios to an empty method with the same arguments and to the same policy at 3 nodes. All times are CPU times. Run
it with `python benchmarks/pick.py`; `--help` has the options.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time

from discovery import Endpoint
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.policies import POLICIES, Policy

SIZES = (3, 100, 10_000)
BATCHES = 25
ROUNDS = 15
STARTS = 3
CHANGES = ("all arrive", "one arrives", "one leaves", "one weight changes")
NOW = 1000.0
EMPTY = "an empty method"
# A batch must not take longer, in seconds: a policy that looks at every node gets fewer picks.
LONGEST = 0.02


class Empty:
    """The least that a call costs."""

    def pick(self, nodes: tuple[Node, ...], _call: Call) -> Node:
        """Choose nothing."""
        return nodes[0]


def endpoints(size: int, *, equal: bool) -> list[Endpoint]:
    rng = random.Random(size)
    weights = (1.0 if equal else float(rng.randint(1, 10)) for _ in range(size))
    return [
        Endpoint(host=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", port=80, weight=w) for n, w in enumerate(weights)
    ]


def busy_nodes(size: int, *, equal: bool) -> tuple[Node, ...]:
    """Nodes that answered before and have a few requests under way."""
    rng = random.Random(size)
    nodes = tuple(map(Node, endpoints(size, equal=equal)))
    for node in nodes:
        node.learn(rng.uniform(0.005, 0.05), NOW - rng.random(), failed=False)
        node.in_flight = rng.randrange(4)
    return nodes


def batch(policy: Policy, nodes: tuple[Node, ...], calls: list[Call]) -> float:
    """CPU microseconds per pick."""
    pick = policy.pick
    began = time.process_time()
    for call in calls:
        pick(nodes, call)
    return (time.process_time() - began) / len(calls) * 1e6


def measure_picks(names: list[str], picks: int) -> dict[str, dict[str, float]]:
    """The median for each case, and what it is a multiple of."""
    calls = [Call(f"user-{n}", NOW) for n in range(picks // BATCHES)]
    cases: dict[tuple[str, bool, int], tuple[Policy, tuple[Node, ...], list[Call]]] = {}
    for equal, size in itertools.product((True, False), SIZES):
        nodes = busy_nodes(size, equal=equal)
        for call in calls:
            call.in_flight = sum(node.in_flight for node in nodes)
        for name in names:
            policy: Policy = Empty() if name == EMPTY else POLICIES[name]()
            batch(policy, nodes, calls[:1])  # its tables
            once = batch(policy, nodes, calls[:20]) / 1e6
            cases[name, equal, size] = policy, nodes, calls[: max(10, int(LONGEST / once))]
    spent: dict[tuple[str, bool, int], list[float]] = {case: [] for case in cases}
    for _, (case, parts) in itertools.product(range(BATCHES), cases.items()):
        spent[case].append(batch(*parts))
    medians = {case: statistics.median(times) for case, times in spent.items()}
    return {
        f"{name}, {'equal' if equal else 'unequal'} weights, {size}": {
            "us": round(cost, 3),
            "x_empty": round(cost / medians[EMPTY, equal, size], 1),
            "x_at_3": round(cost / medians[name, equal, SIZES[0]], 2),
        }
        for (name, equal, size), cost in medians.items()
    }


def measure_changes(name: str) -> dict[str, float]:
    """Milliseconds for `Balancer.update` and the first pick after it."""
    whole = endpoints(SIZES[-1], equal=False)
    place = len(whole) // 2
    other = Endpoint(host=whole[place].host, port=80, weight=77)
    without = whole[:place] + whole[place + 1 :]
    reweighted = [*whole[:place], other, *whole[place + 1 :]]
    scripts = (([], whole), (without, whole), (whole, without), (whole, reweighted))
    return {
        what: round(statistics.median(change(name, *script)), 1)
        for what, script in zip(CHANGES, scripts, strict=True)
    }


def change(name: str, before: list[Endpoint], after: list[Endpoint]) -> list[float]:
    """The same change again and again; from nothing, it is the start of a new balancer each time."""
    balancer = Balancer("bench", POLICIES[name])
    spent = []
    for _ in range(ROUNDS if before else STARTS):
        if before:
            balancer.update(before, NOW)
            balancer.pick(Call("user-1", NOW))
        else:
            balancer = Balancer("bench", POLICIES[name])
        began = time.process_time()
        balancer.update(after, NOW)
        balancer.pick(Call("user-1", NOW))
        spent.append((time.process_time() - began) * 1000)
    return spent


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picks", type=int, default=100_000, help="for each case")
    parser.add_argument("--policy", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    picks = measure_picks([EMPTY, *options.policy], max(options.picks, BATCHES))
    changes = {name: measure_changes(name) for name in options.policy}
    if options.json:
        print(json.dumps({"picks": picks, "changes": changes}, indent=2))
        return
    show(picks, changes)


def show(picks: dict[str, dict[str, float]], changes: dict[str, dict[str, float]]) -> None:
    print(f"{'one pick':48} {'µs':>9} {'x empty':>8} {'x at 3':>7}")
    for case, row in picks.items():
        by_design = case.startswith("least_request") and row["x_at_3"] > 2
        noted = "   looks at every node, by design" if by_design else ""
        print(f"{case:48} {row['us']:9} {row['x_empty']:8} {row['x_at_3']:7}{noted}")
    print(f"\n{'ms for 10 000 nodes':20}", *(f"{what:>18}" for what in CHANGES))
    for name, row in changes.items():
        print(f"{name:20}", *(f"{row[what]:18}" for what in CHANGES))


if __name__ == "__main__":
    main()
