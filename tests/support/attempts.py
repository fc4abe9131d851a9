"""Whole attempts of real trainers, loop and engine, in processes forked with all imports done: what they trained on,
what they reported, and how they ended."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from capstan_runtime import loop, reading
from capstan_runtime.context import TrainContext
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Progress
from capstan_runtime.data.spec import Ids, Samples
from capstan_runtime.engine import Batch
from capstan_runtime.errors import Failure
from capstan_runtime.preparing import prepare
from capstan_runtime.randomness import Keys
from capstan_runtime.report import Reporter
from capstan_runtime.stop_signal import StopSignal
from tests.support.engines import make_engine
from tests.support.faulty_engine import await_save
from tests.support.ranks import run_ranks
from tests.support.training_runs import Run

FRAMEWORKS: dict[str, dict[str, Any]] = {
    "flax": {"flax": {}},
    "deepspeed": {"deepspeed": {"zeroStage": 1}},
}


class Attemptable(Protocol):
    """A run's files."""

    def environ(self, **more: str) -> dict[str, str]: ...


@dataclass(frozen=True)
class Attempted:
    """One rank's attempt."""

    failure: str | None
    """Class and message of what ended it; None: it came to the end, or was stopped."""
    progress: list[Progress]
    ids: list[Ids]
    """[M, b] of each batch that was read, in order."""

    def losses(self) -> dict[int, float]:
        """By step, where every step is logged."""
        found = [(each.step, each.metrics["loss"]) for each in self.progress if each.metrics and "loss" in each.metrics]
        return {step: loss for step, loss in found if step is not None}


def attempt(
    run: Attemptable,
    world: int,
    fence: int = 1,
    floor_step: int = 0,
    more: Callable[[int], dict[str, Any]] = lambda rank: {},
) -> list[Attempted]:
    """All ranks of one attempt, to their end. `more` is what else a rank's membership says."""
    documents = [{"fence": fence, "floor_step": floor_step, **more(rank)} for rank in range(world)]
    return run_ranks(run_attempt, world, run, documents)


def samples_in_order(ranks: list[Attempted], steps: int) -> list[list[int]]:
    """The samples of each of the first `steps` batches that the ranks read, in the order of the virtual ranks."""
    return [np.concatenate([each.ids[step].ravel() for each in ranks]).tolist() for step in range(steps)]


def run_attempt(
    rank: int, world: int, coordinator: str, run: Attemptable, documents: list[dict[str, Any]]
) -> Attempted:
    """One rank of it, in a process of its own. `documents`: of each rank, what its membership says."""
    member = Membership.model_validate(
        {"rank": rank, "world": world, "coordinator": coordinator, **documents[rank]}, by_name=True
    )
    environ = run.environ(**{env.MEMBERSHIP: member.model_dump_json(by_alias=True)})
    ids: list[Ids] = []
    read = reading.training_batch

    def read_and_note(samples: Samples, wanted: Ids, keys: Keys) -> Batch:
        ids.append(wanted)
        await_save()
        return read(samples, wanted, keys)

    reading.training_batch = read_and_note
    failure = None
    with tempfile.TemporaryFile() as reports:
        try:
            loop.run_attempt(_make_engine, environ, Reporter(reports.fileno()), StopSignal(), prepare(environ))
        except Failure as error:
            failure = f"{type(error).__name__}: {error}"
        reports.seek(0)
        progress = [Progress.model_validate_json(line) for line in reports]
    return Attempted(failure, progress, ids)


def _make_engine(context: TrainContext) -> Any:
    return make_engine(context)


def small_run(folder: Path, framework: str, **overrides: Any) -> Run:
    """Thirty steps of a multi-layer perceptron, every one of them logged, saved every ten."""
    training = {"logEverySteps": 1, "virtualRanks": 4, **overrides.pop("training", {})}
    patience = {"form": 120, "firstStep": 120, "save": 120}  # for a machine that has other things to do
    return Run(
        folder,
        overrides={"framework": FRAMEWORKS[framework], "training": training, "deadlines": patience, **overrides},
    )
