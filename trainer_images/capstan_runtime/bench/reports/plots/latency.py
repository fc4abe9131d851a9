"""Distributions of single samples, with the rare slow ones in sight: the axis of percentiles is logarithmic."""

import re

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from capstan_runtime.bench import words
from capstan_runtime.bench.reports.plots.axes import MOST_LINES, add_legend, finite, set_quantity, thinned
from capstan_runtime.bench.reports.plots.svg import LINES, SERIES, Plot, draw
from capstan_runtime.bench.result import QUANTILE_PERCENTS, BenchmarkResult, Distribution

MOST_METRICS = 3
_TICKS = {0.0: "0 %", 50.0: "50 %", 75.0: "75 %", 90.0: "90 %", 99.0: "99 %", 99.9: "99.9 %"}


def distributions(result: BenchmarkResult) -> list[Plot]:
    """One plot for each metric; a line for each case."""
    grouped: dict[str, list[Distribution]] = {}
    for one in result.distributions:
        if len(one.quantiles) == len(QUANTILE_PERCENTS) and one.count > 1:
            grouped.setdefault(one.metric, []).append(one)
    return [_distribution(metric, of_metric) for metric, of_metric in list(grouped.items())[:MOST_METRICS]]


def _distribution(metric: str, every: list[Distribution]) -> Plot:
    shown = [every[int(at)] for at in thinned(list(range(len(every))), MOST_LINES)]
    last = QUANTILE_PERCENTS.index(99.9) + 1

    def paint(axes: Axes) -> None:
        for number, one in enumerate(shown):
            axes.plot(
                [_place(percent) for percent in QUANTILE_PERCENTS[:last]],
                one.quantiles[:last],
                color=SERIES[number],
                linestyle=LINES[number],
                label=words.shortened(words.one_line(words.case(one.labels)), 30) or "all",
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([_place(percent) for percent in _TICKS]))
        axes.xaxis.set_major_formatter(FixedFormatter(list(_TICKS.values())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("share of samples that took at most that long")
        set_quantity(axes, finite(value for one in shown for value in one.quantiles[:last]), shown[0].unit)
        add_legend(axes, len(shown))

    said = "Of all samples of all runs, up to 99.9 %; the slowest are to the right."
    if len(shown) < len(every):
        said += f" {len(shown)} of {len(every)} cases; the table has all."
    title = f"{words.title(re.sub('_p[0-9]+(?=_)', '', metric))}, distribution"
    return draw(f"distribution-{metric}", title, said, paint)


def _place(percent: float) -> float:
    """1 at 0 %, 10 at 90 %, 1000 at 99.9 %."""
    return 100 / (100 - percent)
