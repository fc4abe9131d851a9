"""Figures of cases that have names instead of numbers, and the runs of a single case."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from capstan_runtime.bench.reports.plots.axes import finite, set_quantity
from capstan_runtime.bench.reports.plots.svg import INK, MARKERS, PAPER, SERIES, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult, Series
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Figure

MOST_BARS = 16
_BAR_INCHES, _FRAME_INCHES = 0.34, 0.75
_LONGEST_NAME = 26


def bars(result: BenchmarkResult, metric: str) -> Plot | None:
    """One metric, a bar for each case from 0 on; None for fewer than two cases, and where all is 0 or no number."""
    figures = [figure for figure in result.figures if figure.metric == metric][:MOST_BARS]
    if len(figures) < 2 or not any(finite(figure.median for figure in figures)):
        return None
    unit = figures[0].unit
    values = {(one.metric, tuple(one.labels.items())): one.values for one in result.series if one.arm == "candidate"}
    runs = [values.get((figure.metric, tuple(figure.labels.items())), ()) for figure in figures]

    def paint(axes: Axes) -> None:
        _paint_bars(axes, figures, runs, unit)

    title = f"{words.title(metric)} by {' and '.join(words.words(name) for name in figures[0].labels)}"
    height = _FRAME_INCHES + _BAR_INCHES * len(figures)
    return draw(f"bars-{metric}", title, "Median and interval; rings are single runs.", paint, height=max(1.5, height))


def _paint_bars(axes: Axes, figures: Sequence[Figure], runs: Sequence[Sequence[float]], unit: str) -> None:
    for row, (figure, values) in enumerate(zip(figures, runs, strict=True)):
        if not math.isfinite(figure.median):
            continue
        axes.barh(row, figure.median, height=0.62, facecolor=SERIES[0], alpha=0.35, edgecolor=SERIES[0])
        axes.errorbar(
            figure.median,
            row - 0.08,
            xerr=[[max(0.0, figure.median - figure.low)], [max(0.0, figure.high - figure.median)]],
            color=INK,
            capsize=3,
            elinewidth=1.2,
        )
        drawn = finite(values)
        axes.plot(
            drawn,
            [row + 0.2] * len(drawn),
            "o",
            markersize=3.2,
            markerfacecolor="none",
            markeredgecolor=INK,
            markeredgewidth=0.6,
        )
    axes.set_yticks(range(len(figures)), [_name(figure) for figure in figures])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    most = max(
        finite([figure.high for figure in figures] + [value for values in runs for value in values]), default=1.0
    )
    scale, scaled = words.scale_of(most, unit)
    axes.set_xlim(0, (most or 1.0) * 1.06)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ticks = MaxNLocator(nbins=5).tick_values(0, most / scale)
    axes.set_xticks([tick * scale for tick in ticks if tick * scale <= most * 1.06])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value / scale)))
    axes.set_xlabel(scaled)


def _name(figure: Figure) -> str:
    return words.shortened(words.one_line(", ".join(map(words.words, figure.labels.values()))), _LONGEST_NAME)


def runs_of(result: BenchmarkResult, figure: Figure) -> Plot | None:
    """Each run of one case in order, with median and interval; None for a single run."""
    series = [one for one in result.series if one.metric == figure.metric and one.labels == figure.labels]
    if not series or max(len(one.values) for one in series) < 2:
        return None

    def paint(axes: Axes) -> None:
        _paint_runs(axes, figure, series)

    at = f" at {words.case(figure.labels)}" if figure.labels else ""
    name = f"runs-{figure.metric}-{'-'.join(figure.labels.values())}"
    key = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    said = "Each run in its order; line and band are median and interval."
    if len(series) > 1:
        said += " Squares: the baseline's runs."
    return draw(key, f"{words.title(figure.metric)}{at}, run by run", said, paint, height=2.3)


def _paint_runs(axes: Axes, figure: Figure, series: Sequence[Series]) -> None:
    if math.isfinite(figure.low) and math.isfinite(figure.high):
        axes.axhspan(figure.low, figure.high, color=SERIES[0], alpha=0.14, linewidth=0)
    if math.isfinite(figure.median):
        axes.axhline(figure.median, color=SERIES[0], linewidth=1.4)
    for number, one in enumerate(sorted(series, key=lambda each: each.arm != "candidate")):
        axes.plot(
            range(1, len(one.values) + 1),
            [value if math.isfinite(value) else math.nan for value in one.values],
            linestyle="none",
            marker=MARKERS[number],
            color=SERIES[number],
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            label=one.arm,
        )
    longest = max(len(one.values) for one in series)
    axes.set_xlim(0.5, longest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("run")
    everything = [figure.low, figure.high, *(value for one in series for value in one.values)]
    set_quantity(axes, everything, figure.unit, from_zero=False)
