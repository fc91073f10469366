"""Tables, the summary that a default policy is chosen from, and the bars, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, isinf, log
from typing import TypeVar

from simulation.candidates import BASELINE, CANDIDATES, default_name
from simulation.plan import Size
from simulation.results import Result, Row
from simulation.scenarios import SCENARIOS

__all__ = ["bars", "summary", "tables"]

T = TypeVar("T")

_LEGEND = """\
latencies in ms, with the deadline of 5 s for expired requests and without failed ones; errors: failed or expired;
slow, failing: share of all requests that these servers got (fair: what they would get by their number);
max/mean: load of the busiest server over the mean, averaged over the time; peak: the highest load seen at a server
(requests queued or worked on by 4 workers); conns: pairs of client and server that were used."""


def tables(results: Sequence[Result]) -> Iterable[str]:
    """A table for each scenario, size and phase."""
    yield _LEGEND
    for scenario, size, phase in _in_order((r.scenario, r.size, row.phase) for r in results for row in r.rows):
        rows = [
            (result, row)
            for result in results
            for row in result.rows
            if (result.scenario, result.size, row.phase) == (scenario, size, phase)
        ]
        fair = "".join(f", {name} servers: {share:.1%} of all" for name, share in rows[0][1].fair.items())
        title = f"{scenario}{' ' + phase if phase else ''}, {size}: {SCENARIOS[scenario].about}{fair}"
        yield _table(title, rows)


def _table(title: str, rows: Sequence[tuple[Result, Row]]) -> str:
    groups = list(rows[0][1].shares)
    heads = ["p50", "p99", "p99.9", "errors", *groups, "max/mean", "peak", "conns"]
    recovering = any(result.recovered_after is not None for result, _ in rows)
    lines = [title, _line("policy", [*heads, "half after"] if recovering else heads)]
    for result, row in rows:
        cells = [_ms(row.p50), _ms(row.p99), _ms(row.p999), _percent(row.errors)]
        cells += [_percent(row.shares[name]) for name in groups]
        cells += [f"{row.imbalance:.2f}", str(row.peak), str(row.connections)]
        if result.recovered_after is not None:
            cells.append(_seconds(result.recovered_after))
        lines.append(_line(result.policy, cells))
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """How each policy does over all scenarios beside the baseline."""
    lines = [
        f"over all tables that a policy is in: geometric mean of its ratios to {BASELINE}, and the worst of them",
        _line("policy", ["size", "tables", "p99 mean", "p99.9 mean", "p99 worst", "errors"]) + "   worst in",
    ]
    lines += [
        _summary_line(policy, size, compared)
        for size in _in_order(result.size for result in results)
        for policy in CANDIDATES
        if (compared := list(_compared(results, policy, size)))
    ]
    return "\n".join(lines)


def _summary_line(policy: str, size: Size, compared: Sequence[tuple[str, Row, Row]]) -> str:
    worst, where = max((row.p99 / base.p99, name) for name, row, base in compared)
    cells = [
        str(size),
        str(len(compared)),
        f"{_mean(row.p99 / base.p99 for _, row, base in compared):.2f}",
        f"{_mean(row.p999 / base.p999 for _, row, base in compared):.2f}",
        f"{worst:.2f}",
        _percent(sum(row.errors for _, row, _ in compared) / len(compared)),
    ]
    return f"{_line(policy, cells)}   {where}"


def _compared(results: Sequence[Result], policy: str, size: Size) -> Iterable[tuple[str, Row, Row]]:
    """The name of each phase of each scenario, with the rows of the policy and of the baseline."""
    baseline = {r.scenario: r for r in results if r.policy == BASELINE and r.size == size}
    for result in results:
        if (result.policy, result.size) == (policy, size) and result.scenario in baseline:
            for row, base in zip(result.rows, baseline[result.scenario].rows, strict=True):
                yield f"{result.scenario} {row.phase}".rstrip(), row, base


def bars(results: Sequence[Result]) -> Iterable[tuple[bool, str]]:
    """What the default policy has to reach, and whether it does; only for what was simulated."""
    default = default_name()
    found = {(r.scenario, r.size, r.policy): r for r in results}
    for size in _in_order(r.size for r in results):
        slow, base = found.get(("slow", size, default)), found.get(("slow", size, BASELINE))
        if slow and base:
            ratio = slow.rows[0].p99 / base.rows[0].p99
            yield ratio <= 0.5, f"slow {size}: p99 of {default} is {ratio:.2f} of {BASELINE}'s, at most 0.5"
            least = slow.rows[0].least["slow"]
            yield least > 0, f"slow {size}: each slow server gets at least {least:.1%} of the mean, above 0"
        if one := found.get(("one_failing", size, default)):
            share = one.rows[0].shares["failing"]
            yield (
                share < 0.01,
                f"one_failing {size}: it gets {share:.3%} of the requests from {default}, below 1 %",
            )
        if recovery := found.get(("recovery", size, default)):
            after = recovery.recovered_after or 0.0
            yield not isinf(after), f"recovery {size}: half of the fair share again after {_seconds(after)}"
    for result in results:
        if result.excess is not None:
            bound = CANDIDATES[result.policy].bound
            text = (
                f"{result.scenario} {result.size}: {result.policy} exceeds {bound} x mean by {result.excess:.2f}"
            )
            yield result.excess <= 1, f"{text} requests, at most 1"


def _line(name: str, cells: Iterable[str]) -> str:
    return f"  {name:22}" + "".join(f"{cell:>11}" for cell in cells)


def _in_order(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _mean(ratios: Iterable[float]) -> float:
    """The geometric mean: half and double cancel out."""
    logs = [log(ratio) for ratio in ratios]
    return exp(sum(logs) / len(logs))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def _seconds(seconds: float) -> str:
    return "never" if isinf(seconds) else f"{seconds:.1f} s"
