"""A report pod's whole way: from the trials in a store to result, reports and last words."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.bench.reporting import run_report
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SaveName, new_attempt
from capstan_runtime.contract.benchmark import (
    BaselineBenchmark,
    BaselineTask,
    BenchTask,
    Environment,
    GateTask,
    Point,
    ReportTask,
    Summary,
    TrainingRecord,
    TrialEnd,
    TrialRef,
    TrialResult,
)
from capstan_runtime.contract.exit_codes import ExitCode

HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2", packages={"numpy": "2.4.1"})
STEADY = (1.0, 1.01, 0.99, 1.005, 0.995)


def keep_trials(
    store: FolderStore,
    name: str,
    values: tuple[float, ...],
    arm: str = "candidate",
    first: int = 0,
    environment: Environment = HERE,
    control: float = 0.01,
) -> tuple[TrialRef, ...]:
    """One trial for each value, and who reads them."""
    refs = []
    for repetition, value in enumerate(values):
        trial = f"t{first + repetition:02d}"
        point = Point(
            metric="samples_per_second",
            labels={"batchSize": "32"},
            unit="samples/s",
            better="higher",
            value=value,
            samples=(value,) * 3,
            is_headline=True,
        )
        result = TrialResult(
            trial=trial,
            environment=environment,
            control_seconds=(control * STEADY[repetition % 5],) * 4,
            points=(point,),
            notes=("the generator was busy",) if repetition == 1 else (),
            started_at=1000.0 + repetition,
            finished_at=1001.0 + repetition,
        )
        key = f"{name}/u1/trials/{trial}.1.json"
        store.put(key, [result.model_dump_json(by_alias=True, exclude_none=True).encode()])
        refs.append(TrialRef.model_validate({"trial": trial, "attempt": 1, "arm": arm, "repetition": repetition}))
    return tuple(refs)


def task(name: str, refs: tuple[TrialRef, ...], **more: Any) -> BenchTask:
    fields = {"workload": "inference", "spec": {"repetitions": 5}, "trials": refs, **more}
    report = ReportTask.model_validate(fields)
    return BenchTask(benchmark=name, namespace="team", uid="u1", seed=3, report=report)


Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Makes the report; gives the exit code, the termination message and what was printed."""

    def run(wanted: BenchTask, **environ: str) -> tuple[int, str, str]:
        words = tmp_path / "last-words"
        words.write_text("")
        place = {"CAPSTAN_STORE": str(tmp_path / "store"), "CAPSTAN_TERMINATION_LOG": str(words)}
        code = run_report(wanted, place | environ)
        printed = capsys.readouterr()
        return code, words.read_text(), printed.out + printed.err

    return run


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def kept(store: FolderStore, name: str) -> BenchmarkResult:
    return BenchmarkResult.model_validate_json(store.get(f"{name}/u1/result.json"))


def test_without_a_baseline_the_result_is_told_and_not_judged(report: Report, store: FolderStore) -> None:
    refs = keep_trials(store, "first", tuple(1200.0 * factor for factor in STEADY))
    code, words, output = report(task("first", refs))
    assert code == 0, output
    summary = Summary.model_validate_json(words)
    assert summary.headline == "1,200 samples/s ±1.0 % in 5 runs at batch size 32"
    assert (summary.verdict, summary.left_out) == (None, 0)
    assert summary.reason == "1 figure of 5 runs; there is no baseline to judge by"
    assert summary.place == f"{store.place}/first/u1"
    assert summary.result_digest == name_of(digest_of(store.get("first/u1/result.json")))
    assert (summary.environment, summary.fingerprint) == (HERE, HERE.fingerprint)
    result = kept(store, "first")
    assert (result.started_at, result.finished_at, result.baseline) == (1000.0, 1005.0, None)
    assert set(store.children("first/u1")) >= {"metrics.prom", "report.md", "result.json", "trials"}
    assert store.get("first/u1/report.md").decode() in output


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.85, "Regressed"), (1.0, "Passed"), (1.2, "Improved"), (0.96, "Inconclusive")]
)
def test_a_kept_result_of_another_benchmark_is_a_baseline(
    report: Report, store: FolderStore, factor: float, verdict: str
) -> None:
    refs = keep_trials(store, "first", tuple(1200.0 * factor for factor in STEADY))
    assert report(task("first", refs))[0] == 0
    refs = keep_trials(store, "second", tuple(1200.0 * factor * noise for noise in STEADY))
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    code, words, output = report(task("second", refs, baseline=baseline))
    assert code == 0, output
    summary = Summary.model_validate_json(words)
    assert summary.verdict == verdict, summary.reason
    assert summary.reason.startswith("samples per second at batch size 32: ")
    result = kept(store, "second")
    assert result.baseline is not None
    assert (result.baseline.kind, result.baseline.name, result.baseline.is_comparable) == ("benchmark", "first", True)
    assert result.gate == GateTask(minimum_effect_percent=5.0, confidence=0.95)


def test_a_rerun_baseline_is_compared_trial_by_trial(report: Report, store: FolderStore) -> None:
    slow = tuple(1200.0 * factor for factor in (1.0, 0.5, 0.9, 0.6, 0.8, 0.7))
    refs = keep_trials(store, "second", slow)
    refs += keep_trials(store, "second", tuple(1.2 * value for value in slow), arm="baseline", first=6)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1", is_rerun=True))
    code, words, output = report(task("second", refs, baseline=baseline))
    assert code == 0, output
    (comparison,) = Summary.model_validate_json(words).comparisons
    # A machine that is up to twice as slow from one repetition to the next hides nothing: both arms had the same.
    assert (comparison.verdict, round(comparison.effect_percent, 3)) == ("Regressed", round(100 / 1.2 - 100, 3))
    assert comparison.p_value == 0.03125
    result = kept(store, "second")
    assert [one.arm for one in result.series] == ["candidate", "baseline"]
    assert result.baseline is not None
    assert result.baseline.kind == "rerun"
    assert result.notes == ("the generator was busy", "baseline: the generator was busy")


def test_unlike_hardware_is_refused_and_unlike_software_listed(report: Report, store: FolderStore) -> None:
    other = HERE.model_copy(update={"cores": 4, "packages": {"numpy": "2.3.0", "jax": "0.10.2"}})
    assert report(task("first", keep_trials(store, "first", STEADY, environment=other)))[0] == 0
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    code, words, output = report(task("second", keep_trials(store, "second", STEADY), baseline=baseline))
    assert code == 0, output
    summary = Summary.model_validate_json(words)
    assert (summary.verdict, summary.reason) == ("Inconclusive", "unlike hardware is not compared: cores 4 and 2")
    result = kept(store, "second")
    assert result.comparisons == ()
    assert result.baseline is not None
    assert (result.baseline.is_comparable, result.baseline.problem) == (False, "cores 4 and 2")
    assert result.baseline.differences == ("jax 0.10.2 -> none", "numpy 2.3.0 -> 2.4.1")


def other_specs(workers: int) -> dict[str, Any]:
    return {"repetitions": 5, "job": {"workers": {"max": workers}, "model": {"mlp": {"hidden": [8 * workers]}}}}


@pytest.mark.parametrize("is_rerun", [False, True])
def test_another_spec_is_compared_and_said(report: Report, store: FolderStore, is_rerun: bool) -> None:
    refs = keep_trials(store, "first", STEADY)
    assert report(task("first", refs, spec=other_specs(1)))[0] == 0
    refs = keep_trials(store, "second", STEADY)
    if is_rerun:
        refs += keep_trials(store, "second", STEADY, arm="baseline", first=5)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1", is_rerun=is_rerun))
    code, words, output = report(task("second", refs, baseline=baseline, spec=other_specs(4)))
    assert code == 0, output
    summary = Summary.model_validate_json(words)
    assert summary.verdict == "Passed"
    assert summary.reason.endswith("; the specs differ: job.workers.max 1 -> 4 and 1 more")
    result = kept(store, "second")
    assert result.baseline is not None
    assert result.baseline.spec_differences == ("job.workers.max 1 -> 4", "job.model.mlp.hidden [8] -> [32]")
    assert result.notes[0] == (
        "the baseline's spec is another one, so differences may come of that: job.workers.max 1 -> 4; "
        "job.model.mlp.hidden [8] -> [32]"
    )
    assert "Differs: job.workers.max 1 -> 4" in output


def test_a_rerun_of_a_benchmark_without_a_result_is_compared_all_the_same(report: Report, store: FolderStore) -> None:
    refs = keep_trials(store, "second", STEADY) + keep_trials(store, "second", STEADY, arm="baseline", first=5)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1", is_rerun=True))
    assert report(task("second", refs, baseline=baseline))[0] == 0
    result = kept(store, "second")
    assert result.baseline is not None
    assert (result.verdict, result.baseline.spec_differences) == ("Passed", ())


def test_a_kept_baseline_on_gpus_is_no_sure_one_and_that_is_said(report: Report, store: FolderStore) -> None:
    here = HERE.model_copy(update={"gpus": ("NVIDIA H200",), "driver": "580.65"})
    assert report(task("first", keep_trials(store, "first", STEADY, environment=here)))[0] == 0
    refs = keep_trials(store, "second", STEADY, environment=here)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    assert report(task("second", refs, baseline=baseline))[0] == 0
    result = kept(store, "second")
    assert result.verdict == "Passed"
    assert [note for note in result.notes if "a GPU that is slower now looks like slower code" in note]


def test_checkpoints_of_the_trials_own_jobs_are_removed_and_nothing_else(report: Report, store: FolderStore) -> None:
    refs = keep_jobs(store, "candidate", 0, 1, 1.0)
    own = f"{SaveName(20, 1, new_attempt('u7'))}"
    pinned, foreign = f"{SaveName(10, 1, new_attempt('u7'))}", f"{SaveName(20, 1, new_attempt('another'))}"
    for name in ("bm-t00", "bm-t04", "another-t00", "bm-train"):
        for folder in (own, foreign):
            store.put(f"{name}/u7/{folder}/COMMIT", [b"{}"])
    store.put(f"bm-t00/u7/{pinned}/PINNED", [b""])
    store.put("bm-t00/u7/notes/kept", [b"mine"])
    again = task("bm", refs, workload="training", warmup_steps=1)
    assert report(again)[0] == 0
    left = {name: store.children(f"{name}/u7") for name in ("bm-t00", "bm-t04", "another-t00", "bm-train")}
    assert left == {
        "bm-t00": sorted([pinned, foreign, "notes", "record.1.r0.json"]),
        "bm-t04": sorted([foreign, "record.1.r0.json"]),
        "another-t00": sorted([own, foreign]),
        "bm-train": sorted([own, foreign]),
    }
    assert report(again)[0] == 0


def test_trials_of_one_arm_on_unlike_hardware_are_refused(report: Report, store: FolderStore) -> None:
    assert report(task("first", keep_trials(store, "first", STEADY)))[0] == 0
    refs = keep_trials(store, "second", STEADY)
    other = HERE.model_copy(update={"cpu": "another CPU"})
    refs += tuple(
        ref.model_copy(update={"repetition": 5})
        for ref in keep_trials(store, "second", (1.0,), first=5, environment=other)
    )
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    code, words, output = report(task("second", refs, baseline=baseline))
    assert code == 0, output
    problem = (
        "candidate trials ran on unlike hardware: cpu a CPU and another CPU; pin them to alike nodes (nodeSelector)"
    )
    assert Summary.model_validate_json(words).reason == f"unlike hardware is not compared: {problem}"
    assert problem in kept(store, "second").notes


def test_a_reference_row_is_shown_and_never_judged(report: Report, store: FolderStore) -> None:
    refs = keep_trials(store, "first", STEADY)
    code, words, output = report(task("first", refs, baseline=BaselineTask(reference="flax-mlp")))
    assert code == 0, output
    assert Summary.model_validate_json(words).verdict is None
    result = kept(store, "first")
    assert result.reference is not None
    assert result.reference.name == "flax-mlp"
    source = "given as a reference with the requirements of Capstan; measured by others on an unnamed GPU"
    assert result.reference.source == source
    assert f"Flax MLP, inference: {source}." in output
    assert result.comparisons == ()


def keep_jobs(
    store: FolderStore, arm: str, first: int, workers: int, seconds: float, peers: Environment = HERE
) -> tuple[TrialRef, ...]:
    """A TrainingJob for each of five repetitions, whose ranks from 1 on ran on `peers`, and who reads their records."""
    refs = []
    for repetition in range(5):
        trial = f"t{first + repetition:02d}"
        record = TrainingRecord(
            job=f"bm-{trial}",
            fence=1,
            rank=0,
            world=workers,
            first_step=0,
            steps=(1, 10, 20),
            step_seconds=(9.0, seconds * STEADY[repetition], seconds * STEADY[repetition]),
            samples_per_step=32,
            parameters=100,
            environment=HERE,
            is_complete=True,
        )
        for rank in range(workers):
            environment = HERE if rank == 0 else peers
            text = record.model_copy(update={"rank": rank, "environment": environment}).model_dump_json(by_alias=True)
            store.put(f"bm-{trial}/u7/record.1.r{rank}.json", [text.encode()])
        ref = {"trial": trial, "attempt": 1, "arm": arm, "repetition": repetition, "job": f"bm-{trial}/u7"}
        refs.append(TrialRef.model_validate(ref | {"labels": {"workers": str(workers), "mode": "strong"}}))
    return tuple(refs)


def test_a_rank_on_unlike_hardware_is_refused_whichever_it_is(report: Report, store: FolderStore) -> None:
    other = HERE.model_copy(update={"cpu": "another CPU"})
    refs = keep_jobs(store, "candidate", 0, 2, 1.0, peers=other) + keep_jobs(store, "baseline", 5, 2, 1.0)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1", is_rerun=True))
    code, words, output = report(task("second", refs, baseline=baseline, workload="training", warmup_steps=1))
    assert code == 0, output
    told = "candidate trials ran on unlike hardware: cpu a CPU and another CPU; pin them to alike nodes (nodeSelector)"
    assert Summary.model_validate_json(words).reason == f"unlike hardware is not compared: {told}"
    assert kept(store, "second").environments == (HERE, other)


def test_what_a_workload_derives_is_told_and_compared_of_both_arms(report: Report, store: FolderStore) -> None:
    refs = keep_jobs(store, "candidate", 0, 1, 1.0) + keep_jobs(store, "candidate", 5, 2, 0.8)
    refs += keep_jobs(store, "baseline", 10, 1, 1.0) + keep_jobs(store, "baseline", 15, 2, 0.625)
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1", is_rerun=True))
    code, words, output = report(task("second", refs, baseline=baseline, workload="scaling", warmup_steps=1))
    assert code == 0, output
    summary = Summary.model_validate_json(words)
    assert summary.headline == "1.25x with 2 workers, efficiency 0.62 (0.62 – 0.62)"
    assert {(one.metric, one.labels["workers"]): one.verdict for one in summary.comparisons} == {
        ("samples_per_second", "1"): "Passed",
        ("samples_per_second", "2"): "Regressed",
        ("efficiency", "2"): "Regressed",
    }
    assert [(row.workers, round(row.efficiency, 3)) for row in kept(store, "second").scaling] == [(1, 1.0), (2, 0.625)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            None,
            "baseline.configMap.key: result.json cannot be read (No such file or directory); make the ConfigMap with",
        ),
        ("{", "baseline.configMap.key: result.json is no result.json of a Benchmark (Expecting property name"),
        ("[]", "baseline.configMap.key: result.json is no result.json of a Benchmark ("),
        (
            '{"schemaVersion": 1}',
            "baseline.configMap.key: result.json is no result.json of a Benchmark (name: Field req",
        ),
        ('{"schemaVersion": 2}', "baseline.configMap.key: result.json has schemaVersion 2, and 1 is the newest known"),
    ],
)
def test_a_baseline_that_cannot_be_read_is_refused_with_the_fix(
    report: Report, store: FolderStore, tmp_path: Path, text: str | None, told: str
) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    refs = keep_trials(store, "second", STEADY)
    mounts = json.dumps({"/etc/capstan/baseline": str(tmp_path)})
    wanted = task("second", refs, baseline=BaselineTask(file="/etc/capstan/baseline/result.json"))
    code, words, _ = report(wanted, POD_MOUNTS=mounts)
    end = TrialEnd.model_validate_json(words)
    assert (code, end.is_ok, end.is_final) == (ExitCode.CONFIG, False, True)
    assert end.message.startswith(told)


def test_a_baseline_of_another_workload_is_refused(report: Report, store: FolderStore) -> None:
    assert report(task("first", keep_trials(store, "first", STEADY)))[0] == 0
    text = store.get("first/u1/result.json").replace(b'"workload":"inference"', b'"workload":"serving"')
    store.put("first/u1/result.json", [text])
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    code, words, _ = report(task("second", keep_trials(store, "second", STEADY), baseline=baseline))
    assert code == ExitCode.CONFIG
    assert TrialEnd.model_validate_json(words).message == (
        "baseline.benchmark.name: first measured workload serving, and this is inference; choose a baseline of "
        "inference"
    )


def test_a_baseline_that_has_not_finished_is_refused_with_the_fix(report: Report, store: FolderStore) -> None:
    baseline = BaselineTask(benchmark=BaselineBenchmark(name="first", uid="u1"))
    code, words, _ = report(task("second", keep_trials(store, "second", STEADY), baseline=baseline))
    assert code == ExitCode.CONFIG
    assert TrialEnd.model_validate_json(words).message == (
        f"baseline.benchmark.name: first has no first/u1/result.json in {store.place}; wait until it has Succeeded, or "
        "give both Benchmarks the same results.store"
    )


def test_a_trial_that_is_not_there_yet_may_be_there_later(report: Report, store: FolderStore) -> None:
    refs = keep_trials(store, "first", STEADY)
    store.remove("first/u1/trials/t03.1.json")
    code, words, _ = report(task("first", refs))
    end = TrialEnd.model_validate_json(words)
    assert (code, end.is_final) == (ExitCode.RETRYABLE, False)
    assert "trial t03: first/u1/trials/t03.1.json is not in" in end.message


def start_pod(wanted: BenchTask, **environ: str) -> subprocess.CompletedProcess[str]:
    text = wanted.model_dump_json(by_alias=True, exclude_none=True)
    return subprocess.run(
        [sys.executable, "-m", "capstan_runtime.bench"],
        env={**os.environ, "CAPSTAN_BENCH": text, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_pods_program_makes_reports(store: FolderStore) -> None:
    wanted = task("first", keep_trials(store, "first", STEADY))
    done = start_pod(wanted, CAPSTAN_STORE=store.place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == store.get("first/u1/report.md").decode().rstrip()


def test_a_pod_that_is_told_nothing_says_so() -> None:
    done = start_pod(BenchTask(benchmark="b", namespace="n", uid="u", seed=0))
    assert done.returncode == ExitCode.CONFIG
    assert "CAPSTAN_BENCH: sets neither of trial, report; set one" in done.stderr
