"""How often a Benchmark's verdict is right: 20 times a planted 10 % more work, and 20 times none.

Every trial is a process of its own that runs a bench pod's program, and every verdict comes from the report's own way:
from the files in a store to a result. In each repetition a baseline, an unchanged candidate and a slowed one are
measured one after the other, in an order that changes; so every verdict of an unchanged rerun stands beside one of a
slowdown that the same machine had in the same minute. The baseline of the round before serves as the one that was kept.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.report import Figure
from capstan_runtime.bench.reporting import build_result, keep_result
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import (
    TASK,
    Arm,
    BaselineBenchmark,
    BaselineTask,
    BenchTask,
    ReportTask,
    TrialRef,
    TrialTask,
    TrialWork,
)
from capstan_runtime.contract.workloads import ControlPlane

WORK = 100
PLANTED = {"baseline": WORK, "unchanged": WORK, "slowed": WORK * 11 // 10}
"""What is measured in each repetition, and how much work it is."""
DEFAULT_REPETITIONS = 5
_TRIAL_SECONDS = 60.0


def measure(rounds: int, repetitions: int) -> list[Figure]:
    """How many of `rounds` verdicts were right, for both kinds of baseline, and for the default of 5 repetitions."""
    command = f"python -m benchmarks verdicts --rounds {rounds} --repetitions {repetitions}"
    counts: dict[tuple[str, str], Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="capstan-verdicts-") as folder:
        store = FolderStore(Path(folder))
        measure_round(store, "r0", repetitions)
        for number in range(1, rounds + 1):
            measure_round(store, f"r{number}", repetitions)
            for what, verdict in judge_round(store, number, repetitions).items():
                counts.setdefault(what, Counter())[verdict] += 1
            print(f"round {number}: {_told(counts)}", flush=True)
    return [
        Figure(f"{_name(what)}: {verdict}", found[verdict], f"of {rounds}", command)
        for what, found in counts.items()
        for verdict in sorted(found)
    ]


def measure_round(store: FolderStore, name: str, repetitions: int) -> None:
    """All trials of one round, in turns, are in the store."""
    order = random.Random(name)
    for repetition in range(repetitions):
        arms = list(PLANTED)
        order.shuffle(arms)
        for arm in arms:
            run_trial(store, f"{name}-{arm}", repetition, PLANTED[arm])


def run_trial(store: FolderStore, benchmark: str, repetition: int, work: int) -> None:
    task = BenchTask(
        benchmark=benchmark,
        namespace="default",
        uid="u",
        seed=repetition,
        trial=TrialTask(
            trial=f"t{repetition:02d}",
            seed=repetition,
            work=TrialWork(control_plane=ControlPlane(jobs=work)),
            deadline_seconds=_TRIAL_SECONDS,
        ),
    )
    subprocess.run(
        [sys.executable, "-m", "benchmarks.verdict_trial"],
        env={
            **os.environ,
            TASK: task.model_dump_json(by_alias=True, exclude_none=True),
            env.STORE: store.place,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=2 * _TRIAL_SECONDS,
    )


def judge_round(store: FolderStore, number: int, repetitions: int) -> dict[tuple[str, str], str]:
    """The verdict on each candidate of a round, by (candidate, kind of comparison)."""
    now, then = f"r{number}", f"r{number - 1}"
    keep_result(build_result(_task(f"{then}-baseline", repetitions), store, {}), store)
    verdicts: dict[tuple[str, str], str] = {}
    for arm in ("slowed", "unchanged"):
        candidate = f"{now}-{arm}"
        kept = BaselineTask(benchmark=BaselineBenchmark(name=f"{then}-baseline", uid="u"))
        for kind, count in dict.fromkeys((("in turns", repetitions), ("in turns", DEFAULT_REPETITIONS))):
            verdicts[arm, f"{kind}, {count} repetitions"] = _verdict(
                _rerun(store, candidate, f"{now}-baseline", count), store
            )
        verdicts[arm, f"kept, {repetitions} repetitions"] = _verdict(_task(candidate, repetitions, kept), store)
    return verdicts


def _verdict(task: BenchTask, store: FolderStore) -> str:
    result = build_result(task, store, {})
    assert result.verdict is not None
    return result.verdict


def _task(benchmark: str, repetitions: int, baseline: BaselineTask | None = None) -> BenchTask:
    report = ReportTask(workload="controlPlane", spec={}, trials=_refs(0, repetitions, "candidate"), baseline=baseline)
    return BenchTask(benchmark=benchmark, namespace="default", uid="u", seed=0, report=report)


def _rerun(store: FolderStore, candidate: str, baseline: str, repetitions: int) -> BenchTask:
    """Both arms as one Benchmark, whose trials are copies of theirs."""
    name = f"{candidate}-beside-{repetitions}"
    for index in range(repetitions):
        for source, target in ((candidate, index), (baseline, repetitions + index)):
            text = store.get(f"{source}/u/trials/t{index:02d}.1.json")
            store.put(f"{name}/u/trials/t{target:02d}.1.json", [text])
    report = ReportTask(
        workload="controlPlane",
        spec={},
        trials=(*_refs(0, repetitions, "candidate"), *_refs(repetitions, repetitions, "baseline")),
        baseline=BaselineTask(benchmark=BaselineBenchmark(name=baseline, uid="u", is_rerun=True)),
    )
    return BenchTask(benchmark=name, namespace="default", uid="u", seed=0, report=report)


def _refs(first: int, count: int, arm: Arm) -> tuple[TrialRef, ...]:
    return tuple(
        TrialRef(trial=f"t{first + index:02d}", attempt=1, arm=arm, repetition=index) for index in range(count)
    )


def _name(what: tuple[str, str]) -> str:
    arm, kind = what
    return f"{'10 % more work' if arm == 'slowed' else 'unchanged rerun'}, baseline {kind}"


def _told(counts: dict[tuple[str, str], Counter[str]]) -> str:
    return "; ".join(f"{_name(what)}: {dict(found)}" for what, found in counts.items())
