"""Compare the policies in simulations: clients and servers in virtual time, with the production balancer.

Each client has a balancer of its own. Requests arrive as a Poisson process and are tried once; servers with four
workers and a queue answer them. Prints a table for each scenario, a summary, and the bars that the default policy
has to reach. Run it with `make simulate`; the same seed gives the same output.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from simulation.candidates import CANDIDATES
from simulation.report import bars, summary, tables
from simulation.results import Result
from simulation.runs import REQUESTS, SIZES, Run, choose, plot_all, run_all
from simulation.scenarios import SCENARIOS

_QUICK = 10_000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    scenarios = "\n".join(f"  {name:22} {scenario.about}" for name, scenario in SCENARIOS.items())
    made = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"scenarios:\n{scenarios}\n\npolicies:\n  {' '.join(CANDIDATES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--scenario", nargs="+", metavar="NAME", choices=list(SCENARIOS), default=list(SCENARIOS))
    made.add_argument("--policy", nargs="+", metavar="NAME", choices=list(CANDIDATES), default=list(CANDIDATES))
    made.add_argument(
        "--size", nargs="+", choices=list(SIZES), default=list(SIZES), help="clients x servers; both by default"
    )
    made.add_argument("--seed", type=int, default=1)
    usual = ", ".join(f"{count} for {size}" for size, count in REQUESTS.items())
    made.add_argument(
        "--requests", type=_count, help=f"of each simulation, about; {usual}, more for some scenarios"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help=f"--requests {_QUICK}: too short for policies to learn, so bars may fail",
    )
    made.add_argument(
        "--jobs", type=_count, default=os.cpu_count() or 1, help="processes; one per core by default"
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON")
    made.add_argument("--out", type=Path, metavar="DIR", help="write plots into this folder (needs matplotlib)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, plot; 1 if a bar was not reached."""
    made = parser()
    options = made.parse_args(arguments)
    if options.out is not None and find_spec("matplotlib") is None:
        made.error("--out needs matplotlib: pip install --group simulation")
    requests = options.requests or (_QUICK if options.quick else None)
    runs = choose(options.scenario, options.size, options.policy, requests, options.seed)
    # However it is ended, no process is to be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = _simulated(runs, options.jobs)
        if options.out is not None:
            plot_all(results, options.out, options.jobs)
    except KeyboardInterrupt:
        # Once is enough: a second one would end in the middle of the tidying up.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("\ninterrupted", file=sys.stderr)
        return 130
    reached = list(bars(results))
    if options.json:
        told = [{"reached": good, "bar": text} for good, text in reached]
        print(json.dumps({"results": [result.as_dict() for result in results], "bars": told}, indent=1))
    else:
        _print(results, reached)
    return 0 if all(good for good, _ in reached) else 1


def _simulated(runs: Sequence[Run], jobs: int) -> list[Result]:
    """The results in the order of the runs; progress goes to stderr."""
    began = time.perf_counter()
    done: dict[Run, Result] = {}
    for run, result in run_all(runs, jobs):
        done[run] = result
        seconds = time.perf_counter() - began
        print(f"\r{len(done)} of {len(runs)}, {seconds:.0f} s, {run}\033[K", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [done[run] for run in runs]


def _print(results: Sequence[Result], reached: Iterable[tuple[bool, str]]) -> None:
    for table in tables(results):
        print(table, end="\n\n")
    print(summary(results), end="\n\n")
    for good, text in reached:
        print(f"{'pass' if good else 'FAIL'}  {text}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
