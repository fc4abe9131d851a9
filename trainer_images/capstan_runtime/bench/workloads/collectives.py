"""Workload `collectives`: bandwidth between pods, one process each."""

import importlib
from collections.abc import Callable, Mapping, Sequence

from capstan_runtime.bench import collectives
from capstan_runtime.bench.collectives import Ranks
from capstan_runtime.bench.measured import Measured, median_point, point
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import COORDINATOR, Environment, Point, TrialTask
from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.contract.sizes import size_bytes, sweep
from capstan_runtime.contract.workloads import Collectives, Operation
from capstan_runtime.errors import ConfigError
from capstan_runtime.metrics.environment import observe_environment

Join = Callable[[Membership, Deadlines], Ranks]

_MODULES = {
    "flax": "capstan_runtime.flax_trainer.bench_collectives",
    "deepspeed": "capstan_runtime.deepspeed_trainer.bench_collectives",
}
_FORM_SECONDS = 600.0
"""The other pods start when rank 0 has its address, and may have to fetch their image first."""
_CALL_SECONDS = 300.0
"""One operation, or the exchange of what was measured: then a peer counts as lost."""


def run(trial: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured | None:
    """The figures, at rank 0; None at the others. Raises ConfigError, PeerLost, and RuntimeError for a wrong sum."""
    task = trial.work.collectives
    assert task is not None
    ranks = _join(task.framework.kind)(_membership(trial, environ), _deadlines(trial))
    points: list[Point] = []
    sizes = sweep(size_bytes(task.smallest), size_bytes(task.largest), task.factor, ranks.size)
    for operation in task.operations:
        for size in sizes:
            seconds = collectives.measure(ranks, operation, size, task.iterations)
            points += _points(operation, ranks.size, size, seconds, is_headline=size == sizes[-1])
    notes = _notes(task, ranks)
    told = ranks.exchange(observe_environment(environ).model_dump_json().encode())
    ranks.leave()
    peers = [Environment.model_validate_json(each) for rank, each in enumerate(told) if rank != trial.rank]
    return Measured(points, notes, peers=peers) if trial.rank == 0 else None


def _points(operation: Operation, ranks: int, size: int, seconds: Sequence[float], is_headline: bool) -> list[Point]:
    labels = {"operation": operation, "size": collectives.size_text(size)}
    taken = median_point("seconds", seconds, labels=labels)
    algorithm = collectives.algorithm_bandwidth(size, taken.value)
    bus = collectives.bus_bandwidth(operation, ranks, size, taken.value)
    return [
        taken,
        point("algorithm_bandwidth_bytes_per_second", "B/s", "higher", algorithm, labels=labels),
        point("bus_bandwidth_bytes_per_second", "B/s", "higher", bus, labels=labels, is_headline=is_headline),
    ]


def _notes(task: Collectives, ranks: Ranks) -> list[str]:
    return [
        f"{ranks.size} ranks, fp32, backend {ranks.backend} of {'JAX' if task.framework.kind == 'flax' else 'torch'}; "
        f"median of {task.iterations} calls after {collectives.WARMUPS} warm-ups, each as long as on its slowest rank",
        *ranks.notes,
    ]


def _join(framework: str) -> Join:
    try:
        join: Join = importlib.import_module(_MODULES[framework]).join
    except ImportError as error:
        raise ConfigError(
            f"collectives.framework: {framework} is not installed here ({error}); set pods.image to one that has "
            "it, or choose the other framework"
        ) from error
    return join


def _membership(trial: TrialTask, environ: Mapping[str, str]) -> Membership:
    """Everybody meets at rank 0, which knows its own address and listens there."""
    coordinator = environ.get(COORDINATOR)
    if coordinator is None and trial.rank == 0 and environ.get(env.POD_IP):
        coordinator = f"{environ[env.POD_IP]}:{env.BENCH_COORDINATOR_PORT}"
    if coordinator is None:
        name = env.POD_IP if trial.rank == 0 else COORDINATOR
        raise ConfigError(f"environment variable {name} is not set; the ranks of a trial are started by the operator")
    return Membership(fence=trial.attempt, rank=trial.rank, world=trial.world, coordinator=coordinator)


def _deadlines(trial: TrialTask) -> Deadlines:
    call = min(_CALL_SECONDS, trial.deadline_seconds)
    return Deadlines(form=min(_FORM_SECONDS, trial.deadline_seconds), first_step=call, save=call)
