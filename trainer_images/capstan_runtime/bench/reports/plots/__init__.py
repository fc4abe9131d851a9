"""The plots of a report, chosen by what there is to show."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

from capstan_runtime.bench.reports.plots.bars import bars, runs_of
from capstan_runtime.bench.reports.plots.collectives import collectives
from capstan_runtime.bench.reports.plots.effects import effects
from capstan_runtime.bench.reports.plots.latency import distributions
from capstan_runtime.bench.reports.plots.law import law_plots
from capstan_runtime.bench.reports.plots.roofline import roofline
from capstan_runtime.bench.reports.plots.scaling import scaling
from capstan_runtime.bench.reports.plots.svg import Plot
from capstan_runtime.bench.reports.plots.sweeps import MOST_SWEEPS, ladder, sweep
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract.benchmark import Figure

_DRAWN_ELSEWHERE = {
    "scaling": ("speedup", "efficiency"),
    "collectives": ("bus_bandwidth_bytes_per_second", "seconds", "algorithm_bandwidth_bytes_per_second"),
    "serving": (
        "requests_per_second",
        "goodput_requests_per_second",
        "generator_lag_p99_seconds",
        "generator_cpu_ratio",
    ),
}
"""Metrics of a workload that have plots of their own, or need none."""


def plots_of(result: BenchmarkResult) -> dict[str, list[Plot]]:
    """By the key of the section they belong to."""
    made = {
        "comparison": _drawn(lambda: [effects(result)]),
        "scaling": _drawn(lambda: scaling(result)),
        "roofline": _drawn(lambda: [roofline(result)]),
        "law": _drawn(lambda: law_plots(result)),
        "collectives": _drawn(lambda: collectives(result)) if result.workload == "collectives" else [],
        "figures": [*(_drawn(lambda: ladder(result)) if result.workload == "serving" else []), *_figures(result)],
        "latency": _drawn(lambda: distributions(result)),
    }
    return made


def _drawn(make: Callable[[], Sequence[Plot | None]]) -> list[Plot]:
    """Without those whose numbers no axis can hold: tables have them, and what was measured for hours is not lost to a
    picture."""
    try:
        return [plot for plot in make() if plot is not None]
    except (ArithmeticError, ValueError) as error:
        print(f"a plot is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return []


def _figures(result: BenchmarkResult) -> list[Plot]:
    """Each metric over what was varied, else as bars, else run by run; headlines first."""
    if result.law is not None or result.roofs:
        return []
    plots: list[Plot] = []
    for metric in dict.fromkeys(figure.metric for figure in result.figures):
        if metric in _DRAWN_ELSEWHERE.get(result.workload, ()) or len(plots) == MOST_SWEEPS:
            continue
        if result.workload == "serving" and metric.startswith(("latency_", "error_")):
            continue
        first = next(one for one in result.figures if one.metric == metric)
        if first.better == "neither" and not first.is_headline:
            continue
        plots += _drawn(partial(_figure, result, first))
    return plots


def _figure(result: BenchmarkResult, first: Figure) -> list[Plot | None]:
    metric = first.metric
    return [sweep(result, metric) or bars(result, metric) or (runs_of(result, first) if first.is_headline else None)]
