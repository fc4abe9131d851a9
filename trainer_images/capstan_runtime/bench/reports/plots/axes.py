"""Axes that people read at once: few ticks, at values that were measured, with units."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from capstan_runtime.bench.reports.plots.svg import INK, LINES, MARKERS, MUTED, PAPER, SERIES
from capstan_runtime.contract import words

MOST_LINES = len(SERIES)
MOST_TICKS = 7
MOST_DOTS = 400
"""Of one plot; of more, only the range of each case is drawn, and the caption says so."""
_LOGARITHMIC_FROM = 8.0
"""Ratio of the greatest to the least value from which on even steps would hide the small ones."""


@dataclass(frozen=True, slots=True)
class Case:
    """One place on a line."""

    x: float
    x_text: str
    median: float
    low: float
    high: float
    values: Sequence[float] = ()
    """Of each trial."""


@dataclass(frozen=True, slots=True)
class Line:
    """Cases that belong together."""

    name: str
    cases: Sequence[Case]


def finite(values: Iterable[float]) -> list[float]:
    """Those that can be drawn."""
    return [value for value in values if math.isfinite(value)]


def spans_widely(values: Iterable[float], ratio: float = _LOGARITHMIC_FROM) -> bool:
    """Whether a logarithmic axis is needed, and possible."""
    drawn = finite(values)
    return bool(drawn) and min(drawn) > 0 and max(drawn) / min(drawn) >= ratio


def thinned(values: Sequence[float], most: int = MOST_TICKS) -> list[float]:
    """At most so many of them, evenly taken, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def set_cases(axes: Axes, lines: Sequence[Line], label: str, *, is_linear: bool = False) -> None:
    """The x axis: ticks only where something was measured. Logarithmic where values span widely, unless `is_linear`."""
    texts = {case.x: case.x_text for line in lines for case in line.cases}
    places = sorted(texts)
    if spans_widely(places) and not is_linear:
        axes.set_xscale("log")
    ticks = _apart(places, axes.get_xscale() == "log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value, "")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.margins(x=0.06)


def _apart(places: Sequence[float], is_logarithmic: bool) -> list[float]:
    """Those whose texts do not touch, from both ends on."""
    if len(places) < 2:
        return list(places)
    at = [math.log(place) if is_logarithmic else place for place in places]
    gap = (at[-1] - at[0]) / MOST_TICKS
    kept = [0]
    for number in range(1, len(places) - 1):
        if at[number] - at[kept[-1]] >= gap and at[-1] - at[number] >= gap:
            kept.append(number)
    return [places[number] for number in (*kept, len(places) - 1)]


def set_quantity(
    axes: Axes, values: Sequence[float], unit: str, *, from_zero: bool = True, is_linear: bool = False
) -> None:
    """The y axis of a quantity: from 0 on where that is honest and possible, logarithmic where values span widely."""
    drawn = finite(values)
    if not drawn:
        return
    scale, scaled = words.scale_of(max(drawn, key=abs), unit)
    axes.set_ylabel("" if scaled == "1" else scaled)
    if spans_widely(drawn, 20) and not is_linear:
        axes.set_yscale("log")
        ticks = decades(min(drawn) / scale, max(drawn) / scale)
        axes.yaxis.set_major_locator(FixedLocator([tick * scale for tick in ticks]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(min(drawn), ticks[0] * scale) * 0.85, max(max(drawn), ticks[-1] * scale) * 1.18)
        if words.scale_of(min(drawn), unit)[1] != scaled:
            # 1 ms and 10 s on one axis: each tick says its own unit.
            axes.set_ylabel("")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.quantity(value, unit)))
            return
    else:
        axes.yaxis.set_major_locator(_Scaled(scale))
        if from_zero and min(drawn) >= 0:
            axes.set_ylim(0, (max(drawn) or 1) * 1.08)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value / scale)))


class _Scaled(MaxNLocator):
    """Round numbers in the unit that is shown: 5 ms, not 0.0048 s."""

    def __init__(self, scale: float) -> None:
        super().__init__(nbins=5, steps=[1, 2, 2.5, 5, 10])
        self._scale = scale

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        return [value * self._scale for value in super().tick_values(vmin / self._scale, vmax / self._scale)]


def decades(low: float, high: float, most: int = 6) -> list[float]:
    """Round ticks of a logarithmic axis over `low` to `high`: powers of ten, with 2 and 5 where there is room.

    >>> decades(0.3, 40)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    within = [tick for tick in fine if low * 0.99 <= tick <= high * 1.01]
    if 2 <= len(within) <= most + 1:
        return within
    coarse = [10.0**power for power in range(first, last + 1) if low * 0.99 <= 10.0**power <= high * 1.01]
    return thinned(coarse, most) if len(coarse) > 1 else thinned(within or [low, high], most)


def set_powers(axes: Axes, which: str, low: float, high: float, unit: str = "") -> None:
    """A logarithmic axis over `low` to `high` with ticks such as 100 GFLOP/s; unit `count`: 100K; none: 1e9."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(decades(low, high, 6)))
    axis.set_minor_locator(NullLocator())

    def text(value: float, _: object) -> str:
        if unit == "count":
            return words.count(value)
        if unit:
            scale, scaled = words.scale_of(value * 1.0000001, unit)
            return words.join(words.number(value / scale, 3), scaled)
        return words.number(value, 3) if 1e-4 <= value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")

    axis.set_major_formatter(FuncFormatter(text))


def draw_line(axes: Axes, line: Line, number: int, *, with_dots: bool, is_joined: bool = True) -> None:
    """Medians with their intervals, and every trial as a small ring beside its median."""
    color, marker = SERIES[number % MOST_LINES], MARKERS[number % MOST_LINES]
    cases = [case for case in line.cases if math.isfinite(case.median)]
    if not cases:
        return
    at = [case.x for case in cases]
    below = [max(0.0, case.median - case.low) if math.isfinite(case.low) else 0.0 for case in cases]
    above = [max(0.0, case.high - case.median) if math.isfinite(case.high) else 0.0 for case in cases]
    if with_dots:
        pairs = [(case.x, value) for case in cases for value in case.values if math.isfinite(value)]
        axes.plot(
            [x for x, _ in pairs],
            [value for _, value in pairs],
            linestyle="none",
            marker="o",
            markersize=3.2,
            markerfacecolor="none",
            markeredgecolor=color,
            markeredgewidth=0.7,
            zorder=2,
            transform=offset_copy(axes.transData, axes.get_figure(root=True), x=5 + 3 * number, units="points"),
        )
    axes.errorbar(
        at,
        [case.median for case in cases],
        yerr=[below, above],
        color=color,
        marker=marker,
        linestyle=LINES[number % MOST_LINES] if is_joined else "none",
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        elinewidth=1.2,
        capsize=3,
        label=words.shortened(line.name, 30),
        zorder=3,
    )


def dots_fit(lines: Sequence[Line]) -> bool:
    """Whether every trial can be drawn."""
    return sum(len(case.values) for line in lines for case in line.cases) <= MOST_DOTS


def add_legend(axes: Axes, count: int) -> None:
    """Above the plot, where it hides nothing; none for one line."""
    if count > 1:
        longest = max((len(text) for text in axes.get_legend_handles_labels()[1]), default=0)
        columns = 3 if longest <= 14 and count % 2 else 2 if longest <= 24 else 1
        axes.figure.legend(loc="outside upper left", ncols=columns, labelcolor=INK, columnspacing=1.2)


def note(axes: Axes, text: str, x: float = 0.98, y: float = 0.03, align: str = "right") -> None:
    """A few words in a corner."""
    axes.text(x, y, text, transform=axes.transAxes, ha=align, va="bottom", color=MUTED, fontsize=8)
