"""Bandwidth and time of collectives over the size of their messages."""

from matplotlib.axes import Axes

from capstan_runtime.bench.reports.plots.axes import add_legend, dots_fit, draw_line, set_cases, set_quantity
from capstan_runtime.bench.reports.plots.svg import LINES, SERIES, Plot, draw
from capstan_runtime.bench.reports.plots.sweeps import caption, lines_over, sweep, varied_label
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words

_BUS = "bus_bandwidth_bytes_per_second"
_TIME = "seconds"


def collectives(result: BenchmarkResult) -> list[Plot]:
    """Bus bandwidth, and time with what was fitted to it."""
    plots = [sweep(result, _BUS), _time(result)]
    return [plot for plot in plots if plot is not None]


def _time(result: BenchmarkResult) -> Plot | None:
    figures = [figure for figure in result.figures if figure.metric == _TIME]
    label = varied_label(figures)
    if label is None or not result.collectives:
        return None
    lines = lines_over(label, figures, result)
    fits = {words.words(fit.operation): fit for fit in result.collectives}

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            draw_line(axes, line, number, with_dots=dots_fit(lines), is_joined=False)
            fit = fits.get(line.name)
            if fit is not None:
                places = [case.x for case in line.cases]
                axes.plot(
                    places,
                    [fit.latency_seconds + place / fit.bandwidth_bytes_per_second for place in places],
                    color=SERIES[number % len(SERIES)],
                    linestyle=LINES[number % len(LINES)],
                    linewidth=1.1,
                    zorder=1,
                )
        set_cases(axes, lines, "size of the message")
        set_quantity(axes, [case.median for line in lines for case in line.cases], "s")
        add_legend(axes, len(lines))

    said = "Lines: latency + size / bandwidth, as fitted. " + caption(lines, lines)
    return draw("collectives-time", "Time of an operation over its size", said, paint)
