"""Distributions of single samples, with the rare slow ones in sight: the axis of percentiles is logarithmic."""

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from capstan_runtime.bench.reports.plots.axes import MOST_LINES, add_legend, finite, set_quantity, thinned
from capstan_runtime.bench.reports.plots.svg import LINES, SERIES, Plot, draw
from capstan_runtime.bench.reports.sections import distribution_name
from capstan_runtime.bench.result import QUANTILE_PERCENTS, BenchmarkResult, Distribution
from capstan_runtime.contract import words

MOST_METRICS = 3
FEWEST_SAMPLES = 20
"""A distribution of fewer has no shape to look at."""
_TICKS = {0.0: "0 %", 50.0: "50 %", 75.0: "75 %", 90.0: "90 %", 99.0: "99 %", 99.9: "99.9 %"}


def distributions(result: BenchmarkResult) -> list[Plot]:
    """One plot for each metric; a line for each case."""
    grouped: dict[str, list[Distribution]] = {}
    for one in result.distributions:
        if len(one.quantiles) == len(QUANTILE_PERCENTS) and one.count >= FEWEST_SAMPLES:
            grouped.setdefault(one.metric, []).append(one)
    return [_distribution(metric, of_metric) for metric, of_metric in list(grouped.items())[:MOST_METRICS]]


def _distribution(metric: str, every: list[Distribution]) -> Plot:
    shown = [every[int(at)] for at in thinned(list(range(len(every))), MOST_LINES)]

    names = words.told_apart([one.labels for one in shown])

    def paint(axes: Axes) -> None:
        for number, one in enumerate(shown):
            known = told_percents(one)
            axes.plot(
                [_place(percent) for percent in known],
                one.quantiles[: len(known)],
                color=SERIES[number],
                linestyle=LINES[number],
                label=words.shortened(words.one_line(names[number]), 30) or "all",
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([_place(percent) for percent in _TICKS]))
        axes.xaxis.set_major_formatter(FixedFormatter(list(_TICKS.values())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("share of samples that took at most that long")
        set_quantity(
            axes, finite(value for one in shown for value in one.quantiles[: len(told_percents(one))]), shown[0].unit
        )
        add_legend(axes, len(shown))

    said = "Of all samples of all runs, up to 99.9 %, or as far as there are samples; the slowest are to the right."
    if len(shown) < len(every):
        said += f" {len(shown)} of {len(every)} cases; the table has all."
    name = distribution_name(shown[0])
    title = f"{name[:1].upper()}{name[1:]}, distribution"
    return draw(f"distribution-{metric}", title, said, paint)


def told_percents(one: Distribution) -> list[float]:
    """Up to 99.9; where there are fewer samples, those of which at least one lies beyond."""
    return [percent for percent in QUANTILE_PERCENTS if percent <= 99.9 and one.count * (100 - percent) >= 100]


def _place(percent: float) -> float:
    """1 at 0 %, 10 at 90 %, 1000 at 99.9 %."""
    return 100 / (100 - percent)
