"""PNG plots of results: the tail of the latency, and how the load was spread over the servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from simulation.candidates import CANDIDATES
from simulation.results import Result, Row
from simulation.scenarios import SCENARIOS

__all__ = ["plot_scenario"]

_COLOURS = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
# The strong colours first, then their pale sisters.
_ORDER = [*range(0, 20, 2), *range(1, 20, 2)]
_COLOUR = {name: _COLOURS[_ORDER[number % 20]] for number, name in enumerate(CANDIDATES)}
_COLUMNS = 3
# Without it, the version of matplotlib would be in every file.
_METADATA = {"Software": None}


def plot_scenario(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the plots of all policies in one scenario of one size; returns the files."""
    scenario, size = results[0].scenario, results[0].size
    title = f"{scenario}, {size.clients} clients, {size.servers} servers\n{SCENARIOS[scenario].about}"
    figures = {"latency": _latency(results, title), "load": _load(results, title)}
    paths = []
    for kind, figure in figures.items():
        paths.append(folder / f"{scenario}-{size}-{kind}.png")
        figure.savefig(paths[-1], dpi=110, metadata=_METADATA)
    return paths


def _latency(results: Sequence[Result], title: str) -> Figure:
    """The share of the requests that took longer, over the latency; a panel for each phase."""
    phases = len(results[0].rows)
    columns = min(phases, _COLUMNS)
    lines = -(-phases // columns)
    figure = Figure(figsize=(2.6 + max(5.2, 3.6 * columns), 0.9 + max(4.2, 2.9 * lines)), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for number, axes in enumerate(panels.flat):
        if number >= phases:
            axes.set_visible(False)
            continue
        for result in results:
            _tail(axes, result.policy, result.rows[number])
        _latency_axes(axes, results[0].rows[number].phase, wide=columns == 1)
    _name_times(panels, phases, "latency")
    for axes in panels[:, 0]:
        axes.set_ylabel("share of requests that took longer")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _tail(axes: Axes, policy: str, row: Row) -> None:
    axes.plot(
        [latency for latency, _ in row.tail],
        [left for _, left in row.tail],
        color=_COLOUR[policy],
        # Those that hash are a group of their own.
        linestyle="dashed" if CANDIDATES[policy].draw_keys else "solid",
        linewidth=1.6,
        label=policy,
    )


def _latency_axes(axes: Axes, phase: str, *, wide: bool) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left=0.02, right=6)
    axes.set_ylim(1e-4, 1)
    axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5] if wide else [0.02, 0.1, 0.5, 2])
    axes.xaxis.set_major_formatter(FuncFormatter(_duration))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([1, 0.5, 0.1, 0.01, 0.001, 0.0001], ["all", "p50", "p90", "p99", "p99.9", "p99.99"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, linewidth=0.4, alpha=0.6)
    axes.tick_params(labelsize=8)
    if phase:
        axes.set_title(phase, fontsize=9)


def _load(results: Sequence[Result], title: str) -> Figure:
    """The spread of the load over the servers as time goes by; a panel for each policy."""
    columns = min(len(results), _COLUMNS)
    lines = -(-len(results) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 1.2 + 2.1 * lines), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for number, axes in enumerate(panels.flat):
        if number >= len(results):
            axes.set_visible(False)
            continue
        _band(axes, results[number])
    _name_times(panels, len(results), "time in s")
    for axes in panels[:, 0]:
        axes.set_ylabel("requests", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _band(axes: Axes, result: Result) -> None:
    times = [band.at for band in result.bands]
    colour: Any = _COLOUR[result.policy]
    low, high = [band.low for band in result.bands], [band.high for band in result.bands]
    axes.fill_between(times, low, high, color=colour, alpha=0.3, linewidth=0, label="5 % to 95 % of the servers")
    axes.plot(times, [band.median for band in result.bands], color=colour, linewidth=1.4, label="median server")
    most = [band.most for band in result.bands]
    axes.plot(times, most, color="0.35", linewidth=0.7, label="busiest server")
    axes.set_title(result.policy, fontsize=9)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True, linewidth=0.4, alpha=0.6)
    axes.tick_params(labelsize=8)


def _name_times(panels: Any, count: int, name: str) -> None:
    """Label the lowest panel of each column; the last line may not be full."""
    shown = panels.flat[:count]
    for axes in shown[-panels.shape[1] :]:
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelbottom=True)


def _duration(seconds: float, _: object) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
