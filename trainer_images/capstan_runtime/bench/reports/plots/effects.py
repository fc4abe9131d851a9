"""Differences from the baseline, with their intervals, beside the band in which a difference is none."""

import math
import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from capstan_runtime.bench.reports.plots.axes import finite
from capstan_runtime.bench.reports.plots.svg import BAD, BAND, GOOD, INK, MUTED, PAPER, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Comparison

MOST_ROWS = 20
_ROW_INCHES, _FRAME_INCHES = 0.42, 0.85
_LOOKS = {"Passed": ("o", MUTED), "Improved": ("^", GOOD), "Regressed": ("v", BAD), "Inconclusive": ("D", INK)}
_WIDEST = 4.0
"""An interval that reaches further than so many times the greatest effect is cut, and ends in an arrow."""
_LONGEST_NAME = 24


def effects(result: BenchmarkResult) -> Plot | None:
    """A row for each comparison; None where nothing was compared."""
    rows = sorted(
        result.comparisons, key=lambda one: ("Regressed", "Inconclusive", "Improved", "Passed").index(one.verdict)
    )
    rows = rows[:MOST_ROWS]
    if not rows:
        return None
    band = result.gate.minimum_effect_percent if result.gate else None
    better = {(figure.metric, tuple(figure.labels.items())): figure.better for figure in result.figures}

    def paint(axes: Axes) -> None:
        _paint(axes, rows, band, better)

    said = "Effect and interval of each metric." + (" In the band, a difference counts as none." if band else "")
    left = len(result.comparisons) - len(rows)
    if left:
        said += f" {left} more are in the table."
    height = _FRAME_INCHES + _ROW_INCHES * len(rows)
    return draw("effects", "Difference from the baseline", said, paint, height=height)


def _paint(
    axes: Axes,
    rows: list[Comparison],
    band: float | None,
    better: Mapping[tuple[str, tuple[tuple[str, str], ...]], str],
) -> None:
    most = _reach(rows, band)
    if band is not None:
        axes.axvspan(-band, band, color=BAND, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1)
    for at, one in enumerate(rows):
        _paint_row(axes, at, one, most)
    names = [_name(one, better.get((one.metric, tuple(one.labels.items())), "neither")) for one in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(-most * 1.08, most * 1.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, symmetric=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlabel("difference from the baseline, %")


def _paint_row(axes: Axes, at: int, one: Comparison, most: float) -> None:
    marker, color = _LOOKS[one.verdict]
    if not math.isfinite(one.effect_percent):
        axes.text(0, at, one.verdict, ha="center", va="center", fontsize=8, color=INK)
        return
    low, high = (
        _clipped(end, most, fallback) for end, fallback in ((one.low_percent, -most), (one.high_percent, most))
    )
    axes.plot([low, high], [at, at], color=color, linewidth=2, solid_capstyle="butt")
    for end, cut, arrow in ((low, one.low_percent, "<"), (high, one.high_percent, ">")):
        is_cut = cut != end
        axes.plot([end], [at], marker=arrow if is_cut else "|", color=color, markersize=6)
    middle = _clipped(one.effect_percent, most, 0.0)
    axes.plot([middle], [at], marker=marker, color=color, markersize=7, markeredgecolor=PAPER, markeredgewidth=0.8)
    axes.annotate(
        f"{one.verdict} {words.percent(one.effect_percent)}",
        (max(-0.62 * most, min(0.62 * most, middle)), at),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=INK,
    )


def _clipped(value: float, most: float, fallback: float) -> float:
    return fallback if math.isnan(value) else max(-most, min(most, value))


def _reach(rows: list[Comparison], band: float | None) -> float:
    ends = finite(abs(end) for one in rows for end in (one.low_percent, one.high_percent, one.effect_percent))
    least = 1.3 * band if band is not None else 1.0
    middles = finite(abs(one.effect_percent) for one in rows)
    return max(least, min(max(ends, default=1.0), _WIDEST * max(*middles, least, 1.0)))


def _name(one: Comparison, better: str) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(better, "")
    first = textwrap.wrap(words.title(one.metric) + arrow, _LONGEST_NAME, max_lines=2, placeholder="…")
    at = textwrap.wrap(words.one_line(words.case(one.labels)), _LONGEST_NAME, max_lines=3 - len(first), placeholder="…")
    return "\n".join([*first, *at])
