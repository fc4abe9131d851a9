"""A candidate against its baseline: whether they may be compared at all, what differs, and what that means."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capstan_runtime.bench.result import Series
from capstan_runtime.bench.statistics import holm
from capstan_runtime.bench.statistics.effect import Effect, can_pair, measure_effect
from capstan_runtime.bench.statistics.verdict import Judged, Rule, judge, machine_changed, overall
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import UNKNOWN_GPU, Comparison, Environment, GateTask, Verdict

DEFAULT_GATE = GateTask(minimum_effect_percent=5.0, confidence=0.95)
"""Of a comparison without a gate: the defaults of spec.gate."""
_LONGEST_REASON = 400
_LONGEST_VALUE = 60
_COMPARED_OF_SPECS = ("workload", "job", "pods")
"""What is measured; the rest says how often, where it is kept and how it is judged."""
_Place = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Side:
    """One arm: its series, and how long the control took in each of its trials."""

    series: tuple[Series, ...]
    control_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """What the comparison says."""

    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    reason: str
    """In one sentence."""


def compare(
    baseline: Side, candidate: Side, gate: GateTask, seed: int, repetitions: Mapping[str, int] | None = None
) -> Compared:
    """The metrics that `gate` names, or else the headline metrics, each against the baseline, and the verdict on all.

    `repetitions` of every trial, by its id: given when the baseline was run in turns with the candidate. Then the same
    repetition of both is a pair, and what slowed both cancels out, where there are enough of them to show anything; and
    the control, which tells whether a baseline that was kept is of the machine as it is now, is not needed.
    """
    rule = Rule(gate.minimum_effect_percent, gate.confidence)
    then, now = _judged(baseline.series, gate), _judged(candidate.series, gate)
    problems = [*_unknown_metrics(candidate.series, gate), *_one_sided(baseline, candidate, then, now)]
    shared = [place for place in now if place in then]
    drift: Effect | None = None
    if repetitions is None and shared:
        drift, problem = _drift(baseline, candidate, rule, seed)
        if problem is not None:
            return Compared((), "Inconclusive", problem)
    effects: dict[_Place, Effect] = {}
    refused: dict[_Place, str] = {}
    allowed_p = rule.allowed_p / max(1, len(shared))
    for place in shared:
        if (problem := _unfit(then[place], now[place])) is not None:
            refused[place] = problem
            continue
        try:
            effects[place] = _effect(then[place], now[place], rule, allowed_p, seed, repetitions)
        except ValueError as error:
            refused[place] = str(error)
    adjusted = dict(zip(effects, holm.adjust([effect.p_value for effect in effects.values()]), strict=True))
    comparisons = []
    for place in shared:
        if place in effects:
            effect = effects[place]
            judged = judge(effect, now[place].better, adjusted[place], rule, len(effects), drift)
            comparisons.append(_comparison(then[place], now[place], judged, effect, adjusted[place]))
        else:
            judged = Judged("Inconclusive", refused[place])
            comparisons.append(_comparison(then[place], now[place], judged, None, 1.0))
    return _told(comparisons, problems)


def _judged(series: Sequence[Series], gate: GateTask) -> dict[_Place, Series]:
    wanted = [one for one in series if (one.metric in gate.metrics if gate.metrics else one.is_headline)]
    return {place(one): one for one in wanted if one.better != "neither"}


def place(series: Series) -> _Place:
    """What tells a series from the others of its arm."""
    return series.metric, tuple(sorted(series.labels.items()))


def _unknown_metrics(series: Sequence[Series], gate: GateTask) -> list[str]:
    directions = {one.metric: one.better for one in series}
    judgeable = sorted(metric for metric, better in directions.items() if better != "neither")
    problems = []
    for metric in gate.metrics:
        if metric not in directions:
            choices = f"choose from {', '.join(judgeable)}" if judgeable else "nothing was measured"
            problems.append(f"gate.metrics: {metric} is not measured; {choices}")
        elif directions[metric] == "neither":
            problems.append(f"gate.metrics: of {metric} neither more nor less is better; remove it")
    return problems


def _one_sided(
    baseline: Side, candidate: Side, then: Mapping[_Place, Series], now: Mapping[_Place, Series]
) -> list[str]:
    sides = (("now", candidate, now, then), ("in the baseline", baseline, then, now))
    problems = []
    for where, side, own, others in sides:
        measured = {place(one) for one in side.series}
        for missing in (one for key, one in others.items() if key not in own):
            what = "is no headline" if place(missing) in measured else "is missing"
            problems.append(f"{name(missing)} {what} {where}, so it cannot be compared")
    return problems


def _unfit(then: Series, now: Series) -> str | None:
    """Why these two cannot be compared whatever their values are; None: they can be."""
    if withdrawn := [where for where, one in (("now", now), ("in the baseline", then)) if one.is_withdrawn]:
        return f"what measured it was in the way {' and '.join(withdrawn)} (see the notes), so it cannot be compared"
    if then.world == now.world:
        return None
    return (
        f"the number of ranks must be the same, and was {then.world} in the baseline and {now.world} now; workload "
        "scaling compares numbers of workers"
    )


def _drift(baseline: Side, candidate: Side, rule: Rule, seed: int) -> tuple[Effect | None, str | None]:
    if not baseline.control_seconds or not candidate.control_seconds:
        missing = "the baseline's" if not baseline.control_seconds else "these"
        return None, (
            f"{missing} runs did not time the control, so whether the machine itself changed is not known; "
            "baseline.benchmark.rerun: true measures both in turns"
        )
    rng = np.random.default_rng(seed)
    drift = measure_effect(baseline.control_seconds, candidate.control_seconds, rule.confidence, rng)
    return drift, machine_changed(drift, rule)


def _effect(
    then: Series, now: Series, rule: Rule, allowed_p: float, seed: int, repetitions: Mapping[str, int] | None
) -> Effect:
    rng = generator(seed, now)
    blocks = _blocks(then, now, repetitions) if repetitions is not None else None
    try:
        if blocks is not None and can_pair(len(blocks[0]), allowed_p):
            return measure_effect(*blocks, rule.confidence, rng, pair=True)
        return measure_effect(then.values, now.values, rule.confidence, rng)
    except ValueError as error:
        bad = [
            f"{one.arm} {trial}: {words.quantity(value, one.unit)}"
            for one in (then, now)
            for trial, value in zip(one.trials, one.values, strict=True)
            if not value >= 0
        ]
        raise ValueError(f"{error} ({', '.join(bad)})" if bad else str(error)) from error


def _blocks(
    then: Series, now: Series, repetitions: Mapping[str, int]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The values of both by repetition. None: they do not have the same ones, each once."""
    both = []
    for one in (then, now):
        values = {repetitions.get(trial): value for trial, value in zip(one.trials, one.values, strict=True)}
        if None in values or len(values) != len(one.values):
            return None
        both.append(values)
    if both[0].keys() != both[1].keys():
        return None
    return tuple(both[0].values()), tuple(both[1][repetition] for repetition in both[0])


def generator(seed: int, series: Series) -> np.random.Generator:
    """Chance of a metric's own, so it does not depend on which others there are."""
    return np.random.default_rng([seed, zlib.crc32(repr(place(series)).encode())])


def _comparison(then: Series, now: Series, judged: Judged, effect: Effect | None, p_value: float) -> Comparison:
    return Comparison(
        metric=now.metric,
        labels=now.labels,
        unit=now.unit,
        baseline=float(np.median(then.values)),
        candidate=float(np.median(now.values)),
        effect_percent=effect.percent if effect else np.nan,
        low_percent=effect.low_percent if effect else np.nan,
        high_percent=effect.high_percent if effect else np.nan,
        p_value=p_value,
        verdict=judged.verdict,
        reason=judged.reason,
    )


def _told(comparisons: Sequence[Comparison], problems: Sequence[str]) -> Compared:
    found: list[Verdict] = [one.verdict for one in comparisons]
    verdict = overall([*found, "Inconclusive"] if problems else found)
    decisive = [f"{name(one)}: {one.reason}" for one in comparisons if one.verdict == verdict]
    if verdict == "Inconclusive":
        decisive = [*problems, *decisive]
    if not decisive:
        decisive = ["nothing that was measured can be judged: no metric is a headline; name some in gate.metrics"]
    more = f"; and {len(decisive) - 1} more" if len(decisive) > 1 else ""
    return Compared(tuple(comparisons), verdict, f"{decisive[0][:_LONGEST_REASON]}{more}")


def name(one: Series | Comparison) -> str:
    """The metric and where it was measured, for sentences."""
    where = ", ".join(f"{words.words(label)} {words.words(value)}" for label, value in one.labels.items())
    return f"{words.words(one.metric)}{f' at {where}' if where else ''}"


def unlike(environments: Sequence[Environment], whose: str) -> str | None:
    """Why trials that ran on these cannot stand for one thing; None: they are alike."""
    for other in environments[1:]:
        if (problem := hardware_difference(environments[0], other)) is not None:
            return f"{whose} trials ran on unlike hardware: {problem}; pin them to alike nodes (nodeSelector)"
    return None


def hardware_difference(one: Environment, other: Environment) -> str | None:
    """The first field that differs, with both values; None: the same hardware."""
    if UNKNOWN_GPU in (*one.gpus, *other.gpus):
        return (
            "which GPUs there are is not known (nvidia-smi does not tell those of CUDA_VISIBLE_DEVICES); make it work "
            "in the pod, or set CUDA_VISIBLE_DEVICES=-1 where none is used"
        )
    if one.fingerprint == other.fingerprint:
        return None
    ours, theirs = one.hardware, other.hardware
    field = next(field for field in ours if ours[field] != theirs[field])
    return f"{field} {_shown(ours[field])} and {_shown(theirs[field])}"


def software_differences(baseline: Environment, candidate: Environment) -> tuple[str, ...]:
    """`jax 0.10.1 -> 0.10.2`: what differs and is not refused, because it may be what is compared."""
    names = sorted(baseline.packages.keys() | candidate.packages.keys())
    pairs = [
        ("kernel", baseline.kernel, candidate.kernel),
        ("python", baseline.python, candidate.python),
        ("image", baseline.image, candidate.image),
        ("governor", baseline.governor, candidate.governor),
        *((package, baseline.packages.get(package), candidate.packages.get(package)) for package in names),
    ]
    return tuple(f"{what} {_shown(then)} -> {_shown(now)}" for what, then, now in pairs if then != now)


def spec_differences(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> tuple[str, ...]:
    """`job.workers.max 1 -> 4`: what of workload, job and pods two specs say differently. It may be what is compared,
    such as two models, so it is told and not refused."""
    then, now = _leaves(baseline), _leaves(candidate)
    fields = [
        field for field in (*now, *(field for field in then if field not in now)) if then.get(field) != now.get(field)
    ]
    return tuple(f"{field} {then.get(field, 'none')} -> {now.get(field, 'none')}" for field in fields)


def _leaves(spec: Mapping[str, Any]) -> dict[str, str]:
    """By dotted path."""
    found: dict[str, str] = {}
    todo = [(key, spec[key]) for key in reversed(_COMPARED_OF_SPECS) if key in spec]
    while todo:
        path, value = todo.pop()
        if isinstance(value, Mapping) and value:
            todo += [(f"{path}.{key}", value[key]) for key in reversed(value)]
        else:
            found[path] = words.shortened(json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
