"""The laws that a simulation of queues has to obey, and that it says the same each time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from math import factorial, inf, isnan
from pathlib import Path

import pytest
import simulate as command
from simulation.candidates import BASELINE, CANDIDATES, default_name
from simulation.engine import Ending, Record
from simulation.engine import simulate as run_plan
from simulation.plan import Phase, Plan, ServerPlan, Size
from simulation.report import bars, summary, tables
from simulation.results import quantile
from simulation.runs import Run, choose, run
from simulation.scenarios import SCENARIOS, Setting

ROOT = Path(__file__).parents[2]
SMALL = Size(10, 20)


def queue(load: float, workers: int, seconds: float) -> Record:
    """One client and one server, exponential service times of 1 s on average, no network."""
    plan = Plan(
        seconds=seconds,
        clients=1,
        servers=(ServerPlan(workers=workers),),
        rates=((0.0, load * workers),),
        draw_work=lambda rng: rng.expovariate(1.0),
        delay=0.0,
        deadline=inf,
        phases=(Phase("", 0.0, seconds),),
    )
    return run_plan(plan, CANDIDATES[BASELINE].make, "queue")


def erlang_c(load: float, workers: int) -> float:
    """The share of the requests that have to wait (Erlang, 1917)."""
    offered = load * workers
    waiting = offered**workers / factorial(workers) / (1 - load)
    return waiting / (sum(offered**k / factorial(k) for k in range(workers)) + waiting)


@pytest.mark.parametrize(("load", "workers"), [(0.5, 1), (0.8, 1), (0.7, 4), (0.85, 4), (0.8, 10)])
def test_the_mean_time_in_a_queue_is_erlangs(load: float, workers: int) -> None:
    record = queue(load, workers, 60_000 / workers)
    mean = sum(record.latencies) / len(record.latencies)
    assert mean == pytest.approx(1 + erlang_c(load, workers) / (workers * (1 - load)), rel=0.05)


def test_the_tail_of_a_queue_with_one_worker_is_exponential() -> None:
    record = queue(0.5, 1, 60_000)
    # The time in an M/M/1 queue is exponential with a mean of 1 / (1 - load).
    assert quantile(sorted(record.latencies), 0.99) == pytest.approx(2 * 4.605, rel=0.05)


def test_load_is_rate_times_time_as_little_says() -> None:
    record = queue(0.7, 4, 20_000)
    loads = [load for _, (load,) in record.loads]
    rate = len(record.starts) / 20_000
    mean = sum(record.latencies) / len(record.latencies)
    assert sum(loads) / len(loads) == pytest.approx(rate * mean, rel=0.1)


def small(scenario: str, policy: str = "power_of_two", requests: int = 2_000) -> tuple[Plan, Record]:
    plan = SCENARIOS[scenario].plan(Setting(SMALL, requests, random.Random(1)))
    return plan, run_plan(plan, CANDIDATES[policy].make, scenario, draw_keys=CANDIDATES[policy].draw_keys)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_request_ends_exactly_once(scenario: str) -> None:
    plan, record = small(scenario)
    assert len(record.starts) == pytest.approx(2_000, rel=0.1)
    assert Ending.UNDER_WAY not in record.endings
    assert not any(map(isnan, record.latencies))
    # With room for what floating point does to a sum.
    assert max(record.latencies) <= plan.deadline + 1e-6


@pytest.mark.parametrize("policy", CANDIDATES)
def test_every_policy_can_be_simulated(policy: str) -> None:
    _, record = small("slow", policy)
    assert Counter(record.endings)[Ending.ANSWERED] > 0.8 * len(record.starts)


def test_a_request_goes_only_where_the_registry_sends_it() -> None:
    plan, record = small("flapping")
    since = [0.0, *(moment for moment, _ in plan.listings[1:])]
    for start, number in zip(record.starts, record.chosen, strict=True):
        current = max(n for n, moment in enumerate(since) if moment <= start)
        allowed = set(plan.listings[current][1])
        if start < since[current] + plan.lag and current:
            allowed |= set(plan.listings[current - 1][1])
        assert number in allowed


def test_an_expired_request_ends_at_its_deadline() -> None:
    plan, record = small("ramp", requests=20_000)
    expired = [t for t, e in zip(record.latencies, record.endings, strict=True) if e == Ending.EXPIRED]
    assert expired == [pytest.approx(plan.deadline)] * len(expired)
    assert expired


def test_failing_servers_fail_at_once_and_nothing_else_fails() -> None:
    plan, record = small("failing", BASELINE)
    ended = list(zip(record.chosen, record.latencies, record.endings, strict=True))
    assert {number for number, _, ending in ended if ending == Ending.FAILED} == plan.groups["failing"]
    assert max(latency for _, latency, ending in ended if ending == Ending.FAILED) < 0.01


def test_the_load_of_a_ramp_rises_as_it_says() -> None:
    plan, record = small("ramp", requests=20_000)
    counts = [sum(p.begin <= s < p.end for s in record.starts) for p in plan.phases]
    assert [c / counts[0] for c in counts] == [pytest.approx(float(p.label) / 0.75, rel=0.05) for p in plan.phases]


def test_slow_servers_are_slow_until_they_recover() -> None:
    plan, record = small("recovery", BASELINE, 20_000)
    slow: dict[bool, list[float]] = {False: [], True: []}
    for start, number, latency in zip(record.starts, record.chosen, record.latencies, strict=True):
        if number in plan.groups["slow"]:
            slow[start > plan.seconds * 0.75].append(latency)
    assert quantile(sorted(slow[False]), 0.5) > 5 * quantile(sorted(slow[True]), 0.5)


def test_policies_get_the_same_requests() -> None:
    assert small("slow", "round_robin")[1].starts == small("slow", "power_of_two")[1].starts


def output(seed: str) -> bytes:
    scenarios = ["--size", "100x100", "--scenario", "rolling_deploy", "antagonists"]
    policies = ["--policy", "least_request", "peak_ewma", "prequal"]
    command = [sys.executable, "benchmarks/simulate.py", *scenarios, *policies, "--requests", "1000", "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, env=environment)
    assert done.stdout, done.stderr
    return done.stdout


def test_fresh_processes_say_the_same_byte_by_byte() -> None:
    assert output("1") == output("2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_goes_on_after_an_interrupt(number: signal.Signals) -> None:
    command = [sys.executable, "benchmarks/simulate.py", "--requests", "1000000", "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--scenario", "ramp", "equal"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        # A group of its own: no process may be left in it.
        start_new_session=True,
    )
    try:
        wait_for_children(process.pid, 2)
        process.send_signal(number)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"interrupted\n")
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_children(pid: int, count: int) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + 20
    while len(children.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_seed_makes_a_difference() -> None:
    one, other = (run(Run("equal", SMALL, "random", 500, seed)) for seed in (1, 2))
    assert one.rows != other.rows


@pytest.mark.parametrize("option", ["--scenario", "--policy", "--size"])
def test_a_wrong_name_lists_the_known_ones(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([option, "nonsense"])
    known = {"--scenario": "slow", "--policy": "power_of_two", "--size": "10x1000"}
    assert known[option] in capsys.readouterr().err


def test_tables_name_every_policy_and_bars_are_judged() -> None:
    runs = choose(["slow", "one_failing"], ["100x100"], [BASELINE, default_name()], 2_000, 1)
    results = [run(r) for r in runs]
    text = "\n".join([*tables(results), summary(results)])
    assert text.count(f"  {default_name()} ") == 3
    assert len(list(bars(results))) == 3


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--scenario", "equal", "--policy", "random", "--size", "100x100", "--quick", "--json"])
    assert json.loads(capsys.readouterr().out)["results"][0]["policy"] == "random"
