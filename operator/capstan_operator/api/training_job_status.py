"""The status of a TrainingJob: the truth about the run."""

from typing import Annotated

from pydantic import Field

from capstan_operator.api.gang import GangStatus
from capstan_operator.api.meta import Condition
from capstan_operator.api.queueing import QueueStatus
from capstan_operator.api.recovery_status import GoodputStatus, InjectedStatus, NoteStatus, RecoveryStatus
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.compression import CompressionReport
from capstan_runtime.contract.data_quality import DataReport


class WorkersStatus(Record):
    """Pods of the job."""

    ready: Annotated[int, Field(description="Workers whose supervisor answers.")] = 0
    desired: Annotated[int, Field(description="Workers wanted now.")] = 0
    idle: Annotated[
        int | None, Field(description="Workers that are ready but have no place in the world; absent: none.")
    ] = None
    summary: Annotated[str, Field(description="ready/desired, for the table.")] = "0/0"


class CheckpointStatus(Record):
    """A checkpoint, named by the digest of its manifest."""

    step: Annotated[int, Field(description="Optimizer steps it holds.")]
    root: Annotated[str, Field(description="Digest of the canonical manifest: the checkpoint's name.")]
    committed_at: Annotated[str | None, Field(description="When it was committed (RFC 3339).")] = None
    verified_at: Annotated[str | None, Field(description="When its bytes were last read and matched (RFC 3339).")] = (
        None
    )
    summary: Annotated[str | None, Field(description="step@short digest, for the table.")] = None


class Restarts(Record):
    """Attempts after the first."""

    total: Annotated[int, Field(description="All restarts.")] = 0
    by_cause: Annotated[dict[str, int], Field(description="Restarts by failure class; compared with the budgets.")] = {}


class FailureStatus(Record):
    """The first failing rank of the newest failed attempt: where to look."""

    rank: Annotated[
        int | None, Field(description="Rank that failed first; absent: a pod that had no place in an attempt yet.")
    ] = None
    pod: Annotated[str | None, Field(description="Its pod.")] = None
    node: Annotated[str | None, Field(description="Its node.")] = None
    fence: Annotated[int, Field(description="The attempt that failed.")]
    exit_code: Annotated[int | None, Field(description="Exit status; 128 + N for signal N.")] = None
    signal: Annotated[str | None, Field(description="Signal name, when one ended the process.")] = None
    failure_class: Annotated[str, Field(alias="class", description="What kind of failure this is.")]
    message: Annotated[str, Field(description="One line: what went wrong.")]
    last_lines: Annotated[list[str], Field(description="Last lines of output, oldest first.")] = []
    step: Annotated[
        int | None, Field(description="Optimizer steps the rank had done; absent: it had not begun, or did not say.")
    ] = None
    section: Annotated[str | None, Field(description="What the rank was doing.")] = None
    action: Annotated[
        str | None,
        Field(description="What follows: RestartInPlace, ReplacePod, ReplaceNode, RollBack or Halt."),
    ] = None
    remedy: Annotated[str | None, Field(description="What the next attempt does differently, in one clause.")] = None
    at: Annotated[str, Field(description="When it was seen (RFC 3339).")]
    newest_pod_at: Annotated[
        str | None,
        Field(
            description="When the newest pod there was then had been created (RFC 3339): a newer one is charged anew."
        ),
    ] = None


class SkipStatus(Record):
    """Batches of the data order that are left out after a rewind."""

    first: Annotated[int, Field(description="Index of the first of them in the data order.")]
    count: Annotated[int, Field(description="How many.")]


class NodeFault(Record):
    """A node on which something broke within the last hour."""

    node: Annotated[str, Field(description="Its name.")]
    failure_class: Annotated[str, Field(alias="class", description="What kind of failure it was.")]
    count: Annotated[int, Field(description="How often, none longer than an hour after the one before.")]
    at: Annotated[str, Field(description="When it was last seen (RFC 3339).")]
    avoided_until: Annotated[
        str | None,
        Field(description="Until then new pods are kept away from the node (RFC 3339); absent: they are not."),
    ] = None


class QuarantineStatus(Record):
    """A committed checkpoint that failed verification and was passed over."""

    step: Annotated[int, Field(description="Its step.")]
    root: Annotated[str, Field(description="Its name.")]
    reason: Annotated[str, Field(description="What did not match.")]


class RegisteredStatus(Record):
    """What the job has registered."""

    name: Annotated[str, Field(description="Of the model.")]
    version: Annotated[str, Field(description="Semantic version.")]
    digest: Annotated[str, Field(description="Digest of the registered checkpoint's manifest.")]


class ProfileStatus(Record):
    """A trace of some steps."""

    first_step: Annotated[int, Field(description="The first step in it, counted from 1.")]
    last_step: Annotated[int, Field(description="The last step in it.")]
    place: Annotated[str, Field(description="The folder, as the pods see it, or the bucket's URL.")]
    request: Annotated[
        str | None, Field(description="The value of annotation capstan.dev/profile that it answers; absent: the spec.")
    ] = None


class TrainingJobStatus(Record):
    """The truth about the run, written by the operator alone."""

    observed_generation: Annotated[int | None, Field(description="Generation of the spec this describes.")] = None
    phase: Annotated[str | None, Field(description="One word for people; see conditions for the facts.")] = None
    reason: Annotated[str | None, Field(description="Why the job is in this phase, in one CamelCase word.")] = None
    message: Annotated[str | None, Field(description="The same in one sentence.")] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="Facts about the job, one per type.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    step: Annotated[int | None, Field(description="Optimizer steps done.")] = None
    steps: Annotated[int | None, Field(description="Optimizer steps in all.")] = None
    percent: Annotated[int | None, Field(description="step / steps in percent, rounded down.")] = None
    metrics: Annotated[
        dict[str, float],
        Field(
            description="Newest values: loss, accuracy (validation), learning_rate, samples_per_second, step_seconds, "
            "model_flops_per_second, mfu (of GPUs whose peak is known)."
        ),
    ] = {}
    workers: Annotated[WorkersStatus, Field(description="Pods of the job.")] = WorkersStatus()
    queue: Annotated[
        QueueStatus | None, Field(description="The Kueue queue that admits the pods; absent: there is none.")
    ] = None
    gang: Annotated[GangStatus | None, Field(description="The PodGroup of workers.gang; absent: there is none.")] = None
    world: Annotated[
        int | None,
        Field(description="Processes in the current attempt, or in the one being prepared; absent: there is neither."),
    ] = None
    fence: Annotated[int, Field(description="Number of the current attempt; grows for ever.")] = 0
    next_world: Annotated[
        int | None,
        Field(description="Size of the world for which the current attempt stops at its next checkpoint."),
    ] = None
    valid_worlds: Annotated[
        list[int], Field(description="Sizes the world may have: those from min to max that divide virtualRanks.")
    ] = []
    size_message: Annotated[str | None, Field(description="Why the world is not larger; absent: it is at max.")] = None
    virtual_ranks: Annotated[
        int | None, Field(description="Slices of the global batch the run was started with; they stay for good.")
    ] = None
    workers_per_replica: Annotated[
        int | None,
        Field(description="Workers that hold one replica of the model together, as the run was started; absent: 1."),
    ] = None
    replica_multiple: Annotated[
        int | None,
        Field(description="Replicas that share experts, by whole workers, as the run was started; absent: 1."),
    ] = None
    ranks: Annotated[
        str | None,
        Field(description="Workers of the newest attempt in the order of their ranks, such as 0-2,5."),
    ] = None
    members: Annotated[
        str | None, Field(description="Digest of the pods that make up the current attempt; absent: there is none.")
    ] = None
    images: Annotated[
        list[str],
        Field(
            description="What the pods of the newest attempt run, by digest, as their nodes resolved the "
            "image. More than one: its tag was moved meanwhile."
        ),
    ] = []
    checkpoint: Annotated[CheckpointStatus | None, Field(description="Newest committed checkpoint.")] = None
    registered: Annotated[
        RegisteredStatus | None,
        Field(description="The version of a model that registerAs made; absent: it has made none."),
    ] = None
    compression: Annotated[
        CompressionReport | None,
        Field(description="Figures of the model before and after spec.compression; absent: none yet."),
    ] = None
    profile: Annotated[
        ProfileStatus | None, Field(description="The newest trace that callbacks.profiler has made; absent: none.")
    ] = None
    resumed_from: Annotated[
        CheckpointStatus | None, Field(description="Checkpoint the current attempt continued from; absent: step 0.")
    ] = None
    quarantined: Annotated[
        list[QuarantineStatus], Field(description="Checkpoints passed over because they did not verify, newest last.")
    ] = []
    restarts: Annotated[Restarts, Field(description="Attempts after the first.")] = Restarts()
    attempts_without_progress: Annotated[
        int, Field(description="Failed attempts in a row since the newest checkpoint; see recovery.noProgressAttempts.")
    ] = 0
    failure: Annotated[FailureStatus | None, Field(description="First failing rank of the newest failed attempt.")] = (
        None
    )
    node_faults: Annotated[
        list[NodeFault], Field(description="Nodes on which something broke within the last hour, at most 10.")
    ] = []
    micro_splits: Annotated[
        int | None,
        Field(description="Micro-steps per virtual rank, raised where memory is too small for fewer; absent: 1."),
    ] = None
    micro_splits_for: Annotated[
        str | None,
        Field(description="Digest of parallelism, gpus and nodeSelector that microSplits was found with."),
    ] = None
    skips: Annotated[
        list[SkipStatus], Field(description="Batches left out after rewinds, in the order of the data.")
    ] = []
    base_step: Annotated[
        int | None, Field(description="Step of the newest checkpoint when the newest attempt began; absent: none.")
    ] = None
    floor_step: Annotated[
        int | None,
        Field(description="The same, quarantined ones included: if it is there, no attempt starts from step 0."),
    ] = None
    floor_root: Annotated[str | None, Field(description="Its root; absent: there is none, or it did not verify.")] = (
        None
    )
    recoveries: Annotated[
        list[RecoveryStatus],
        Field(
            description="How each attempt came to follow another and what that cost, newest last, at most 20.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["fence"]},
        ),
    ] = []
    injected: Annotated[
        list[InjectedStatus],
        Field(
            description="Faults of spec.chaos that were injected, newest last.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    notes: Annotated[
        list[NoteStatus], Field(description="What ranks found worth telling, newest last, at most 20.")
    ] = []
    data: Annotated[
        DataReport | None, Field(description="What spec.dataQuality found; absent: nobody has looked yet.")
    ] = None
    goodput: Annotated[GoodputStatus | None, Field(description="What the job's time was spent on.")] = None
    started_at: Annotated[str | None, Field(description="When the first attempt began (RFC 3339).")] = None
    first_step_at: Annotated[
        str | None, Field(description="When the first step of the job was done (RFC 3339); chaos counts from it.")
    ] = None
    attempt_started_at: Annotated[str | None, Field(description="When the newest attempt began (RFC 3339).")] = None
    finished_at: Annotated[str | None, Field(description="When the job succeeded or failed (RFC 3339).")] = None
    active_seconds: Annotated[
        float | None, Field(description="Seconds run before the current activation; kept over suspensions.")
    ] = None
    active_since: Annotated[str | None, Field(description="When the current activation began (RFC 3339).")] = None
    estimated_finish_at: Annotated[
        str | None, Field(description="When the job will be done at the present speed (RFC 3339).")
    ] = None
    progress_at: Annotated[
        str | None, Field(description="When step, metrics, checkpoint and workers were last refreshed here (RFC 3339).")
    ] = None
    run_digest: Annotated[
        str | None,
        Field(
            description="Digest of the run.json that the pods read; it stays until the job is changed while suspended."
        ),
    ] = None
    pods_digest: Annotated[
        str | None,
        Field(
            description="Digest of what spec.workers said of each pod when the first ones were made; it stays as "
            "runDigest does."
        ),
    ] = None
    cleaned_up_at: Annotated[
        str | None, Field(description="When the pods were removed after ttlSecondsAfterFinished (RFC 3339).")
    ] = None
