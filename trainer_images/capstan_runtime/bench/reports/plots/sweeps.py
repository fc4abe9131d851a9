"""Figures over what was varied: batch sizes, rates, sizes of messages."""

import re
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes

from capstan_runtime.bench.reports.plots.axes import (
    MOST_LINES,
    Case,
    Line,
    add_legend,
    dots_fit,
    draw_line,
    finite,
    note,
    set_cases,
    set_quantity,
    thinned,
)
from capstan_runtime.bench.reports.plots.svg import MUTED, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Figure
from capstan_runtime.contract.sizes import size_bytes

_X_LABELS = {
    "batchSize": "batch size",
    "rate": "offered load, requests/s",
    "size": "size of the message",
    "matrixSize": "side of the matrices",
}
_IS_LOAD = "rate"
MOST_SWEEPS = 6
"""Plots of this kind in one report; the rest is in its tables."""


def number_of(text: str) -> float | None:
    """What a label's value means as a number: 32, 0.5, 64KiB; None: it is a name."""
    try:
        return float(size_bytes(text))
    except ValueError:
        return float(text) if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text) else None


def varied_label(figures: Sequence[Figure]) -> str | None:
    """The label with the most different numbers, two or more; None: there is none."""
    found: dict[str, set[float]] = {}
    for figure in figures:
        for name, text in figure.labels.items():
            value = number_of(text)
            if value is not None:
                found.setdefault(name, set()).add(value)
    counts = {name: len(values) for name, values in found.items() if len(values) > 1}
    return max(counts, key=lambda name: counts[name]) if counts else None


def lines_over(label: str, figures: Iterable[Figure], result: BenchmarkResult) -> list[Line]:
    """A line for each combination of the other labels, points in rising order."""
    values = {_identity(one.metric, one.labels): one.values for one in result.series if one.arm == "candidate"}
    grouped: dict[str, list[Case]] = {}
    for figure in figures:
        x = number_of(figure.labels.get(label, ""))
        if x is None:
            continue
        others = {name: words.words(text) for name, text in figure.labels.items() if name != label}
        name = ", ".join(others.values()) or words.words(figure.metric)
        case = Case(
            x,
            figure.labels[label],
            figure.median,
            figure.low,
            figure.high,
            values.get(_identity(figure.metric, figure.labels), ()),
        )
        grouped.setdefault(name, []).append(case)
    return [Line(name, sorted(cases, key=lambda case: case.x)) for name, cases in grouped.items()]


def baseline_lines(label: str, figures: Iterable[Figure], result: BenchmarkResult) -> list[Line]:
    """The same of the baseline that was run in turns: medians from the comparisons, and each of its runs."""
    medians = {_identity(one.metric, one.labels): one.baseline for one in result.comparisons}
    values = {_identity(one.metric, one.labels): one.values for one in result.series if one.arm == "baseline"}
    cases = []
    for figure in figures:
        key, x = _identity(figure.metric, figure.labels), number_of(figure.labels.get(label, ""))
        if key in medians and x is not None:
            middle = medians[key]
            cases.append(Case(x, figure.labels[label], middle, middle, middle, values.get(key, ())))
    return [Line("baseline", sorted(cases, key=lambda case: case.x))] if cases else []


def _identity(metric: str, labels: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return metric, tuple(sorted(labels.items()))


def sweep(result: BenchmarkResult, metric: str) -> Plot | None:
    """One metric over the label that was varied; None where nothing was."""
    figures = [figure for figure in result.figures if figure.metric == metric]
    label = varied_label(figures)
    if label is None or not any(finite(figure.median for figure in figures)):
        return None  # nothing was varied, or all that was found is 0 or no number
    lines = lines_over(label, figures, result)
    baseline = baseline_lines(label, figures, result) if len(lines) == 1 else []
    if baseline:
        lines = [Line("now", lines[0].cases), *baseline]
    shown = _of_most_use(lines)
    unit = figures[0].unit

    def paint(axes: Axes) -> None:
        paint_lines(axes, shown, _X_LABELS.get(label, words.words(label)), unit)

    title = f"{words.title(metric)} over {words.words(label)}"
    return draw(f"sweep-{metric}", title, caption(lines, shown), paint)


def paint_lines(
    axes: Axes, lines: Sequence[Line], x_label: str, unit: str, *, is_linear: bool = False, beside: Sequence[float] = ()
) -> None:
    """Lines with intervals and dots on axes that fit them, and the values `beside`."""
    with_dots = dots_fit(lines)
    for number, line in enumerate(lines):
        draw_line(axes, line, number, with_dots=with_dots)
    set_cases(axes, lines, x_label, is_linear=is_linear)
    everything = [
        value for line in lines for case in line.cases for value in (case.median, case.low, case.high, *case.values)
    ]
    set_quantity(axes, [*everything, *beside], unit, is_linear=is_linear)
    add_legend(axes, len(lines))


def caption(lines: Sequence[Line], shown: Sequence[Line]) -> str:
    """How to read it, and what is left out."""
    rings = "; rings are single runs" if dots_fit(shown) else ""
    left = len(lines) - len(shown)
    return f"Median and interval{rings}." + (f" {left} more lines are in the table." if left else "")


def _of_most_use(lines: Sequence[Line]) -> list[Line]:
    chosen = thinned(list(range(len(lines))), MOST_LINES)
    return [lines[int(at)] for at in chosen]


def ladder(result: BenchmarkResult) -> list[Plot]:
    """Latency, and what was answered, over the load that was offered."""
    whole = [figure for figure in result.figures if set(figure.labels) == {_IS_LOAD}]
    rates = {number_of(figure.labels[_IS_LOAD]) for figure in whole}
    if len(rates) < 2:
        return []
    plots = []
    latencies = [figure for figure in whole if figure.metric.startswith("latency_")]
    if latencies:
        lines = []
        for metric in dict.fromkeys(figure.metric for figure in latencies):
            of_metric = [figure for figure in latencies if figure.metric == metric]
            name = metric.removeprefix("latency_").removesuffix("_seconds").replace("p999", "p99.9")
            lines.append(Line(name, lines_over(_IS_LOAD, of_metric, result)[0].cases))
        objective = _objective_seconds(result)

        def paint_latency(axes: Axes) -> None:
            paint_lines(axes, lines, _X_LABELS[_IS_LOAD], "s", beside=[objective] if objective else [])
            if objective is not None:
                axes.axhline(objective, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
                axes.annotate(
                    f"objective: p99 within {words.quantity(objective, 's')}",
                    (0.02, objective),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    color=MUTED,
                    fontsize=8,
                )

        said = "From when a request was due until its answer. " + caption(lines, lines)
        plots.append(draw("ladder-latency", "Latency over offered load", said, paint_latency))
    answered = [figure for figure in whole if figure.metric in ("requests_per_second", "goodput_requests_per_second")]
    if answered:
        rows = [
            Line(
                "in time" if metric.startswith("goodput") else "answered",
                lines_over(_IS_LOAD, [one for one in answered if one.metric == metric], result)[0].cases,
            )
            for metric in dict.fromkeys(figure.metric for figure in answered)
        ]

        def paint_answered(axes: Axes) -> None:
            paint_lines(axes, rows, _X_LABELS[_IS_LOAD], "requests/s", is_linear=True)
            places = sorted(case.x for case in rows[0].cases)
            axes.plot(places, places, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            axes.set_ylim(0, max(axes.get_ylim()[1], places[-1] * 1.08))
            note(axes, "dotted: all that was offered")

        plots.append(draw("ladder-answers", "Answers over offered load", caption(rows, rows), paint_answered))
    return plots


def _objective_seconds(result: BenchmarkResult) -> float | None:
    """What spec asked p99 to be."""
    found: object = result.spec
    for key in ("workload", "serving", "objective", "p99Milliseconds"):
        found = found.get(key) if isinstance(found, dict) else None
    return found / 1e3 if isinstance(found, int | float) else None
