"""What more workers bring: speed-up and efficiency of a TrainingJob over numbers of workers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.result import ScalingRow, Series
from capstan_runtime.bench.statistics.bootstrap import RESAMPLES, Floats, ends, interval, median
from capstan_runtime.contract.benchmark import Arm

_THROUGHPUT = "samples_per_second"
"""Of tokens the speed-up is the same: a sample has as many of them whatever the number of workers."""
_FEWEST_PAIRS = 2


@dataclass(frozen=True, slots=True)
class _Case:
    """Throughput with one number of workers, and the trials that it is of, by repetition."""

    mode: str
    workers: int
    arm: Arm
    throughput: dict[int, float]
    trials: dict[int, str]
    """Their ids."""
    world: int
    """Ranks."""

    @property
    def median(self) -> float:
        return float(np.median(list(self.throughput.values())))


@dataclass(frozen=True, slots=True)
class _Speedup:
    """Of one case, over the base."""

    value: float
    low: float
    high: float


def derive(series: tuple[Series, ...], trials: Trials, confidence: float, seed: int) -> dict[str, Any]:
    """`scaling`: a row for each mode and number of workers; `series`: speed-up and efficiency of every repetition;
    `headline`. Nothing where no trial ran with one worker. `series` and `trials` are those of one arm.

    Speed-up is throughput over that of one worker: weak scaling does n times the work in as long, so its speed-up is
    that of throughput, too, and efficiency is speed-up over n in both. One worker is the same configuration in both
    modes, so it is measured once and is the base of both. Repetitions are paired, since what slows a machine for a
    while slows both; where pairs are missing, medians are divided.
    """
    rng = np.random.default_rng(seed)
    cases = _cases(series, trials)
    alone = [case for case in cases if case.workers == 1]
    if not alone:
        return {}
    bases = {mode: replace(alone[0], mode=mode) for mode in dict.fromkeys(case.mode for case in cases)}
    bases |= {case.mode: case for case in alone}
    several = [case for case in cases if case.workers > 1]
    compared = [(case, bases[case.mode]) for case in sorted([*bases.values(), *several], key=_order)]
    rows = tuple(_row(case, _speedup(case, base, confidence, rng)) for case, base in compared)
    added = tuple(each for case, base in compared for each in _added(case, base))
    return {"scaling": rows, "series": added, "headline": _headline(rows)}


def _cases(series: Iterable[Series], trials: Trials) -> list[_Case]:
    """By mode and number of workers."""
    repetitions = {ref.trial: ref.repetition for ref, _ in (*trials.results, *trials.records)}
    found = [
        _Case(
            mode=each.labels["mode"],
            workers=int(each.labels["workers"]),
            arm=each.arm,
            throughput={repetitions[trial]: value for trial, value in zip(each.trials, each.values, strict=True)},
            trials={repetitions[trial]: trial for trial in each.trials},
            world=each.world,
        )
        for each in series
        if each.metric == _THROUGHPUT and {"mode", "workers"} <= each.labels.keys()
    ]
    return sorted(found, key=_order)


def _order(case: _Case) -> tuple[str, int]:
    return case.mode, case.workers


def _ratios(case: _Case, base: _Case) -> dict[int, float]:
    """By repetition, of those that both have."""
    return {
        repetition: value / base.throughput[repetition]
        for repetition, value in sorted(case.throughput.items())
        if repetition in base.throughput
    }


def _speedup(case: _Case, base: _Case, confidence: float, rng: np.random.Generator) -> _Speedup:
    ratios = list(_ratios(case, base).values())
    if len(ratios) >= _FEWEST_PAIRS:
        return _Speedup(float(np.median(ratios)), *interval(ratios, median, confidence, rng))
    resampled = _resampled_medians(case, rng) / _resampled_medians(base, rng)
    return _Speedup(case.median / base.median, *ends(resampled, confidence))


def _resampled_medians(case: _Case, rng: np.random.Generator) -> Floats:
    values = np.asarray(list(case.throughput.values()))
    return median(values[rng.integers(0, len(values), (RESAMPLES, len(values)))])


def _row(case: _Case, speedup: _Speedup) -> ScalingRow:
    return ScalingRow(
        mode=case.mode,
        workers=case.workers,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        efficiency=speedup.value / case.workers,
        efficiency_low=speedup.low / case.workers,
        efficiency_high=speedup.high / case.workers,
        serial_fraction=_serial_fraction(case, speedup.value),
    )


def _headline(rows: Iterable[ScalingRow]) -> str:
    """Of the most workers; strong scaling before weak."""
    most = max(rows, key=lambda row: (row.workers > 1, row.mode == "strong", row.workers))
    return (
        f"{most.speedup:.2f}x with {most.workers} workers, efficiency {most.efficiency:.2f} "
        f"({most.efficiency_low:.2f} – {most.efficiency_high:.2f})"
    )


def _serial_fraction(case: _Case, speedup: float) -> float | None:
    """Karp and Flatt (1990): (1/speedup - 1/n) / (1 - 1/n). It stays the same when a fixed part of the work is not
    divided, and grows with n when communication costs more and more. Below 0 the speed-up is more than n, as when the
    parts fit into caches."""
    if case.mode != "strong" or case.workers == 1:
        return None
    return (1 / speedup - 1 / case.workers) / (1 - 1 / case.workers)


def _added(case: _Case, base: _Case) -> Iterator[Series]:
    """One value for each repetition that both have. Not of one worker, where it is 1."""
    ratios = _ratios(case, base)
    if case.workers == 1 or not ratios:
        return
    for metric, unit, divisor in (("speedup", "x", 1), ("efficiency", "1", case.workers)):
        yield Series(
            metric=metric,
            labels={"mode": case.mode, "workers": str(case.workers)},
            unit=unit,
            better="higher",
            arm=case.arm,
            values=tuple(value / divisor for value in ratios.values()),
            trials=tuple(case.trials[repetition] for repetition in ratios),
            world=case.world,
            is_headline=metric == "efficiency",
        )
