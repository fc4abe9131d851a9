"""What a pod is told: `RunConfig` once for the whole job, `Membership` once for every attempt."""

import json
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from capstan_runtime.contract.augmentation import Augmentation
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.callbacks import Callbacks
from capstan_runtime.contract.chaos import Injection
from capstan_runtime.contract.compression import Compression
from capstan_runtime.contract.data import Data
from capstan_runtime.contract.data_quality import DataQuality
from capstan_runtime.contract.framework import Framework
from capstan_runtime.contract.losses import Loss, Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.numerical import Numerical
from capstan_runtime.contract.optimizers import Optimizer
from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.contract.program import Program
from capstan_runtime.contract.registry import Register
from capstan_runtime.contract.saving import Interval, Retention, Verification
from capstan_runtime.contract.schedules import Schedule
from capstan_runtime.contract.tracking import Tracking
from capstan_runtime.contract.training import Training


class CheckpointPlan(Record):
    """When this run saves. Where is the environment's business: the pod's mounts decide (`env.STORE`)."""

    interval: Interval
    retention: Retention = Retention()
    verify: Verification = Verification()


class Deadlines(Record):
    """Seconds after which a wait is over and a failure is declared. None of them may be infinite."""

    form: Annotated[float, Field(gt=0)] = 120.0
    """From the first process of an attempt to the last having joined."""
    first_step: Annotated[float, Field(gt=0)] = 600.0
    """From having joined to the first step done: restore and compile; anew when micro-steps have to be smaller."""
    hang: Annotated[float, Field(gt=0)] = 60.0
    """Least time without a step that counts as a hang; 5 x the slowest recent step if that is longer."""
    save: Annotated[float, Field(gt=0)] = 120.0
    """From the first shard written to COMMIT."""
    stop: Annotated[float, Field(gt=0)] = 20.0
    """From SIGTERM to SIGKILL of the trainer."""


class JobConfig(Record):
    """What every pod of a job is told in every attempt, whatever trains in it (file `run.json` of the job's Secret)."""

    job: str
    """`namespace/name`, for messages and the checkpoint's lineage."""
    uid: str
    """The TrainingJob's uid: tells a re-created job from its predecessor."""
    training: Training
    """`virtual_ranks` is always set here; the operator resolves the default."""
    checkpoint: CheckpointPlan
    numerical: Numerical = Numerical()
    tracking: Tracking = Tracking()
    deadlines: Deadlines = Deadlines()
    warm_spare: bool = True
    """Each pod keeps a process with its imports done, so that a restart does not wait for them."""
    memory_tier: bool = True
    """Each pod keeps its part of the newest saves in memory (`env.MEMORY`): a restart need not read the store then."""

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        virtual_ranks = self.training.virtual_ranks
        if virtual_ranks is None:
            raise ValueError("training.virtualRanks is not set: the operator resolves it before a pod sees the run")
        if self.training.global_batch_size % virtual_ranks:
            raise ValueError(
                f"training.globalBatchSize {self.training.global_batch_size} is not a multiple of "
                f"training.virtualRanks {virtual_ranks}"
            )
        return self


class RunConfig(JobConfig):
    """A run of Capstan's own trainers."""

    framework: Framework
    model: Model
    data: Data
    data_quality: DataQuality | None = None
    augmentation: Augmentation | None = None
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss | None = None
    """None: cross-entropy."""
    regularization: Regularization | None = None
    compression: Compression | None = None
    parallelism: Parallelism | None = None
    workers_per_replica: Annotated[int, Field(ge=1)] = 1
    """How many consecutive ranks hold one replica of the model together. The operator resolves it."""
    callbacks: Callbacks = Callbacks()
    register_as: Register | None = None
    """Rank 0 registers what the run ends with. None: nobody does."""
    record: bool = False
    """Every rank keeps a TrainingRecord of each attempt in the store."""

    @property
    def judged_from(self) -> int:
        """Optimizer step before which evaluations are of another kind of model than the run ends with: nothing goes by
        them."""
        return 0 if self.compression is None else self.compression.settled_from


class ProgramConfig(JobConfig):
    """A run of the user's own program, which attaches itself (`capstan_runtime.attach`)."""

    program: Program


def read_job_config(document: bytes) -> RunConfig | ProgramConfig:
    """What `run.json` says. Raises ValidationError, which is a ValueError, and ValueError for what is no JSON."""
    is_program = "program" in json.loads(document)
    return (ProgramConfig if is_program else RunConfig).model_validate_json(document)


class Skip(Record):
    """Batches of the data order that are left out."""

    first: Annotated[int, Field(ge=0)]
    """Index of the first of them in the data order, counted from 0 as if nothing were left out."""
    count: Annotated[int, Field(ge=1)]


class Membership(Record):
    """One pod's place in one attempt of the world; pushed by the operator with `PUT /membership`.

    Unlike every other record it may have fields that are not known here: an operator that was upgraded pushes to pods
    that were not, and a job that could not recover until somebody deletes its pods would be worse off than without the
    new field.
    """

    model_config = ConfigDict(extra="ignore")

    fence: Annotated[int, Field(ge=1)]
    """Grows by one with every attempt of the job, for ever. An older one is refused."""
    rank: Annotated[int, Field(ge=0)]
    world: Annotated[int, Field(ge=1)]
    coordinator: str
    """`address:port` on rank 0's pod where the processes meet."""
    floor_step: Annotated[int, Field(ge=0)] = 0
    """Step of the newest checkpoint the operator has seen committed. If it is above 0 and no committed checkpoint
    verifies, the trainer stops with CORRUPT_CHECKPOINT: a run never starts silently from step 0."""
    floor_root: str | None = None
    """Its root; None: the operator does not know it. It counts as committed even where the store shows it late."""
    micro_splits: Annotated[int, Field(ge=1)] = 1
    """Each virtual rank's samples are computed in so many micro-steps: doubled when the device runs out of memory."""
    skips: tuple[Skip, ...] = ()
    """Batches left out after rewinds, in the order of the data, disjoint."""
    peers: tuple[str, ...] = ()
    """`address:port` of every rank's supervisor, in rank order: where its part of the newest saves is in memory."""
    chaos: tuple[Injection, ...] = ()
    """Faults that this rank is to suffer in this attempt, none of which it has suffered yet."""
    leave_at_checkpoint: bool = False
    """Stop after the next save, because the world is about to change. May be set by a second push of the same fence."""
    keep_roots: tuple[str, ...] | None = None
    """Roots of checkpoints that somebody serves, sorted: retention removes none of them. May be changed by a second
    push of the same fence. None: the operator does not know them, and what it said last still holds."""
    profile_request: str | None = None
    """Rank 0 traces some steps, if it has not done so for this value. May be changed by a second push of the same
    fence. None: nobody asks."""
    is_over: bool = False
    """The job has failed for good, and nothing of this membership counts but its fence: a pod whose trainer has ended
    in it ends with the same exit code, so that its log stays and its node is free. Any other refuses."""

    @model_validator(mode="after")
    def _rank_in_world(self) -> Self:
        if self.rank >= self.world:
            raise ValueError(f"rank {self.rank} is outside world {self.world}")
        return self
