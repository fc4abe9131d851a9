"""One trial in a pod of its own: measure, keep the result, say how it ended.

task ─▶ control ─▶ workload ─▶ control ─▶ store: trials/<trial>.<attempt>.json ─▶ termination message
"""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

from capstan_runtime.bench.ending import end_with, end_with_error, write_last_words
from capstan_runtime.bench.measured import Measured
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import BenchTask, TrialEnd, TrialResult, TrialTask
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError
from capstan_runtime.metrics.control import measure_control
from capstan_runtime.metrics.environment import observe_environment

Run = Callable[[TrialTask, Store, Mapping[str, str]], Measured | None]
"""Measures. `Store` is that of the namespace in results.store. None: this rank has nothing to tell, another one has."""

WORKLOADS = {
    "inference": "capstan_runtime.bench.workloads.inference",
    "serving": "capstan_runtime.bench.workloads.serving",
    "collectives": "capstan_runtime.bench.workloads.collectives",
    "roofline": "capstan_runtime.bench.workloads.roofline",
    "scalingLaw": "capstan_runtime.bench.workloads.scaling_law",
    "checkpoint": "capstan_runtime.bench.workloads.checkpoint",
    "controlPlane": "capstan_runtime.bench.workloads.control_plane",
}
"""Module of each workload, by its key in TrialWork; each has a `run: Run`. Imported one at a time: what one needs is
not in the image of another."""


def result_key(benchmark: str, uid: str, trial: str, attempt: int, name: str = "json") -> str:
    """Where in the store a TrialResult is kept, or a file that is beside it."""
    return f"{benchmark}/{uid}/trials/{trial}.{attempt}.{name}"


def run_trial(task: BenchTask, environ: Mapping[str, str]) -> int:
    """The exit code: OK when the result is in the store, else that of the error's class; CONFIG says that trying again
    is of no use. Writes the termination message. A trial that outlives its deadline is ended from within."""
    trial = task.trial
    assert trial is not None
    watchdog = threading.Timer(trial.deadline_seconds, _give_up, (trial.deadline_seconds, environ))
    watchdog.daemon = True
    watchdog.start()
    try:
        message = _measure(task, trial, environ)
    except Exception as error:
        watchdog.cancel()
        return end_with_error(error, environ)
    watchdog.cancel()
    end_with(TrialEnd(is_ok=True, message=message), environ)
    return ExitCode.OK


def _measure(task: BenchTask, trial: TrialTask, environ: Mapping[str, str]) -> str:
    place = environ.get(env.STORE)
    if not place:
        raise ConfigError(
            f"environment variable {env.STORE} is not set; a trial is started by the operator, which does"
        )
    store = open_store(place, environ)
    started = time.time()
    before = measure_control()
    measured = _workload(trial.work.kind)(trial, store, environ)
    if measured is None:
        return f"rank {trial.rank} took part"
    result = TrialResult(
        trial=trial.trial,
        attempt=trial.attempt,
        environment=observe_environment(environ),
        world=trial.world,
        peers=tuple(measured.peers),
        control_seconds=(*before, *measure_control()),
        points=tuple(measured.points),
        notes=tuple(measured.notes),
        started_at=started,
        finished_at=time.time(),
    )
    for name, content in measured.files.items():
        store.put(result_key(task.benchmark, task.uid, trial.trial, trial.attempt, name), [content])
    key = result_key(task.benchmark, task.uid, trial.trial, trial.attempt)
    store.put(key, [result.model_dump_json(by_alias=True, exclude_none=True).encode()])
    store.settle(f"{task.benchmark}/{task.uid}/trials")
    return _told(result)


def _told(result: TrialResult) -> str:
    headlines = [point for point in result.points if point.is_headline and not point.is_withdrawn] or list(
        result.points
    )
    if not headlines:
        return "nothing was measured"
    first = headlines[0]
    where = ", ".join(f"{name} {value}" for name, value in first.labels.items())
    more = f" and {len(result.points) - 1} more" if len(result.points) > 1 else ""
    return f"{first.metric} {first.value:.6g} {first.unit}{f' at {where}' if where else ''}{more}"


def _workload(kind: str) -> Run:
    try:
        run: Run = importlib.import_module(WORKLOADS[kind]).run
    except ImportError as error:
        raise ConfigError(f"workload.{kind}: is not installed here ({error}); use an image that has it") from error
    return run


def _give_up(seconds: float, environ: Mapping[str, str]) -> None:
    """Ends the process from a thread of its own: whatever hangs, hangs."""
    end = TrialEnd(is_ok=False, message=f"was not done after {seconds:.0f} s (spec.trialDeadlineSeconds)")
    write_last_words(end.model_dump_json(by_alias=True), environ)
    print(end.message, file=sys.stderr, flush=True)
    os._exit(ExitCode.HANG)
