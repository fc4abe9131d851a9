"""One trial of `benchmarks.verdicts`: a bench pod's process, whose workload is a known amount of arithmetic."""

import os
from collections.abc import Mapping
from typing import cast

import numpy as np

from capstan_runtime.bench import trial
from capstan_runtime.bench.measured import Measured, median_point, time_calls
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import TASK, BenchTask, TrialTask
from capstan_runtime.contract.workloads import ControlPlane

SECONDS = 1.0
WARMUP_SECONDS = 0.05
_SIDE = 64


def run(task: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """Seconds of a chain of matrix products, as many as the task has `jobs`: the one whole number that a task carries
    anyway."""
    matrix = np.random.default_rng(task.seed).random((_SIDE, _SIDE), np.float32) / np.float32(_SIDE)
    rounds = cast(ControlPlane, task.work.control_plane).jobs

    def chain() -> None:
        product = matrix
        for _ in range(rounds):
            product = product @ matrix

    return Measured(points=[median_point("call_seconds", time_calls(chain, SECONDS, WARMUP_SECONDS), is_headline=True)])


if __name__ == "__main__":
    trial.WORKLOADS["controlPlane"] = "benchmarks.verdict_trial"
    raise SystemExit(trial.run_trial(BenchTask.model_validate_json(os.environ[TASK]), os.environ))
