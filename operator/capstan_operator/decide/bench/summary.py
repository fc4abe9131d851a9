"""From the report's summary to status."""

from capstan_operator.api.benchmark_status import (
    BenchmarkStatus,
    ComparisonStatus,
    EnvironmentStatus,
    FigureStatus,
    ReportStatus,
)
from capstan_operator.decide.bench.cases import case_text
from capstan_runtime.contract.benchmark import Comparison, Environment, Figure, Summary

DIGITS = 6
"""Significant ones, of numbers on status."""


def with_summary(status: BenchmarkStatus, summary: Summary, pod: str, judged: str) -> BenchmarkStatus:
    """`status` with what the report in `pod` found, and nothing of what an earlier one did."""
    return status.model_copy(
        update={
            "result": summary.headline,
            "verdict": summary.verdict,
            "verdict_reason": summary.reason if summary.verdict else None,
            "figures": [_figure(figure) for figure in summary.figures],
            "comparisons": [_comparison(comparison) for comparison in summary.comparisons],
            "environment": _environment(summary.environment, summary.fingerprint),
            "report": ReportStatus(place=summary.place, digest=summary.result_digest, log=pod, judged=judged),
        }
    )


def without_other(status: BenchmarkStatus, judged: str) -> BenchmarkStatus:
    """`status` without what was judged by another baseline or gate than that of digest `judged`. What was measured
    stays."""
    if status.report is None or status.report.judged == judged:
        return status
    return status.model_copy(update={"verdict": None, "verdict_reason": None, "comparisons": [], "report": None})


def _rounded(value: float) -> float:
    """What a person reads. All digits are in result.json."""
    return float(f"{value:.{DIGITS}g}")


def _figure(figure: Figure) -> FigureStatus:
    return FigureStatus(
        metric=figure.metric,
        case=case_text(figure.labels) or None,
        unit=figure.unit,
        n=figure.n,
        median=_rounded(figure.median),
        low=_rounded(figure.low),
        high=_rounded(figure.high),
    )


def _comparison(comparison: Comparison) -> ComparisonStatus:
    return ComparisonStatus(
        metric=comparison.metric,
        case=case_text(comparison.labels) or None,
        baseline=_rounded(comparison.baseline),
        candidate=_rounded(comparison.candidate),
        effect_percent=_rounded(comparison.effect_percent),
        low_percent=_rounded(comparison.low_percent),
        high_percent=_rounded(comparison.high_percent),
        p_value=_rounded(comparison.p_value),
        verdict=comparison.verdict,
    )


def _environment(environment: Environment, fingerprint: str) -> EnvironmentStatus:
    return EnvironmentStatus(
        fingerprint=fingerprint,
        cpu=environment.cpu,
        cores=environment.cores,
        gpus=list(environment.gpus),
        driver=environment.driver,
        kernel=environment.kernel,
        packages=environment.packages,
        image=environment.image,
    )
