"""Scaling laws of the runs that a Benchmark was given, or made."""

from collections.abc import Iterator
from typing import Any

from capstan_runtime.bench.analysis.collect import Trials, natural_order
from capstan_runtime.bench.laws.fit import LawPoint, fit_law
from capstan_runtime.bench.laws.runs import FEWEST_RUNS
from capstan_runtime.bench.result import Law, Series
from capstan_runtime.bench.workloads.scaling_law import BUDGETS, LOSSES, SIZES
from capstan_runtime.contract.benchmark import TrainingRecord, TrialRef
from capstan_runtime.errors import ConfigError

_VALIDATION, _TRAINING = "validation_loss", "loss"
_ON_TRAINING_DATA = (
    "loss: is that of the last training steps, which the order of the data moves; hold out validation samples in "
    "spec.job to fit to validation_loss"
)


def derive(series: tuple[Series, ...], trials: Trials, confidence: float, seed: int) -> dict[str, Any]:
    """`law` and `headline`, and of a grid also `series`: the final loss of each of its cases, by repetition.
    Repetitions have other seeds, and each is a run of its own. `trials` are those of one arm; of the baseline's no law
    is fitted.

    Raises ConfigError when there are too few runs, or runs that did not tell their loss.
    """
    given = _given(trials)
    if given:
        law = _fit(given, confidence, seed)
        return {"law": law, "headline": _headline(law)}
    metric = _metric(trials)
    losses = tuple(_losses(trials, metric))
    if any(each.arm == "baseline" for each in losses):
        return {"series": losses}
    law = _fit([_point(record, metric) for _, record in trials.records], confidence, seed)
    law = _distrust(law) if metric == _TRAINING else law
    return {"law": law, "headline": _headline(law), "series": losses}


def _fit(points: list[LawPoint], confidence: float, seed: int) -> Law:
    if len(points) < FEWEST_RUNS:
        raise ConfigError(f"workload.scalingLaw: {len(points)} runs determine no law; give {FEWEST_RUNS} or more")
    try:
        return fit_law(points, confidence, seed)
    except ValueError as error:
        raise ConfigError(f"workload.scalingLaw.{error}") from error


def _headline(law: Law) -> str:
    """Of the first law that is to be believed; why none is stands in the report."""
    for fit in law.fits:
        if fit.is_trusted:
            share = fit.derived[0]
            return f"best N grows as compute^{share.value:.2f} ({share.low:.2f} – {share.high:.2f}, {fit.form})"
    return "no law to rely on (see the report)"


def _distrust(law: Law) -> Law:
    fits = [
        fit.model_copy(update={"is_trusted": False, "warnings": (*fit.warnings, _ON_TRAINING_DATA)}) for fit in law.fits
    ]
    return law.model_copy(update={"fits": tuple(fits)})


def _given(trials: Trials) -> list[LawPoint]:
    """The runs of `points` and `file`: one trial, whose raw samples they are."""
    for _, result in trials.results:
        samples = {point.metric: point.samples for point in result.points}
        if {SIZES, BUDGETS, LOSSES} <= samples.keys():
            return list(zip(samples[SIZES], samples[BUDGETS], samples[LOSSES], strict=True))
    return []


def _metric(trials: Trials) -> str:
    """The loss that every run has: of data that it was not trained on, if possible."""
    for metric in (_VALIDATION, _TRAINING):
        missing = [ref.trial for ref, record in trials.records if metric not in record.metrics]
        if not missing:
            return metric
    raise ConfigError(
        f"workload.scalingLaw.grid: trial {missing[0]} told neither validation_loss nor loss; let spec.job validate"
    )


def _point(record: TrainingRecord, metric: str) -> LawPoint:
    """Tokens where samples are made of them, else samples."""
    seen = record.steps[-1] * record.samples_per_step * (record.tokens_per_sample or 1)
    return float(record.parameters), float(seen), record.metrics[metric]


def _losses(trials: Trials, metric: str) -> Iterator[Series]:
    cases: dict[tuple[tuple[str, str], ...], list[tuple[TrialRef, float]]] = {}
    for ref, record in sorted(trials.records, key=lambda kept: kept[0].repetition):
        cases.setdefault(tuple(sorted(ref.labels.items())), []).append((ref, record.metrics[metric]))
    for labels in sorted(cases, key=lambda labels: natural_order(dict(labels))):
        yield Series(
            metric=metric,
            labels=dict(labels),
            unit="nats",
            better="lower",
            arm=cases[labels][0][0].arm,
            values=tuple(loss for _, loss in cases[labels]),
            trials=tuple(ref.trial for ref, _ in cases[labels]),
            is_headline=True,
        )
