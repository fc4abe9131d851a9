"""What a Benchmark found, made shorter step by step: series to figures, figures to one line, a result to 4 KiB."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from capstan_runtime.bench.analysis.compare import generator, name
from capstan_runtime.bench.result import BenchmarkResult, Series
from capstan_runtime.bench.statistics.bootstrap import interval
from capstan_runtime.bench.statistics.bootstrap import median as median_of
from capstan_runtime.bench.statistics.outliers import find_outliers
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Comparison, Figure, Summary

LONGEST_SUMMARY = 4096
"""Bytes. Kubernetes keeps no more of a termination message, and cuts without saying so."""
_LONGEST_TEXT = 500
_WIDE = 0.05
"""Part of the median from which on one side of an interval is not told by ±."""
_LOPSIDED = 2
"""How many times as long as the other one side may be for ±."""
_USUAL_CONFIDENCE = 0.95


def build_figures(series: Sequence[Series], confidence: float, seed: int) -> tuple[Figure, ...]:
    """Of the candidate's series, headlines first: the median over trials, with its interval."""
    candidates = [one for one in series if one.arm == "candidate"]
    return tuple(_figure(one, confidence, seed) for one in sorted(candidates, key=lambda one: not one.is_shown_first))


def _figure(one: Series, confidence: float, seed: int) -> Figure:
    values = [value for value in one.values if not math.isnan(value)]
    if not values:
        low, high = math.nan, math.nan
    elif words.held_by_all(len(values)) < confidence:
        low, high = min(values), max(values)  # as near to that confidence as one gets
    else:
        low, high = interval(values, median_of, confidence, generator(seed, one))
    return Figure(
        metric=one.metric,
        labels=one.labels,
        unit=one.unit,
        better=one.better,
        n=len(values),
        median=float(np.median(values)) if values else math.nan,
        low=low,
        high=high,
        outliers=len(find_outliers(values)),
        is_headline=one.is_shown_first,
    )


def outlier_notes(series: Sequence[Series]) -> Iterator[str]:
    """One sentence for each headline metric of which trials lie far from the others. They stay in."""
    for one in series:
        far = find_outliers(one.values) if one.is_shown_first else []
        if far:
            told = ", ".join(f"{one.trials[index]} ({words.quantity(one.values[index], one.unit)})" for index in far)
            yield (
                f"{name(one)}: far from the other {one.arm} trials, whose median is "
                f"{words.quantity(float(np.median(one.values)), one.unit)}, and kept: {told}"
            )


def headline(figures: Sequence[Figure]) -> str:
    """`1,204 samples/s ±1.3 % at batch size 32`: the last case of the first headline metric, in the order of the
    report's tables: the largest number, the last name. It is not the best one, which may be another in each Benchmark.

    An interval that is wide or lopsided is told by its ends: `933.5 samples/s (681 to 1,640)`. Fewer than six runs are
    told: their interval is that of all runs, and no surer."""
    if not figures:
        return "nothing was measured"
    first = figures[0]
    cases = [figure for figure in figures if figure.metric == first.metric and figure.is_headline == first.is_headline]
    cases = [figure for figure in cases if not math.isnan(figure.median)] or cases
    last = cases[-1]
    where = ", ".join(f"{words.words(label)} {words.words(value)}" for label, value in last.labels.items())
    return f"{words.quantity(last.median, last.unit)}{_spread(last)}{f' at {where}' if where else ''}"


def _spread(figure: Figure) -> str:
    if figure.n < 2 or not math.isfinite(figure.median):
        return ""
    runs = f" in {figure.n} runs" if words.held_by_all(figure.n) < _USUAL_CONFIDENCE else ""
    below, above = figure.median - figure.low, figure.high - figure.median
    wider, narrower = max(below, above), min(below, above)
    if wider > _WIDE * abs(figure.median) or wider > _LOPSIDED * narrower:
        scale, _ = words.scale_of(figure.median, figure.unit)
        return f" ({words.number(figure.low / scale)} to {words.number(figure.high / scale)}{runs})"
    percent = 100 * wider / abs(figure.median) if wider else 0.0
    return f" ±{words.percent(percent, is_signed=False)}{runs}"


def summarize(result: BenchmarkResult, digest: str, place: str) -> str:
    """The JSON of the Summary, in at most LONGEST_SUMMARY bytes: the longest lists that fit, comparisons before
    figures, and how many were left out. Numbers that are not finite cannot be on status, so what holds one is left out
    too."""
    comparisons = sorted((one for one in result.comparisons if _is_finite(one)), key=_urgency)
    figures = [one for one in result.figures if all(map(math.isfinite, (one.median, one.low, one.high)))]
    every = len(result.comparisons) + len(result.figures)
    text = ""
    for kept in range(len(comparisons) + len(figures), -1, -1):
        some = comparisons[:kept], figures[: max(0, kept - len(comparisons))]
        text = _summary(result, digest, place, *some, every - kept)
        if len(text.encode()) <= LONGEST_SUMMARY:
            return text
    raise ValueError(
        f"the summary takes {len(text.encode())} bytes without any figure; give the environment less to say"
    )


def _summary(
    result: BenchmarkResult,
    digest: str,
    place: str,
    comparisons: Sequence[Comparison],
    figures: Sequence[Figure],
    left_out: int,
) -> str:
    environment = result.environments[0]
    return Summary(
        headline=result.headline[:_LONGEST_TEXT],
        verdict=result.verdict,
        reason=result.reason[:_LONGEST_TEXT],
        figures=tuple(figures),
        comparisons=tuple(one.model_copy(update={"reason": one.reason[:_LONGEST_TEXT]}) for one in comparisons),
        left_out=left_out,
        environment=environment,
        fingerprint=environment.fingerprint,
        result_digest=digest,
        place=place,
    ).model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


def _is_finite(one: Comparison) -> bool:
    numbers = (one.baseline, one.candidate, one.effect_percent, one.low_percent, one.high_percent)
    return all(map(math.isfinite, numbers))


def _urgency(one: Comparison) -> int:
    return ("Regressed", "Inconclusive", "Improved", "Passed").index(one.verdict)
