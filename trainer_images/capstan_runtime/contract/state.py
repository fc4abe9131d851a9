"""What a pod reports: `Progress` from trainer to supervisor, `State` from supervisor to operator."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.chaos import Injected
from capstan_runtime.contract.compression import CompressionReport
from capstan_runtime.contract.data_quality import DataReport
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.registry import Registered

RESERVED_METRICS = frozenset(
    {
        *("step", "steps", "fence", "rank", "world_size", "micro_splits", "phase", "phase_seconds", "warm_spare"),
        *("checkpoint_step", "checkpoint_timestamp_seconds", "staged_step", "quarantined_checkpoints"),
        *("restored_bytes", "restore_seconds", "restore_verify_seconds", "restarts_total"),
        *("chaos_active", "injected_faults"),
    }
)
"""What no metric of `Progress` may be called: a supervisor exposes something else under the name."""


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
    """Seconds since 1970 when it was committed, as its manifest says."""
    verified_at: float | None = None
    """Seconds since 1970 when all its bytes were read back and matched their digests; None: not since the commit."""
    logical: str | None = None
    """Digest of the tensors alone, `blake3:<64 hex>`: the same state has the same one however it is sharded and by
    whichever framework it was saved. None: not known."""


class Source(StrEnum):
    """Where the bytes of a restored state came from."""

    STORE = "Store"
    MEMORY = "Memory"
    """The pods' memory tier: a save that its processes left there when they died."""


class Restored(Record):
    """How an attempt got its state back."""

    source: Source
    bytes: Annotated[int, Field(ge=0)]
    """Read by this rank."""
    seconds: Annotated[float, Field(ge=0)]
    """From the choice of the checkpoint to the state being in place, verification included."""
    verify_seconds: Annotated[float, Field(ge=0)]
    """Of these, spent hashing; threads added up."""
    is_in_store: bool = False
    """It was read from memory, and is known to be committed as well."""


class Section(StrEnum):
    """What the trainer's main thread is doing, for telling who waits from who is waited for."""

    HOST = "Host"
    DATA = "Data"
    """Waiting for the next batch."""
    FACTORS = "Factors"
    """Before the first step, at one of the matrices that are made products of two; written anew for each."""
    STEP = "Step"
    """Computing: may be waiting for other ranks inside a collective."""
    EXCHANGE = "Exchange"
    """Waiting for the other ranks' messages."""
    SAVE = "Save"


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
    step: int | None = None
    """Optimizer steps this rank had done; None: it had not begun."""
    asked: bool = False
    """It was asked to stop, from outside of the job. A rank that stopped because another one was asked was not."""
    section: Section | None = None
    """What it was doing; None: it did not say."""
    process_state: str | None = None
    """Of a hung process: the kernel's letter for it (R, S, D, T, …); T is stopped. None: not a hang."""
    stack: list[str] = []
    """Of a hung process: the main thread's innermost frames, `file:line function`, innermost first, at most 12."""
    bad_batch: int | None = None
    """With NUMERICAL and the policy rewind: index in the data order of the batch to leave out. None: do not rewind."""
    at: float
    """Seconds since 1970 when the end was seen."""


class Quarantine(Record):
    """A committed checkpoint that failed verification and was passed over."""

    step: int
    root: str
    reason: str


class EarlyStop(Record):
    """Why a run ended, as a success, before the last of its steps."""

    step: int
    """Optimizer steps done."""
    metric: str
    evaluations: int
    """So many in a row found it no better."""
    best: float | None = None
    """None: it never was a finite number."""
    best_step: int | None = None
    """Steps done when it was that good."""

    def __str__(self) -> str:
        best = "it never was a finite number" if self.best is None else f"best {self.best:.6g} at step {self.best_step}"
        times = "evaluation" if self.evaluations == 1 else f"{self.evaluations} evaluations in a row"
        return f"stopped early after step {self.step}: {times} found {self.metric} no better; {best}"


class Profile(Record):
    """A trace of some steps."""

    first_step: int
    """The first step in it, counted from 1."""
    last_step: int
    place: str
    """The folder, or URL of a bucket, that holds it."""
    request: str | None = None
    """Who asked for it: the value of the annotation. None: the spec did."""


class Progress(Record):
    """One line of JSON from the trainer on the report pipe. None means unchanged since the last line."""

    phase: Phase | None = None
    step: int | None = None
    """Optimizer steps done."""
    steps: int | None = None
    """Optimizer steps in all; known once the data is open."""
    micro_splits: int | None = None
    """Micro-steps per virtual rank in this attempt, because fewer do not fit into the device's memory."""
    metrics: dict[str, float] | None = None
    """Newest value by name: loss, accuracy (validation), learning_rate, samples_per_second, step_seconds, …"""
    checkpoint: Checkpoint | None = None
    staged: Checkpoint | None = None
    """Newest save whose part of this rank is complete and hashed in the memory tier."""
    resumed_from: Checkpoint | None = None
    restored: Restored | None = None
    quarantined: Quarantine | None = None
    injected: Injected | None = None
    registered: Registered | None = None
    """What the run was registered as, at its end."""
    data: DataReport | None = None
    """What the look at the data before the first step has found."""
    compression: CompressionReport | None = None
    """What compression has cost and brought, as far as it is known."""
    note: str | None = None
    """One line that the operator makes an event of: a spike that was ignored, an update that was dropped."""
    early_stop: EarlyStop | None = None
    """The step that it names is the last."""
    system: dict[str, float] | None = None
    """What the worker uses of its machine, by name and unit; `/0` after a name is the number of a GPU."""
    profile: Profile | None = None
    """A trace that is complete."""
    bad_batch: int | None = None
    """With `failure` NUMERICAL and the policy rewind: see `Exit.bad_batch`."""
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
    restored: Restored | None = None
    """How; None as `resumed_from`."""
    data_at: float | None = None
    """Seconds since 1970 when this attempt's trainer last showed that its data comes nearer. None: it is past that, or
    has not shown it."""
    has_data: bool | None = None
    """Of a trainer that starts: its data is there. None: it has not said a word, or is past that."""
    is_warm: bool | None = None
    """A process that has done its imports waits for the next membership. False: one is still importing. None: there is
    none, because the run wants none or because it has ended, and waiting for it is of no use."""
    staged: Checkpoint | None = None
    """Newest save in this pod's memory tier; survives attempts. None: there is none."""
    timeline: dict[Phase, float] = {}
    """Seconds since 1970 when this attempt first entered each phase; a phase it has not entered is missing."""
    seconds: dict[Phase, float] = {}
    """Seconds this attempt has spent in each phase so far, up to the newest report."""
    micro_splits: int = 1
    """As the membership says, or more: what the ranks have found before their first step that it takes to fit."""
    split_at: float | None = None
    """Seconds since 1970 when this attempt's trainer last found that it takes more, and compiled anew. None: it is past
    its first step, or has not found that."""
    leave_at_checkpoint: bool = False
    """As the newest push of the membership says: what was heard need not be said again."""
    keep_roots: tuple[str, ...] | None = None
    """As the newest membership says that named any. None: this supervisor is too old to know of them."""
    refused: str | None = None
    """One line: why the newest membership was not taken. None: it was, or there was none."""
    injected: list[Injected] = []
    """Faults executed in this pod, in any attempt, newest last, at most 20."""
    data: DataReport | None = None
    """What rank 0 has found in the data; None: it does not look, or has not yet, or this is not rank 0's pod."""
    notes: list[str] = []
    """Of this attempt, newest last, at most 5."""
    registered: Registered | None = None
    """As rank 0 reported; None: the run does not register, or has not ended."""
    compression: CompressionReport | None = None
    """The newest of this attempt; None: the run does not compress, or there is nothing to tell yet."""
    quarantined: list[Quarantine] = []
    early_stop: EarlyStop | None = None
    """Of this attempt; None: it makes all steps."""
    system: dict[str, float] = {}
    """The newest; empty: nobody looks."""
    profile: Profile | None = None
    """The newest of this attempt."""
    profile_request: str | None = None
    """As the newest membership says."""
    exit: Exit | None = None
    """Of the newest attempt that did not succeed; None while it runs."""


class Hint(Record):
    """Body of `POST /hint` to the operator: look at this job now. It carries no news and needs no password."""

    namespace: str
    job: str
    """The TrainingJob's name."""
    pod: str
