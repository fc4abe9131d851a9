"""What a pod reports: `Progress` from trainer to supervisor, `State` from supervisor to operator."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.exit_codes import FailureClass


class Phase(StrEnum):
    """Where the trainer process of a pod is."""

    IDLE = "Idle"
    """No membership yet; the supervisor waits for the operator."""
    STARTING = "Starting"
    """Process started; importing and joining the others."""
    RESTORING = "Restoring"
    """Reading and verifying a checkpoint."""
    COMPILING = "Compiling"
    """State is in place, the first step has not finished."""
    TRAINING = "Training"
    SAVING = "Saving"
    EVALUATING = "Evaluating"
    STOPPING = "Stopping"
    """Told to stop; saving what is done."""
    EXITED = "Exited"
    """The process ended, and not by finishing; `exit` says how."""
    SUCCEEDED = "Succeeded"
    """All steps are done and the last checkpoint is committed."""


class Checkpoint(Record):
    """A checkpoint as the operator knows it."""

    step: Annotated[int, Field(ge=0)]
    root: str
    """Digest of the canonical manifest, `blake3:<64 hex>`; the checkpoint's name."""
    at: float
    """Seconds since 1970 when it was committed or, for `resumed_from`, fully verified."""
    verified_at: float | None = None
    """Seconds since 1970 when all its bytes were read back and matched their digests; None: not since the commit."""


class Exit(Record):
    """How the trainer of one attempt ended, other than by success."""

    fence: int
    code: int
    """Exit status, 0-255; 128 + N for signal N."""
    signal: str | None = None
    """Signal name such as SIGKILL; None when the process exited by itself."""
    failure: FailureClass
    message: str
    """One line: the head of the exception, or what the supervisor saw."""
    last_lines: list[str] = []
    """The last lines of output, oldest first, at most 10 of at most 200 characters."""
    at: float
    """Seconds since 1970 when the end was seen."""


class Quarantine(Record):
    """A committed checkpoint that failed verification and was passed over."""

    step: int
    root: str
    reason: str


class Progress(Record):
    """One line of JSON from the trainer on the report pipe. None means unchanged since the last line."""

    phase: Phase | None = None
    step: int | None = None
    """Optimizer steps done."""
    steps: int | None = None
    """Optimizer steps in all; known once the data is open."""
    metrics: dict[str, float] | None = None
    """Newest value by name: loss, accuracy (validation), learning_rate, samples_per_second, step_seconds, …"""
    checkpoint: Checkpoint | None = None
    resumed_from: Checkpoint | None = None
    quarantined: Quarantine | None = None
    failure: FailureClass | None = None
    message: str | None = None
    """With `failure`: one line that says why the trainer is about to exit."""


class State(Record):
    """All a supervisor knows; the body of `GET /state` and, shortened to 4 KiB, the termination message."""

    pod: str
    uid: str
    """The job's uid."""
    fence: int = 0
    """Of the newest membership accepted; 0 before the first."""
    rank: int | None = None
    world: int | None = None
    phase: Phase = Phase.IDLE
    step: int = 0
    steps: int | None = None
    metrics: dict[str, float] = {}
    checkpoint: Checkpoint | None = None
    """Newest one committed by this rank's process in any attempt; only rank 0 commits."""
    resumed_from: Checkpoint | None = None
    """What this attempt started from; None: from step 0, or not known yet."""
    quarantined: list[Quarantine] = []
    exit: Exit | None = None
    """Of the newest attempt that did not succeed; None while it runs."""


class Hint(Record):
    """Body of `POST /hint` to the operator: look at this job now. It carries no news and needs no password."""

    namespace: str
    job: str
    """The TrainingJob's name."""
    pod: str
