"""A result in one line, and in 4 KiB."""

import json
import math
from typing import Any

import pytest

from capstan_runtime.bench.analysis.summary import (
    LONGEST_SUMMARY,
    build_figures,
    headline,
    outlier_notes,
    summarize,
)
from capstan_runtime.bench.result import BenchmarkResult, Series
from capstan_runtime.contract.benchmark import Comparison, Environment, Figure, Summary

HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2")


def figure(median: float, low: float, high: float, **more: Any) -> Figure:
    fields = {"metric": "samples_per_second", "unit": "samples/s", "better": "higher", "n": 5, "is_headline": True}
    return Figure.model_validate(fields | {"median": median, "low": low, "high": high} | more)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ([figure(1204, 1190, 1220, labels={"batchSize": "32"})], "1,204 samples/s ±1.3 % in 5 runs at batch size 32"),
        ([figure(1204, 1204, 1204, n=1)], "1,204 samples/s"),
        (
            [
                figure(300, 297, 303, labels={"batchSize": "1"}, n=6),
                figure(100, 99, 101, labels={"batchSize": "8"}, n=6),
            ],
            "100 samples/s ±1.0 % at batch size 8",
        ),
        ([figure(0.0123, 0.012, 0.0125, unit="s", better="lower")], "12.3 ms ±2.4 % in 5 runs"),
        ([figure(3.2e9, 3.1e9, 3.3e9, unit="B/s")], "3.2 GB/s ±3.1 % in 5 runs"),
        ([figure(7.25e10, 7.2e10, 7.3e10, unit="FLOP/s")], "72.5 GFLOP/s ±0.7 % in 5 runs"),
        ([figure(933.5, 681, 1640, n=3)], "933.5 samples/s (681 to 1,640 in 3 runs)"),
        ([figure(0.0123, 0.0119, 0.02, unit="s", n=8)], "12.3 ms (11.9 to 20)"),
        ([figure(100, 99.9, 103, n=6)], "100 samples/s (99.9 to 103)"),
        ([figure(math.inf, 1.0, math.inf, unit="s", better="lower")], "∞ s"),
        (
            [figure(math.nan, math.nan, math.nan, labels={"a": "1"}), figure(2.0, 2.0, 2.0, labels={"a": "2"})],
            "2 samples/s ±0.0 % in 5 runs at a 2",
        ),
        ([], "nothing was measured"),
    ],
)
def test_headlines(figures: list[Figure], told: str) -> None:
    assert headline(figures) == told


def series(values: tuple[float, ...], metric: str = "m", **more: Any) -> Series:
    fields = {"metric": metric, "unit": "s", "better": "lower", "arm": "candidate"}
    trials = tuple(f"t{index:02d}" for index in range(len(values)))
    return Series.model_validate(fields | {"values": values, "trials": trials} | more)


def test_figures_are_the_candidates_headlines_first() -> None:
    figures = build_figures(
        [
            series((1.0, 2.0, 3.0, 4.0, 50.0), "a"),
            series((1.0, 1.0, 1.0, 1.0, math.nan), "b", is_headline=True),
            series((9.0,), "a", arm="baseline"),
        ],
        0.95,
        seed=1,
    )
    assert [(one.metric, one.n, one.median, one.low, one.high, one.outliers) for one in figures] == [
        ("b", 4, 1.0, 1.0, 1.0, 0),
        ("a", 5, 3.0, 1.0, 50.0, 1),
    ]


def test_too_few_runs_for_the_confidence_have_all_of_them_as_their_interval() -> None:
    (found,) = build_figures([series((1.0, 2.0, 3.0, 4.0))], 0.88, seed=1)
    assert (found.low, found.high) == (1.0, 4.0)


def test_outliers_are_told_by_trial_and_value() -> None:
    notes = list(outlier_notes([series((1.0, 1.1, 0.9, 1.0, 7.0), is_headline=True, labels={"workers": "2"})]))
    assert notes == ["m at workers 2: far from the other candidate trials, whose median is 1 s, and kept: t04 (7 s)"]


def result(figures: tuple[Figure, ...], comparisons: tuple[Comparison, ...] = (), **more: Any) -> BenchmarkResult:
    return BenchmarkResult(
        name="bm",
        namespace="team",
        uid="u",
        workload="inference",
        spec={},
        seed=0,
        started_at=1,
        finished_at=2,
        environments=(HERE,),
        headline="3 s",
        series=(),
        figures=figures,
        comparisons=comparisons,
        **{"reason": "because", **more},
    )


def comparison(verdict: str, **more: Any) -> Comparison:
    fields = {"metric": "m", "unit": "s", "baseline": 1.0, "candidate": 2.0, "effect_percent": 100.0}
    fields |= {"low_percent": 90.0, "high_percent": 110.0, "p_value": 0.01, "reason": "é" * 400}
    return Comparison.model_validate(fields | {"verdict": verdict} | more)


def test_what_does_not_fit_is_left_out_and_counted_the_worst_comparisons_last() -> None:
    figures = tuple(figure(1.0, 0.5, 1.5, labels={"batchSize": str(index)}) for index in range(40))
    comparisons = (comparison("Passed"), comparison("Improved"), comparison("Regressed"), comparison("Inconclusive"))
    text = summarize(result(figures, comparisons, reason="é" * 900), "blake3:" + 64 * "0", "/data/team/bm/u")
    assert len(text.encode()) <= LONGEST_SUMMARY
    summary = Summary.model_validate_json(text)
    kept = [one.verdict for one in summary.comparisons]
    assert kept == ["Regressed", "Inconclusive", "Improved", "Passed"][: len(kept)]
    assert kept
    assert len(summary.comparisons) + len(summary.figures) + summary.left_out == 44


def test_all_that_fits_is_there() -> None:
    figures = (figure(1.0, 0.5, 1.5), figure(2.0, 1.5, 2.5, metric="other"))
    summary = Summary.model_validate_json(summarize(result(figures), "blake3:" + 64 * "0", "/data/team/bm/u"))
    assert summary == Summary(
        headline="3 s",
        reason="because",
        figures=figures,
        environment=HERE,
        fingerprint=HERE.fingerprint,
        result_digest="blake3:" + 64 * "0",
        place="/data/team/bm/u",
    )


def test_status_has_no_numbers_that_are_not_finite() -> None:
    figures = (figure(math.inf, 1.0, math.inf), figure(1.0, 1.0, 1.0))
    comparisons = (comparison("Regressed", effect_percent=math.inf, high_percent=math.inf),)
    text = summarize(result(figures, comparisons), "blake3:" + 64 * "0", "/data/team/bm/u")
    summary = json.loads(text)
    assert ([one["median"] for one in summary["figures"]], summary["leftOut"]) == ([1.0], 2)
    assert "comparisons" not in summary
