"""The trials of a Benchmark, read from its store, and the series of figures they make."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from capstan_runtime.bench.result import QUANTILE_PERCENTS, Distribution, Series
from capstan_runtime.bench.trial import result_key
from capstan_runtime.checkpoint.store import ObjectMissing, Readable, Store
from capstan_runtime.contract.benchmark import (
    SCHEMA_VERSION,
    Arm,
    Environment,
    Point,
    TrainingRecord,
    TrialRef,
    TrialResult,
)
from capstan_runtime.contract.sizes import size_bytes
from capstan_runtime.errors import ConfigError, StoreUnavailable

_Kept = TypeVar("_Kept", TrialResult, TrainingRecord)
_RECORD = re.compile(r"record\.(\d+)\.r0\.json")
"""Rank 0's of one attempt of a TrainingJob; the number is the attempt's fence."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Trials:
    """What the finished trials of a Benchmark measured, of both arms, in the order in which they ran."""

    results: tuple[tuple[TrialRef, TrialResult], ...] = ()
    """Of trials in pods of their own."""
    records: tuple[tuple[TrialRef, TrainingRecord], ...] = ()
    """Of trials that were TrainingJobs: rank 0's."""
    peers: tuple[tuple[TrialRef, Environment], ...] = ()
    """What the other ranks of these ran on."""

    def of(self, arm: Arm) -> "Trials":
        """Those of one arm."""
        return Trials(
            results=tuple(pair for pair in self.results if pair[0].arm == arm),
            records=tuple(pair for pair in self.records if pair[0].arm == arm),
            peers=tuple(pair for pair in self.peers if pair[0].arm == arm),
        )

    @property
    def environments(self) -> tuple[Environment, ...]:
        """Of every rank of every trial; first those of rank 0."""
        peers = [peer for _, result in self.results for peer in result.peers]
        return (*(kept.environment for kept in self.kept), *peers, *(peer for _, peer in self.peers))

    @property
    def control_seconds(self) -> tuple[float, ...]:
        """Median of the fixed piece of arithmetic in each trial that timed it."""
        return tuple(float(np.median(kept.control_seconds)) for kept in self.kept if kept.control_seconds)

    @property
    def kept(self) -> list[TrialResult | TrainingRecord]:
        """Every file."""
        return [*(result for _, result in self.results), *(record for _, record in self.records)]


def read_trials(store: Store, benchmark: str, uid: str, refs: Sequence[TrialRef]) -> Trials:
    """The trials of `refs`, from the store of their namespace.

    Raises StoreUnavailable when a file is not there (another node may have written it a moment ago), and ConfigError
    when one cannot be used; both name the trial. OSError as the store does.
    """
    results, records, peers = [], [], []
    for ref in sorted(refs, key=lambda ref: (len(ref.trial), ref.trial)):
        if ref.job is None:
            key = result_key(benchmark, uid, ref.trial, ref.attempt)
            results.append((ref, _read(store, key, ref, TrialResult)))
        else:
            record, others = _read_records(store, ref, ref.job)
            records.append((ref, record))
            peers += [(ref, other.environment) for other in others]
    return Trials(results=tuple(results), records=tuple(records), peers=tuple(peers))


def _read_records(store: Store, ref: TrialRef, job: str) -> tuple[TrainingRecord, list[TrainingRecord]]:
    """Rank 0's and the others', of the job's newest attempt, which must have been its only one: an interrupted run
    measures something else."""
    names = store.children(job)
    fences = sorted(int(found[1]) for name in names if (found := _RECORD.fullmatch(name)))
    if not fences:
        raise StoreUnavailable(
            f"trial {ref.trial}: {job}/record.<fence>.r0.json is not in {store.place}; all nodes must share "
            "results.store, and the job must run with recordSteps: true"
        )
    record = _read(store, f"{job}/record.{fences[-1]}.r0.json", ref, TrainingRecord)
    if record.first_step != 0:
        raise ConfigError(
            f"trial {ref.trial}: {job} was interrupted, and its last attempt began at step {record.first_step}; only a "
            "run without interruption can be compared: run the Benchmark again"
        )
    if not record.is_complete:
        raise ConfigError(f"trial {ref.trial}: {job} did not do all its steps; run the Benchmark again")
    others = [f"record.{fences[-1]}.r{rank}.json" for rank in range(1, record.world)]
    if missing := sorted(set(others) - set(names)):
        more = ", …" if len(missing) > _MOST_NAMED else ""
        raise StoreUnavailable(
            f"trial {ref.trial}: {job} had {record.world} ranks, and {', '.join(missing[:_MOST_NAMED])}{more} are not "
            f"in {store.place}, so what these ran on is not known; all nodes must share results.store"
        )
    return record, [_read(store, f"{job}/{name}", ref, TrainingRecord) for name in others]


def _read(store: Readable, key: str, ref: TrialRef, kind: type[_Kept]) -> _Kept:
    try:
        kept = kind.model_validate_json(store.get(key))
    except ObjectMissing as error:
        raise StoreUnavailable(
            f"trial {ref.trial}: {key} is not in {store.place}; all nodes must share results.store"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"trial {ref.trial}: {key} is no {kind.__name__} ({where}: {first['msg']})") from error
    if kept.schema_version > SCHEMA_VERSION:
        raise ConfigError(
            f"trial {ref.trial}: {key} has schemaVersion {kept.schema_version}, and {SCHEMA_VERSION} is the newest "
            "known here; give the report the image that measured"
        )
    return kept


def build_series(trials: Trials, warmup_steps: int = 0) -> tuple[Series, ...]:
    """One Series for each metric, place it was measured at, and arm; the candidate's first. Metrics are in the order in
    which workloads tell them, places in that of their numbers.

    `warmup_steps` are left out of every TrainingRecord. Raises ConfigError when that leaves nothing, when a trial tells
    one figure twice, and when the trials of one figure had unlike numbers of ranks.
    """
    worlds = {ref.trial: result.world for ref, result in trials.results}
    worlds |= {ref.trial: record.world for ref, record in trials.records}
    found: dict[tuple[Arm, str, tuple[tuple[str, str], ...]], list[tuple[int, str, Point]]] = {}
    for ref, point in _points(trials, warmup_steps):
        labels = ref.labels | point.labels
        entries = found.setdefault((ref.arm, point.metric, tuple(sorted(labels.items()))), [])
        if any(trial == ref.trial for _, trial, _ in entries):
            raise ConfigError(
                f"trial {ref.trial}: tells {point.metric} at {labels} twice; give the figures labels that differ"
            )
        entries.append((ref.repetition, ref.trial, point))
    metrics = list(dict.fromkeys(metric for _, metric, _ in found))
    keys = sorted(found, key=lambda key: (key[0] != "candidate", metrics.index(key[1]), natural_order(dict(key[2]))))
    return tuple(_series(key[0], dict(key[2]), found[key], worlds) for key in keys)


def _series(
    arm: Arm, labels: dict[str, str], entries: list[tuple[int, str, Point]], worlds: Mapping[str, int]
) -> Series:
    entries = sorted(entries, key=lambda entry: entry[:2])
    _, trial, first = entries[0]
    for _, other, _ in entries:
        if worlds[other] != worlds[trial]:
            raise ConfigError(
                f"trial {other}: number of ranks is {worlds[other]}, and {worlds[trial]} in trial {trial} at the same "
                "place, so they are not one figure; run the Benchmark again"
            )
    return Series(
        metric=first.metric,
        labels=labels,
        unit=first.unit,
        better=first.better,
        arm=arm,
        values=tuple(point.value for _, _, point in entries),
        trials=tuple(trial for _, trial, _ in entries),
        world=worlds[trial],
        is_headline=all(point.is_headline for _, _, point in entries),
        is_withdrawn=any(point.is_withdrawn for _, _, point in entries),
    )


def _points(trials: Trials, warmup_steps: int) -> Iterator[tuple[TrialRef, Point]]:
    for ref, result in trials.results:
        for point in result.points:
            yield ref, point
    for ref, record in trials.records:
        for point in training_points(ref, record, warmup_steps):
            yield ref, point


def training_points(ref: TrialRef, record: TrainingRecord, warmup_steps: int) -> tuple[Point, ...]:
    """The figures of one TrainingJob, by the median of the windows that begin after `warmup_steps`. A window is a mean
    over logEverySteps steps: what stalls regularly is in every one, and what stalled once does not stand for the run.
    Raises ConfigError when no window is left."""
    begins = (record.first_step, *record.steps[:-1])
    kept = [seconds for begin, seconds in zip(begins, record.step_seconds, strict=True) if begin >= warmup_steps]
    if not kept:
        raise ConfigError(
            f"trial {ref.trial}: workload.{{training,scaling}}.warmupSteps {warmup_steps} leaves nothing of the "
            f"{record.steps[-1] if record.steps else 0} steps, whose last window began at step {begins[-1]}; lower "
            "warmupSteps or job.training.logEverySteps, or raise job.training.steps"
        )
    seconds = float(np.median(kept))
    rates = [("samples_per_second", "samples/s", record.samples_per_step / seconds)]
    if record.tokens_per_sample is not None:
        tokens = record.samples_per_step * record.tokens_per_sample
        rates.insert(0, ("tokens_per_second", "tokens/s", tokens / seconds))
    points = [
        Point(metric=metric, unit=unit, better="higher", value=value, is_headline=index == 0)
        for index, (metric, unit, value) in enumerate(rates)
    ]
    step = Point(metric="step_seconds", unit="s", better="lower", value=seconds, samples=tuple(kept))
    return (*points, step)


def build_distributions(trials: Trials, warmup_steps: int = 0) -> tuple[Distribution, ...]:
    """Quantiles of the raw samples of each metric of the candidate's trials, in the order of its series."""
    pooled: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[str, list[float]]] = {}
    for ref, point in _points(trials.of("candidate"), warmup_steps):
        if point.samples:
            labels = tuple(sorted((ref.labels | point.labels).items()))
            _, samples = pooled.setdefault((point.metric, labels), (point.samples_unit or point.unit, []))
            samples.extend(point.samples)
    metrics = list(dict.fromkeys(metric for metric, _ in pooled))
    ordered = sorted(pooled, key=lambda key: (metrics.index(key[0]), natural_order(dict(key[1]))))
    return tuple(
        Distribution(
            metric=metric,
            labels=dict(labels),
            unit=pooled[metric, labels][0],
            count=len(pooled[metric, labels][1]),
            # No interpolation: between an answer and none (infinitely late) lies nothing.
            quantiles=tuple(np.percentile(pooled[metric, labels][1], QUANTILE_PERCENTS, method="lower").tolist()),
        )
        for metric, labels in ordered
    )


def natural_order(labels: dict[str, str]) -> list[tuple[str, float, str]]:
    """Sorts places as people do: 2 before 16, 4KiB before 1MiB."""
    return [(name, _number(value), value) for name, value in sorted(labels.items())]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(size_bytes(text))
    except ValueError:
        return float("inf")
