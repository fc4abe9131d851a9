"""Trials are read from a store and become series; what cannot be used is refused by the name of its trial."""

import math
import re
from pathlib import Path

import pytest

from capstan_runtime.bench.analysis.collect import Trials, build_distributions, build_series, read_trials
from capstan_runtime.bench.result import QUANTILE_PERCENTS, Series
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import Environment, Point, TrainingRecord, TrialRef, TrialResult
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.errors import ConfigError, StoreUnavailable

HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2")


def result(trial: str, *points: Point) -> TrialResult:
    return TrialResult(
        trial=trial, environment=HERE, control_seconds=(0.01, 0.03, 0.02), points=points, started_at=1, finished_at=2
    )


def record(**changed: object) -> TrainingRecord:
    fields: dict[str, object] = {
        "job": "bm-t00",
        "fence": 1,
        "rank": 0,
        "world": 2,
        "first_step": 0,
        "steps": (5, 10, 15, 20, 25),
        "step_seconds": (9.0, 0.5, 0.25, 0.25, 0.125),
        "samples_per_step": 32,
        "parameters": 100,
        "environment": HERE,
        "is_complete": True,
    }
    return TrainingRecord.model_validate(fields | changed)


def keep(store: FolderStore, key: str, kept: TrialResult | TrainingRecord) -> None:
    store.put(key, [kept.model_dump_json(by_alias=True, exclude_none=True).encode()])


def latency(value: float, batch: str = "1", samples: tuple[float, ...] = ()) -> Point:
    return Point(
        metric="latency_seconds",
        labels={"batchSize": batch},
        unit="s",
        better="lower",
        value=value,
        samples=samples,
        is_headline=True,
    )


def test_series_hold_one_value_for_each_trial_in_the_order_of_repetitions(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    refs = [
        TrialRef(trial="t00", attempt=1, arm="candidate", repetition=1, labels={"rate": "5"}),
        TrialRef(trial="t01", attempt=2, arm="candidate", repetition=0, labels={"rate": "5"}),
        TrialRef(trial="t02", attempt=1, arm="baseline", repetition=0, labels={"rate": "5"}),
    ]
    keep(store, "bm/u1/trials/t00.1.json", result("t00", latency(2.0, "16"), latency(1.0, "2")))
    keep(store, "bm/u1/trials/t01.2.json", result("t01", latency(4.0, "16"), latency(3.0, "2")))
    keep(store, "bm/u1/trials/t02.1.json", result("t02", latency(math.inf, "2")))

    trials = read_trials(store, "bm", "u1", refs[::-1])

    def series(arm: str, batch: str, values: tuple[float, ...], ids: tuple[str, ...]) -> Series:
        return Series.model_validate(
            {
                "metric": "latency_seconds",
                "labels": {"rate": "5", "batchSize": batch},
                "unit": "s",
                "better": "lower",
                "arm": arm,
                "values": values,
                "trials": ids,
                "is_headline": True,
            }
        )

    assert build_series(trials) == (
        series("candidate", "2", (3.0, 1.0), ("t01", "t00")),
        series("candidate", "16", (4.0, 2.0), ("t01", "t00")),
        series("baseline", "2", (math.inf,), ("t02",)),
    )
    assert trials.of("candidate").control_seconds == (0.02, 0.02)
    assert trials.of("baseline").environments == (HERE,)


def test_a_training_job_is_measured_by_its_windows_after_warm_up(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    keep(store, "bm-t00/u7/record.3.r0.json", record(tokens_per_sample=16))
    keep(store, "bm-t00/u7/record.3.r1.json", record(rank=1))
    ref = TrialRef(trial="t00", attempt=1, arm="candidate", repetition=0, job="bm-t00/u7")

    series = build_series(read_trials(store, "bm", "u1", [ref]), warmup_steps=8)

    # The window of steps 6 to 10 holds warm-up steps, so it is left out: the median of 0.25, 0.25 and 0.125 remains.
    assert [(one.metric, one.values, one.is_headline) for one in series] == [
        ("tokens_per_second", (32 * 16 / 0.25,), True),
        ("samples_per_second", (32 / 0.25,), False),
        ("step_seconds", (0.25,), False),
    ]
    assert {one.metric for one in series} == set(JUDGED["training"])


def test_a_job_without_tokens_has_samples_as_its_headline() -> None:
    ref = TrialRef(trial="t00", attempt=1, arm="candidate", repetition=0, job="bm-t00/u7")
    series = build_series(Trials(records=((ref, record()),)))
    assert [(one.metric, one.is_headline) for one in series] == [("samples_per_second", True), ("step_seconds", False)]


@pytest.mark.parametrize(
    ("kept", "error", "told"),
    [
        ({}, StoreUnavailable, "trial t04: bm-t04/u7/record.<fence>.r0.json is not in "),
        ({"record.1.r1.json": record(rank=1)}, StoreUnavailable, "trial t04: bm-t04/u7/record.<fence>.r0.json is not"),
        (
            {"record.9.r0.json": record(), "record.10.r0.json": record(first_step=40)},
            ConfigError,
            "trial t04: bm-t04/u7 was interrupted, and its last attempt began at step 40; only a run",
        ),
        (
            {"record.1.r0.json": record(world=6), "record.1.r2.json": record(rank=2, world=6)},
            StoreUnavailable,
            "trial t04: bm-t04/u7 had 6 ranks, and record.1.r1.json, record.1.r3.json, record.1.r4.json, … are not in ",
        ),
        ({"record.1.r0.json": record(is_complete=False)}, ConfigError, "trial t04: bm-t04/u7 did not do all its steps"),
        (
            {"record.1.r0.json": record(schema_version=2)},
            ConfigError,
            "trial t04: bm-t04/u7/record.1.r0.json has schemaVersion 2, and 1 is the newest known here",
        ),
    ],
)
def test_a_training_job_that_cannot_stand_for_a_trial_is_refused(
    tmp_path: Path, kept: dict[str, TrainingRecord], error: type[Exception], told: str
) -> None:
    store = FolderStore(tmp_path)
    for name, one in kept.items():
        keep(store, f"bm-t04/u7/{name}", one)
    ref = TrialRef(trial="t04", attempt=1, arm="candidate", repetition=0, job="bm-t04/u7")
    with pytest.raises(error, match=re.escape(told)):
        read_trials(store, "bm", "u1", [ref])


def test_every_rank_tells_what_it_ran_on(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    other = HERE.model_copy(update={"cpu": "another CPU"})
    keep(store, "bm-t00/u7/record.1.r0.json", record())
    keep(store, "bm-t00/u7/record.1.r1.json", record(rank=1, environment=other))
    pod = result("t01").model_copy(update={"world": 2, "peers": (other,)})
    keep(store, "bm/u1/trials/t01.1.json", pod)
    refs = [
        TrialRef(trial="t00", attempt=1, arm="baseline", repetition=0, job="bm-t00/u7"),
        TrialRef(trial="t01", attempt=1, arm="candidate", repetition=0),
    ]
    trials = read_trials(store, "bm", "u1", refs)
    assert trials.of("baseline").environments == (HERE, other)
    assert trials.of("candidate").environments == (HERE, other)
    assert trials.environments == (HERE, HERE, other, other)


def test_a_series_says_how_many_ranks_it_is_of_and_never_mixes_them() -> None:
    refs = [TrialRef(trial=f"t0{index}", attempt=1, arm="candidate", repetition=index) for index in range(2)]
    results = [result(ref.trial, latency(1.0)).model_copy(update={"world": 2}) for ref in refs]
    (series,) = build_series(Trials(results=tuple(zip(refs, results, strict=True))))
    assert series.world == 2
    results[1] = results[1].model_copy(update={"world": 4})
    with pytest.raises(ConfigError, match=r"trial t01: number of ranks is 4, and 2 in trial t00 at the same place"):
        build_series(Trials(results=tuple(zip(refs, results, strict=True))))


def test_a_trial_that_is_missing_or_broken_is_refused_by_name(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ref = TrialRef(trial="t04", attempt=1, arm="candidate", repetition=0)
    with pytest.raises(StoreUnavailable, match=r"trial t04: bm/u1/trials/t04\.1\.json is not in .*; all nodes must"):
        read_trials(store, "bm", "u1", [ref])
    store.put("bm/u1/trials/t04.1.json", [b'{"trial": "t04"}'])
    with pytest.raises(ConfigError, match=r"trial t04: bm/u1/trials/t04\.1\.json is no TrialResult \(environment: "):
        read_trials(store, "bm", "u1", [ref])


def test_warm_up_that_leaves_no_window_is_refused_with_the_fields_to_change() -> None:
    ref = TrialRef(trial="t04", attempt=1, arm="candidate", repetition=0, job="bm-t04/u7")
    told = r"trial t04: .*warmupSteps 21 leaves nothing of the 25 steps, whose last window began at step 20; lower warm"
    with pytest.raises(ConfigError, match=told):
        build_series(Trials(records=((ref, record()),)), warmup_steps=21)


def test_a_figure_that_one_trial_withdraws_is_withdrawn() -> None:
    doubtful = latency(2.0).model_copy(update={"is_withdrawn": True})
    results = [
        (TrialRef(trial=f"t0{index}", attempt=1, arm="candidate", repetition=index), result(f"t0{index}", point))
        for index, point in enumerate((latency(1.0), doubtful))
    ]
    (series,) = build_series(Trials(results=tuple(results)))
    assert (series.values, series.is_withdrawn, series.is_shown_first) == ((1.0, 2.0), True, False)


def test_one_figure_told_twice_is_refused() -> None:
    ref = TrialRef(trial="t04", attempt=1, arm="candidate", repetition=0)
    with pytest.raises(ConfigError, match=r"trial t04: tells latency_seconds at .* twice"):
        build_series(Trials(results=((ref, result("t04", latency(1.0), latency(2.0))),)))


def test_distributions_pool_the_candidates_samples_and_keep_those_that_never_came() -> None:
    def ref(trial: str, arm: str) -> TrialRef:
        return TrialRef.model_validate({"trial": trial, "attempt": 1, "arm": arm, "repetition": 0})

    trials = Trials(
        results=(
            (ref("t00", "candidate"), result("t00", latency(1.0, samples=tuple(float(i) for i in range(100))))),
            (ref("t01", "candidate"), result("t01", latency(1.0, samples=(*(float(i) for i in range(100, 200)),)))),
            (ref("t02", "candidate"), result("t02", latency(1.0, samples=(math.inf,)))),
            (ref("t03", "baseline"), result("t03", latency(1.0, samples=(-1.0,)))),
        )
    )
    (distribution,) = build_distributions(trials)
    assert (distribution.count, distribution.unit, distribution.labels) == (201, "s", {"batchSize": "1"})
    at = dict(zip(QUANTILE_PERCENTS, distribution.quantiles, strict=True))
    assert (at[0], at[50], at[99.5], at[100]) == (0.0, 100.0, 199.0, math.inf)
