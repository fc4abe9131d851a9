"""Scaling laws: what was observed, what the law says, and what is left over."""

import math

from matplotlib.axes import Axes

from capstan_runtime.bench.reports.plots.axes import add_legend, set_powers
from capstan_runtime.bench.reports.plots.svg import LINES, MARKERS, MUTED, PAPER, SERIES, Plot, draw
from capstan_runtime.bench.result import BenchmarkResult, Law, LawFit
from capstan_runtime.contract import words

MOST_SIZES = 6
"""Model sizes that each get a line; of more, observed is drawn over predicted instead."""


def law_plots(result: BenchmarkResult) -> list[Plot]:
    """The first fit beside the runs, and the residuals of all fits; none without a law."""
    law = result.law
    fits = [fit for fit in law.fits if len(fit.residuals) == len(law.points)] if law is not None else []
    if law is None or not law.points or not fits:
        return []
    sizes = sorted({size for size, _, _ in law.points})
    first = _over_tokens(law, fits[0], sizes) if len(sizes) <= MOST_SIZES else _over_predicted(law, fits[0])
    return [first, _residuals(law, fits)]


def _predicted(law: Law, fit: LawFit) -> list[float]:
    """By the definition of a residual."""
    return [loss / math.exp(residual) for (_, _, loss), residual in zip(law.points, fit.residuals, strict=True)]


def _over_tokens(law: Law, fit: LawFit, sizes: list[float]) -> Plot:
    predicted = _predicted(law, fit)

    def paint(axes: Axes) -> None:
        for number, size in enumerate(sizes):
            runs = sorted(
                (point[1], point[2], said)
                for point, said in zip(law.points, predicted, strict=True)
                if point[0] == size
            )
            color = SERIES[number]
            axes.plot([run[0] for run in runs], [run[2] for run in runs], color=color, linestyle=LINES[number])
            axes.plot(
                [run[0] for run in runs],
                [run[1] for run in runs],
                linestyle="none",
                marker=MARKERS[number],
                color=color,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
                label=f"{words.count(size)} parameters",
            )
        tokens = [tokens for _, tokens, _ in law.points]
        set_powers(axes, "x", min(tokens) / 1.5, max(tokens) * 1.5, "count")
        _set_loss(axes, "y", [*predicted, *(loss for _, _, loss in law.points)])
        axes.set_xlabel("tokens")
        axes.set_ylabel("loss")
        add_legend(axes, len(sizes))

    said = f"Marks are runs, lines what the {fit.form} law says of them."
    return draw("law-fit", "Loss over data and model size", said, paint, height=3.5)


def _over_predicted(law: Law, fit: LawFit) -> Plot:
    predicted = _predicted(law, fit)
    observed = [loss for _, _, loss in law.points]

    def paint(axes: Axes) -> None:
        ends = (min(*predicted, *observed), max(*predicted, *observed))
        axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.plot(predicted, observed, "o", color=SERIES[0], markersize=4, markeredgecolor=PAPER, markeredgewidth=0.5)
        _set_loss(axes, "x", [*predicted, *observed])
        _set_loss(axes, "y", [*predicted, *observed])
        axes.set_xlabel(f"loss by the {fit.form} law")
        axes.set_ylabel("loss observed")

    return draw("law-fit", "Observed and predicted loss", "On the dotted line, both are equal.", paint)


def _set_loss(axes: Axes, which: str, losses: list[float]) -> None:
    low, high = min(losses), max(losses)
    if high / low < 3:
        space = 0.06 * ((high - low) or high)
        (axes.set_xlim if which == "x" else axes.set_ylim)(low - space, high + space)
        return
    set_powers(axes, which, low / 1.1, high * 1.1)


def _residuals(law: Law, fits: list[LawFit]) -> Plot:
    def paint(axes: Axes) -> None:
        work = [size * tokens for size, tokens, _ in law.points]
        axes.axhline(0, color=MUTED, linewidth=1)
        for number, fit in enumerate(fits):
            axes.plot(
                work,
                [100 * residual for residual in fit.residuals],
                linestyle="none",
                marker=MARKERS[number],
                color=SERIES[number],
                markersize=4.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                label=fit.form,
            )
        set_powers(axes, "x", min(work) / 1.6, max(work) * 1.6)
        axes.set_xlabel("parameters × tokens")
        axes.set_ylabel("log residual × 100")
        add_legend(axes, len(fits))

    said = "log(observed) - log(predicted), times 100: about percent. A trend says that the law does not hold."
    return draw("law-residuals", "Residuals", said, paint)
