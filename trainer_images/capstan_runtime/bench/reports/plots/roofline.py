"""What a machine can do at most, and where kernels and models are below that (Williams et al., 2009)."""

import math

from matplotlib.axes import Axes

from capstan_runtime.bench.reports.plots.axes import add_legend, set_powers
from capstan_runtime.bench.reports.plots.svg import INK, LINES, MARKERS, PAPER, SERIES, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult, Ceiling, Dot
from capstan_runtime.contract import words

MOST_DOTS = 24
_HEIGHT = 3.4
_LEGEND_INCHES = 0.17


def roofline(result: BenchmarkResult) -> Plot | None:
    """Ceilings with their intervals and numbered dots; None without a compute and a bandwidth ceiling."""
    compute = [roof for roof in result.roofs if roof.kind == "compute" and _is_drawable(roof)]
    bandwidth = [roof for roof in result.roofs if roof.kind == "bandwidth" and _is_drawable(roof)]
    dots = [dot for dot in result.dots if dot.intensity > 0 and dot.performance > 0][:MOST_DOTS]
    if not compute or not bandwidth:
        return None

    def paint(axes: Axes) -> None:
        _paint(axes, compute, bandwidth, dots)

    names = "; ".join(f"{number} {words.one_line(dot.name)}" for number, dot in enumerate(dots, 1))
    said = "Performance over arithmetic intensity; lines are measured ceilings." + (f" {names}." if dots else "")
    return draw("roofline", "Roofline", said, paint, height=_HEIGHT + _LEGEND_INCHES * len(result.roofs))


def _is_drawable(roof: Ceiling) -> bool:
    return math.isfinite(roof.median) and roof.median > 0


def _paint(axes: Axes, compute: list[Ceiling], bandwidth: list[Ceiling], dots: list[Dot]) -> None:
    peak, width = max(roof.median for roof in compute), max(roof.median for roof in bandwidth)
    slowest = min(roof.median for roof in bandwidth)
    ridges = [roof.median / band.median for roof in compute for band in bandwidth]
    places = [*ridges, *(dot.intensity for dot in dots)]
    left, right = min(places) / 8, max(places) * 6
    bottom = min([left * slowest, *(dot.performance for dot in dots)]) / 1.6
    set_powers(axes, "x", left, right)
    set_powers(axes, "y", bottom, peak * 2.6, "FLOP/s")
    names = [roof.name for roof in compute]
    for number, roof in enumerate(compute):
        start = roof.median / width
        axes.fill_between(
            [start, right], roof.low, roof.high, color=SERIES[number % len(SERIES)], alpha=0.18, linewidth=0
        )
        _paint_line(axes, roof, SERIES[number % len(SERIES)], number, (start, right), (1.0, 1.0))
    for number, roof in enumerate(bandwidth, len(compute)):
        _paint_slope(axes, roof, number, left, peak)
    for number, dot in enumerate(dots, 1):
        _paint_dot(axes, dot, number, names.index(dot.ceiling) if dot.ceiling in names else 0)
    add_legend(axes, len(compute) + len(bandwidth))
    axes.set_xlabel("arithmetic intensity, FLOP per byte")
    axes.set_ylabel("performance")


def _paint_slope(axes: Axes, roof: Ceiling, number: int, left: float, peak: float) -> None:
    """Up to the highest compute ceiling, the interval too."""
    end = peak / roof.median
    places = [left, peak / roof.high, end] if roof.high > roof.median else [left, end]
    high = [min(peak, place * roof.high) for place in places]
    axes.fill_between(places, [place * roof.low for place in places], high, color=INK, alpha=0.18, linewidth=0)
    _paint_line(axes, roof, INK, number, (left, end), (left, end))


def _paint_line(
    axes: Axes, roof: Ceiling, color: str, number: int, places: tuple[float, float], factors: tuple[float, float]
) -> None:
    """From one place to the other, as high as the factors times what was measured."""
    axes.plot(
        places,
        [factor * roof.median for factor in factors],
        color=color,
        linewidth=1.4,
        linestyle=LINES[number % len(LINES)],
        label=f"{words.shortened(words.one_line(roof.name), 28)}, {words.quantity(roof.median, roof.unit)}",
    )


def _paint_dot(axes: Axes, dot: Dot, number: int, ceiling: int) -> None:
    """Colour and mark tell below which compute ceiling it is; the number, what it is."""
    color, marker = SERIES[ceiling % len(SERIES)], MARKERS[ceiling % len(MARKERS)]
    axes.errorbar(
        dot.intensity,
        dot.performance,
        yerr=[[max(0.0, dot.performance - dot.low)], [max(0.0, dot.high - dot.performance)]],
        color=color,
        marker=marker,
        markersize=6,
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        elinewidth=1,
        capsize=2,
        zorder=4,
    )
    axes.annotate(
        str(number),
        (dot.intensity, dot.performance),
        xytext=(5, -9),
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
