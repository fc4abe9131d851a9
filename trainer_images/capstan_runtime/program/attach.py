"""Where a program becomes a rank of its job: told by its supervisor or, by hand, alone with a folder."""

import fcntl
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.claims import newer_fence
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.context import JobContext
from capstan_runtime.contract import env
from capstan_runtime.contract.program import Program
from capstan_runtime.contract.run_config import CheckpointPlan, Membership, ProgramConfig
from capstan_runtime.contract.saving import Interval
from capstan_runtime.contract.state import Phase, Progress
from capstan_runtime.contract.training import Training
from capstan_runtime.entry import dump_stacks_when_asked, stand_by
from capstan_runtime.errors import ConfigError
from capstan_runtime.parallel.star import Star, form_star_at
from capstan_runtime.program.ending import Ending
from capstan_runtime.program.job import Job
from capstan_runtime.report import Reporter
from capstan_runtime.stop_signal import StopSignal
from capstan_runtime.told import read_membership, read_program, required

_UID = "by-hand"
_HOST = "127.0.0.1"
_is_attached = False


@dataclass(frozen=True, slots=True)
class ByHand:
    """What a TrainingJob would say, for a program that is started by hand. In a cluster none of it counts."""

    steps: int
    """Optimizer steps in all: `spec.training.steps`."""
    global_batch_size: int
    """Samples per step: `spec.training.globalBatchSize`."""
    seed: int = 0
    """Of the order of the data: `spec.training.seed`."""
    save_every_steps: int = 100
    """`spec.checkpoint.interval.steps`."""
    log_every_steps: int = 10
    """`spec.training.logEverySteps`."""
    folder: Path = Path("capstan-checkpoints")
    """Where checkpoints are kept; the next start goes on from the newest."""


def attach(by_hand: ByHand | None = None) -> Job:
    """This process's place in its job; see `Job` for what follows. Once in a process, after the imports and before
    anything that takes long or touches a device: a warm spare waits here.

    Started by a Capstan supervisor, it is a rank of its TrainingJob: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
    set for libraries that read them, SIGTERM is a wish to stop after saving, and an exception that nobody catches is
    reported with its class. Started by hand, it is a job of one process, which `by_hand` describes, and which keeps its
    checkpoints in a folder. Raises ConfigError without either, PeerLost when the other ranks do not come.
    """
    global _is_attached
    if _is_attached:
        raise RuntimeError("capstan_runtime.attach: was called before; a process is one rank of one job")
    _is_attached = True
    if any(name in os.environ for name in (env.RUN_CONFIG, env.MEMBERSHIP, env.SPARE)):
        return _attach_to_supervisor()
    if by_hand is None:
        raise ConfigError(
            "capstan_runtime.attach: this process was not started by a Capstan supervisor, and nothing says what it "
            "would do without; give by_hand=ByHand(steps=…, global_batch_size=…), or run it as a TrainingJob"
        )
    return _attach_by_hand(by_hand)


def _attach_to_supervisor() -> Job:
    dump_stacks_when_asked()
    stand_by()
    environ = dict(os.environ)
    reporter = Reporter.from_environ(environ)
    ending = Ending(reporter if _is_there(environ) else Reporter(None))
    ending.take_over()
    _require_pipe(environ)
    stop = StopSignal()
    reporter.send(Progress(phase=Phase.STARTING))
    run, membership = read_program(environ), read_membership(environ)
    stop.leave_wanted |= membership.leave_at_checkpoint
    store = open_store(required(environ, env.STORE), environ)
    context = JobContext(run=run, membership=membership, steps=_steps(run), environ=environ)
    deadlines = run.deadlines
    star = form_star_at(
        membership.rank,
        membership.world,
        membership.coordinator,
        f"{_token(environ)} {run.uid} {membership.fence}".encode() if membership.world > 1 else b"",
        deadlines.form,
        patience_seconds=max(deadlines.first_step, deadlines.save),
    )
    job = Job(context, store, star, reporter, stop, ending)
    _tell_libraries(job)
    return job


def _attach_by_hand(by_hand: ByHand) -> Job:
    run = ProgramConfig(
        job=f"{_UID}/{Path(sys.argv[0]).name or 'program'}",
        uid=_UID,
        training=Training(
            steps=by_hand.steps,
            global_batch_size=by_hand.global_batch_size,
            virtual_ranks=1,
            seed=by_hand.seed,
            log_every_steps=by_hand.log_every_steps,
        ),
        checkpoint=CheckpointPlan(interval=Interval(steps=by_hand.save_every_steps)),
        program=Program(command=[sys.executable, *sys.argv]),
        memory_tier=False,
    )
    store = FolderStore(by_hand.folder)
    fence = (newer_fence(store, run.uid, 0) or 0) + 1
    membership = Membership(fence=fence, rank=0, world=1, coordinator=f"{_HOST}:0")
    context = JobContext(run=run, membership=membership, steps=by_hand.steps, environ={})
    print(f"no supervisor: one process, checkpoints in {by_hand.folder}", flush=True)
    reporter = Reporter(None)
    job = Job(context, store, Star(0, 1, {}, 0.0), reporter, StopSignal(), Ending(reporter))
    _tell_libraries(job)
    return job


def _is_there(environ: Mapping[str, str]) -> bool:
    """The pipe to the supervisor has been inherited, if it was told of at all."""
    number = environ.get(env.REPORT_FD)
    try:
        return number is None or fcntl.fcntl(int(number), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False


def _require_pipe(environ: Mapping[str, str]) -> None:
    if not _is_there(environ):
        raise ConfigError(
            "spec.program.command: the process that calls capstan_runtime.attach() has not inherited its supervisor's "
            "pipe; let the command be that process, or exec it"
        )


def _steps(run: ProgramConfig) -> int:
    if run.training.steps is None:
        raise ConfigError("spec.training.steps: a program's length is given in steps; set it")
    return run.training.steps


def _token(environ: Mapping[str, str]) -> str:
    path = Path(required(environ, env.TOKEN_FILE))
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{env.TOKEN_FILE}: {path} cannot be read: {error}") from error


def _tell_libraries(job: Job) -> None:
    """By the names that torch.distributed reads (`init_method="env://"`), and many others."""
    host, _, port = job.coordinator.rpartition(":")
    os.environ |= {
        "RANK": str(job.rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(job.world),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
