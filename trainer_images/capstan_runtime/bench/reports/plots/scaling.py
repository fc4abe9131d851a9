"""Speed-up and efficiency over numbers of workers, beside the ideal."""

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from capstan_runtime.bench.reports.plots.axes import (
    Case,
    Line,
    add_legend,
    draw_line,
    note,
    set_cases,
    set_quantity,
    spans_widely,
)
from capstan_runtime.bench.reports.plots.svg import INK, MUTED, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult

_LOGARITHMIC_FROM = 32.0
"""Ratio of numbers of workers; below it the ideal is a straight line from the origin."""


def scaling(result: BenchmarkResult) -> list[Plot]:
    """Two plots; none without rows."""
    modes = list(dict.fromkeys(row.mode for row in result.scaling))
    if not modes:
        return []
    series = {
        (one.metric, one.labels.get("mode"), one.labels.get("workers")): one.values
        for one in result.series
        if one.arm == "candidate"
    }
    speedups, efficiencies = [], []
    for mode in modes:
        rows = sorted((row for row in result.scaling if row.mode == mode), key=lambda row: row.workers)
        places = [(row, float(row.workers), str(row.workers)) for row in rows]
        speedups.append(
            Line(
                mode,
                [
                    Case(
                        x, text, row.speedup, row.speedup_low, row.speedup_high, series.get(("speedup", mode, text), ())
                    )
                    for row, x, text in places
                ],
            )
        )
        efficiencies.append(
            Line(
                mode,
                [
                    Case(
                        x,
                        text,
                        row.efficiency,
                        row.efficiency_low,
                        row.efficiency_high,
                        series.get(("efficiency", mode, text), ()),
                    )
                    for row, x, text in places
                ],
            )
        )
    return [_speedup(result, speedups), _efficiency(efficiencies)]


def _speedup(result: BenchmarkResult, lines: list[Line]) -> Plot:
    reference = _reference(result)

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            draw_line(axes, line, number, with_dots=True)
        places = sorted({case.x for line in lines for case in line.cases})
        axes.plot(places, places, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), label="ideal", zorder=1)
        shown = [(x, value) for x, value in reference if x <= places[-1]]
        if shown:
            axes.plot(
                [x for x, _ in shown],
                [value for _, value in shown],
                linestyle="none",
                marker="*",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=INK,
                label="reference, other hardware",
            )
        is_linear = not spans_widely(places, _LOGARITHMIC_FROM)
        set_cases(axes, lines, "workers", is_linear=is_linear)
        everything = [value for line in lines for case in line.cases for value in (case.median, case.high)]
        set_quantity(axes, [*everything, places[-1]], "x", is_linear=is_linear)
        axes.set_ylabel("speed-up")
        add_legend(axes, len(lines) + 1 + bool(shown))

    said = "How many times as fast as one worker, with the interval; the dotted line is the ideal."
    if reference and result.reference is not None:
        said += f" Stars are reference figures, measured by others on {result.reference.hardware}, and not comparable."
    return draw("scaling-speedup", "Speed-up over workers", said, paint)


def _reference(result: BenchmarkResult) -> list[tuple[float, float]]:
    figures = result.reference.figures if result.reference is not None else ()
    return [(float(one.labels["workers"]), one.value) for one in figures if one.metric == "speedup"]


def _efficiency(lines: list[Line]) -> Plot:
    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            draw_line(axes, line, number, with_dots=True)
        axes.axhline(1, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
        places = [case.x for line in lines for case in line.cases]
        set_cases(axes, lines, "workers", is_linear=not spans_widely(places, _LOGARITHMIC_FROM))
        everything = [value for line in lines for case in line.cases for value in (case.high, *case.values)]
        set_quantity(axes, [*everything, 1.0, 0.0], "1")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_ylim(0, max(1.12, axes.get_ylim()[1]))
        note(axes, "dotted: ideal")
        add_legend(axes, len(lines))

    said = "Speed-up per worker, with the interval; rings are single repetitions."
    return draw("scaling-efficiency", "Efficiency over workers", said, paint)
