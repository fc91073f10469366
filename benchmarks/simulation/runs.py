"""Simulations of all combinations that were asked for, in several processes."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

from lbclient.policies import Policy
from simulation.candidates import CANDIDATES, BoundWatch
from simulation.engine import simulate
from simulation.plan import Size
from simulation.results import Result, bands_of, recovered_after, rows_of
from simulation.scenarios import SCENARIOS, Setting

__all__ = ["REQUESTS", "SIZES", "Run", "choose", "plot_all", "run", "run_all"]

# Requests of a simulation of the usual length, by its size.
REQUESTS = {Size(100, 100): 100_000, Size(10, 1_000): 80_000}
SIZES = {str(size): size for size in REQUESTS}


class Run(NamedTuple):
    """One simulation; all that it depends on."""

    scenario: str
    size: Size
    policy: str
    requests: int
    seed: int

    def __str__(self) -> str:
        return f"{self.scenario} {self.size} {self.policy}"


def choose(
    scenarios: Sequence[str], sizes: Sequence[str], policies: Sequence[str], requests: int | None, seed: int
) -> list[Run]:
    """The runs of all combinations that make sense, in the order of the tables.

    `requests` is the number for scenarios of the usual length; None for that of the size.
    """
    return [
        Run(name, size, policy, int((requests or REQUESTS[size]) * SCENARIOS[name].length), seed)
        for name in scenarios
        for size in map(SIZES.__getitem__, sizes)
        if size.servers in (SCENARIOS[name].sizes or (size.servers,))
        for policy in policies
        if CANDIDATES[policy].simulated(name, size)
    ]


def run(asked: Run) -> Result:
    """Simulate."""
    seed = f"{asked.seed} {asked.scenario} {asked.size}"
    candidate = CANDIDATES[asked.policy]
    plan = SCENARIOS[asked.scenario].plan(Setting(asked.size, asked.requests, random.Random(seed)))
    watches: list[BoundWatch] = []

    def make_policy(rng: random.Random) -> Policy:
        policy = candidate.make(rng)
        if candidate.bound is None:
            return policy
        watches.append(BoundWatch(policy, candidate.bound))
        return watches[-1]

    record = simulate(plan, make_policy, seed, draw_keys=candidate.draw_keys, reports=candidate.reports)
    return Result(
        scenario=asked.scenario,
        size=asked.size,
        policy=asked.policy,
        rows=rows_of(plan, record),
        bands=bands_of(record),
        recovered_after=recovered_after(plan, record),
        excess=max((watch.excess for watch in watches), default=None),
    )


def run_all(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Result]]:
    """The results as they come."""
    with _processes(jobs) as executor:
        # The longest ones first, so that no process works alone in the end.
        futures = {executor.submit(run, r): r for r in sorted(runs, key=lambda r: -r.requests)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def plot_all(results: Sequence[Result], folder: Path, jobs: int) -> None:
    """Plots of every scenario in every size."""
    from simulation.plots import plot_scenario  # noqa: PLC0415 - only plots need matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[tuple[str, Size], list[Result]] = {}
    for result in results:
        shown.setdefault((result.scenario, result.size), []).append(result)
    with _processes(jobs) as executor:
        futures = [executor.submit(plot_scenario, group, folder) for group in shown.values()]
        for future in futures:
            future.result()


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once, whatever they do, if this one is interrupted."""
    with ProcessPoolExecutor(jobs, initializer=_obey) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.kill()  # one that has not begun to obey would tell of the signal
            raise


def _obey() -> None:
    # Ctrl-C reaches all processes of a terminal, but ending the others is the first one's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork has the handlers of the first one, and an exception would only be the result of its run.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
