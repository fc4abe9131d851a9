"""TrainingJob: its spec, its status, and the rules that bind several fields."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from capstan_operator.api.meta import Condition
from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.config import (
    Data,
    Framework,
    Interval,
    Model,
    Optimizer,
    Positive,
    Retention,
    Schedule,
    Training,
    Verify,
)

Quantity = Annotated[
    str,
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        description="A Kubernetes quantity such as 500m, 2 or 4Gi.",
    ),
]


class Toleration(Record):
    """A taint this job's pods tolerate; the fields mean what they mean on a Pod."""

    key: Annotated[str | None, Field(description="Taint key; left out with operator Exists: all taints.")] = None
    operator: Annotated[str | None, Field(description="Exists or Equal.")] = None
    value: Annotated[str | None, Field(description="Taint value, for operator Equal.")] = None
    effect: Annotated[str | None, Field(description="NoSchedule, PreferNoSchedule or NoExecute; left out: all.")] = None
    toleration_seconds: Annotated[int | None, Field(description="For NoExecute: seconds until eviction.")] = None


class Workers(Record):
    """How many pods train together and what each of them gets."""

    max: Annotated[int, Field(ge=1, le=16384, description="Workers to run with when all can be had.")]
    min: Annotated[
        Positive | None, Field(description="Fewest workers to go on with. Left out: max, the size is fixed.")
    ] = None
    gpus: Annotated[int, Field(ge=0, le=16, description="NVIDIA GPUs per worker; 0 trains on the CPU.")] = 0
    image: Annotated[
        str | None,
        Field(min_length=1, description="Container image. Left out: the operator's image for the framework."),
    ] = None
    resources: Annotated[
        dict[str, Quantity],
        Field(description="Requests, and limits of the same size, by resource name. nvidia.com/gpu comes from gpus."),
    ] = {}
    node_selector: Annotated[dict[str, str], Field(description="Labels a node must carry.")] = {}
    tolerations: Annotated[list[Toleration], Field(description="Taints the pods tolerate.")] = []
    pod_patch: Annotated[
        dict[str, Any] | None,
        Field(
            description="Merged into every pod (strategic merge: containers by name, volumes by name). The trainer's "
            "container is called trainer.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None


class Claim(Record):
    """A PersistentVolumeClaim that all workers can write to at once."""

    name: Annotated[str, Field(min_length=1, description="Name of the claim, in the job's namespace.")]


class HostPath(Record):
    """A folder that exists on every node, such as a mounted parallel file system."""

    path: Annotated[str, Field(min_length=1, pattern="^/", description="Absolute path on the nodes.")]


class Store(OneOf):
    """Where checkpoints are kept. Each run writes to its own folder `<namespace>/<job>/<uid>` in it."""

    claim: Annotated[Claim | None, Field(description="A PersistentVolumeClaim.")] = None
    host_path: Annotated[HostPath | None, Field(description="A folder on the nodes.")] = None


class CheckpointSpec(Record):
    """Where, how often and how carefully the run is saved."""

    store: Annotated[Store, Field(description="Where checkpoints are kept.")]
    interval: Annotated[Interval, Field(description="How often to save.")] = Interval(seconds=600)
    retention: Annotated[Retention, Field(description="What to keep.")] = Retention()
    verify: Annotated[
        Verify,
        Field(description="What is checked before a resume: full reads and hashes every byte, manifest only names."),
    ] = "full"


Budget = Annotated[int, Field(ge=0, le=1000, description="Restarts allowed for this cause over the job's life.")]
Seconds = Annotated[int, Field(ge=1, le=86400)]


class Budgets(Record):
    """How many restarts each cause may cost before the job is failed. One cause never uses up another's."""

    application: Budget = 1
    retryable: Budget = 10
    crash: Budget = 3
    gpu_fault: Budget = 3
    host_out_of_memory: Budget = 1
    gpu_out_of_memory: Budget = 3
    lost: Budget = 20
    hang: Budget = 3
    corrupt_checkpoint: Budget = 1
    numerical: Budget = 0


class RecoveryDeadlines(Record):
    """Seconds after which a wait counts as a failure."""

    form: Annotated[Seconds, Field(description="From the first process of an attempt to the last having joined.")] = 120
    first_step: Annotated[Seconds, Field(description="From having joined to the first step: restore and compile.")] = (
        600
    )
    hang: Annotated[
        Seconds,
        Field(description="Least time without a step that counts as a hang; 5 x the slowest recent step if longer."),
    ] = 60
    save: Annotated[Seconds, Field(description="From the first shard written to the commit.")] = 120
    stop: Annotated[Seconds, Field(description="From asking a trainer to stop to killing it.")] = 20


class Recovery(Record):
    """What happens when something breaks."""

    budgets: Annotated[Budgets, Field(description="Restarts allowed per cause.")] = Budgets()
    deadlines: Annotated[RecoveryDeadlines, Field(description="How long each wait may take, in seconds.")] = (
        RecoveryDeadlines()
    )


# CEL spellings of the two properties of TrainingJobSpec that have a default made of another field.
_CEL_RANKS = "(has(self.training.virtualRanks) ? self.training.virtualRanks : self.workers.max)"
_CEL_MIN = "(has(self.workers.min) ? self.workers.min : self.workers.max)"

# What the run is cannot change under it: data order, weights and checkpoints would no longer belong together.
_FROZEN = ("framework", "model", "data", "optimizer", "schedule", "training")


class TrainingJobSpec(Record):
    """What to train and with what. The operator never writes here."""

    model_config = cel(
        (
            f"{_CEL_MIN} <= self.workers.max",
            f"'workers: min ' + string({_CEL_MIN}) + ' is above max ' + string(self.workers.max) + '; lower min'",
        ),
        (
            f"self.training.globalBatchSize % {_CEL_RANKS} == 0",
            "'training: globalBatchSize ' + string(self.training.globalBatchSize)"
            f" + ' is not a multiple of virtualRanks ' + string({_CEL_RANKS}) + '; choose a multiple'",
        ),
        (
            f"{_CEL_RANKS} % {_CEL_MIN} == 0",
            f"'workers: min ' + string({_CEL_MIN}) + ' does not divide virtualRanks ' + string({_CEL_RANKS})"
            " + '; choose a divisor'",
        ),
        (
            f"{_CEL_RANKS} % self.workers.max == 0",
            f"'workers: max ' + string(self.workers.max) + ' does not divide virtualRanks ' + string({_CEL_RANKS})"
            " + '; choose a divisor'",
        ),
        (
            "has(self.model.transformer) == (has(self.data.text) || has(self.data.tokens))",
            "'model: transformer trains on data text or tokens, mlp and cnn on digits or arrays; change model or data'",
        ),
        (
            "!(has(self.framework.deepspeed) && self.framework.deepspeed.zeroStage == 0"
            " && self.training.precision == 'bf16')",
            "'framework: deepspeed.zeroStage 0 cannot train in precision bf16; choose zeroStage 1, 2 or 3'",
        ),
        *(
            (
                f"self.{field} == oldSelf.{field}",
                f"'{field}: cannot change after the job was created; delete the job and create one with a new name'",
            )
            for field in _FROZEN
        ),
        (
            "self.checkpoint.store == oldSelf.checkpoint.store",
            "'checkpoint.store: cannot change after the job was created; its checkpoints are there'",
        ),
    )

    framework: Annotated[Framework, Field(description="Which trainer runs the job.")]
    model: Annotated[Model, Field(description="The model's architecture.")]
    data: Annotated[Data, Field(description="What the model is trained on.")]
    optimizer: Annotated[Optimizer, Field(description="The optimizer.")]
    schedule: Annotated[Schedule, Field(description="How the learning rate moves.")]
    training: Annotated[Training, Field(description="Length, batch, precision and randomness of the run.")]
    workers: Annotated[Workers, Field(description="How many pods train together.")]
    checkpoint: Annotated[CheckpointSpec, Field(description="Where, how often and how carefully the run is saved.")]
    recovery: Annotated[Recovery, Field(description="What happens when something breaks.")] = Recovery()
    suspend: Annotated[
        bool, Field(description="Stop after saving a checkpoint, and free the pods; false again continues from it.")
    ] = False
    active_deadline_seconds: Annotated[
        Positive | None, Field(description="Seconds the job may run, suspended time not counted, before it is failed.")
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            ge=0,
            description="Seconds after the end until the pods are removed. The TrainingJob itself stays, so that "
            "GitOps tools do not run it again. Left out: pods stay.",
        ),
    ] = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The spec a JSON document describes. Types are strict, as the API server's are: "3" is not 3."""
        return cls.model_validate(document, strict=True, by_alias=True, by_name=False)

    @property
    def virtual_ranks(self) -> int:
        """`training.virtualRanks`, or its default `workers.max`."""
        return self.training.virtual_ranks or self.workers.max

    @property
    def min_workers(self) -> int:
        """`workers.min`, or its default `workers.max`."""
        return self.workers.min or self.workers.max

    def valid_worlds(self) -> list[int]:
        """The world sizes between min and max that divide virtualRanks, smallest first; never empty."""
        return [w for w in range(self.min_workers, self.workers.max + 1) if self.virtual_ranks % w == 0]

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for rule in (_min_within_max, _ranks_divide_batch, _some_world_fits, _model_suits_data, _bf16_needs_zero):
            rule(self)
        return self


def _min_within_max(spec: TrainingJobSpec) -> None:
    if spec.min_workers > spec.workers.max:
        raise ValueError(f"workers: min {spec.workers.min} is above max {spec.workers.max}; lower min")


def _ranks_divide_batch(spec: TrainingJobSpec) -> None:
    batch, ranks = spec.training.global_batch_size, spec.virtual_ranks
    if batch % ranks:
        raise ValueError(
            f"training: globalBatchSize {batch} is not a multiple of virtualRanks {ranks}; "
            f"choose {batch - batch % ranks or ranks} or {batch - batch % ranks + ranks}"
        )


def _some_world_fits(spec: TrainingJobSpec) -> None:
    """Both ends must be usable sizes, so that nobody reserves workers that can never take part."""
    for name, size in (("min", spec.min_workers), ("max", spec.workers.max)):
        if spec.virtual_ranks % size:
            choices = ", ".join(
                str(n) for n in range(1, min(spec.virtual_ranks, 64) + 1) if spec.virtual_ranks % n == 0
            )
            raise ValueError(
                f"workers: {name} {size} does not divide virtualRanks {spec.virtual_ranks}; choose one of {choices}"
            )


def _model_suits_data(spec: TrainingJobSpec) -> None:
    is_sequence_data = spec.data.kind in ("text", "tokens")
    if is_sequence_data != (spec.model.kind == "transformer"):
        fix = "choose model transformer" if is_sequence_data else "choose model mlp or cnn"
        raise ValueError(f"model: {spec.model.kind} cannot train on data {spec.data.kind}; {fix}")


def _bf16_needs_zero(spec: TrainingJobSpec) -> None:
    deepspeed = spec.framework.deepspeed
    if deepspeed and deepspeed.zero_stage == 0 and spec.training.precision == "bf16":
        raise ValueError("framework: deepspeed.zeroStage 0 cannot train in precision bf16; choose zeroStage 1, 2 or 3")


class WorkersStatus(Record):
    """Pods of the job."""

    ready: Annotated[int, Field(description="Workers whose supervisor answers.")] = 0
    desired: Annotated[int, Field(description="Workers wanted now.")] = 0
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

    rank: Annotated[int | None, Field(description="Rank that failed first.")] = None
    pod: Annotated[str | None, Field(description="Its pod.")] = None
    node: Annotated[str | None, Field(description="Its node.")] = None
    fence: Annotated[int, Field(description="The attempt that failed.")]
    exit_code: Annotated[int | None, Field(description="Exit status; 128 + N for signal N.")] = None
    signal: Annotated[str | None, Field(description="Signal name, when one ended the process.")] = None
    failure_class: Annotated[str, Field(alias="class", description="What kind of failure this is.")]
    message: Annotated[str, Field(description="One line: what went wrong.")]
    last_lines: Annotated[list[str], Field(description="Last lines of output, oldest first.")] = []
    at: Annotated[str, Field(description="When it was seen (RFC 3339).")]


class QuarantineStatus(Record):
    """A committed checkpoint that failed verification and was passed over."""

    step: Annotated[int, Field(description="Its step.")]
    root: Annotated[str, Field(description="Its name.")]
    reason: Annotated[str, Field(description="What did not match.")]


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
            description="Newest values: loss, accuracy (validation), learning_rate, samples_per_second, step_seconds."
        ),
    ] = {}
    workers: Annotated[WorkersStatus, Field(description="Pods of the job.")] = WorkersStatus()
    world: Annotated[
        int | None, Field(description="Processes in the current attempt, or in the one being prepared.")
    ] = None
    fence: Annotated[int, Field(description="Number of the current attempt; grows for ever.")] = 0
    members: Annotated[
        str | None, Field(description="Digest of the pods that make up the current attempt; absent: there is none.")
    ] = None
    checkpoint: Annotated[CheckpointStatus | None, Field(description="Newest committed checkpoint.")] = None
    resumed_from: Annotated[
        CheckpointStatus | None, Field(description="Checkpoint the current attempt continued from; absent: step 0.")
    ] = None
    quarantined: Annotated[
        list[QuarantineStatus], Field(description="Checkpoints passed over because they did not verify, newest last.")
    ] = []
    restarts: Annotated[Restarts, Field(description="Attempts after the first.")] = Restarts()
    failure: Annotated[FailureStatus | None, Field(description="First failing rank of the newest failed attempt.")] = (
        None
    )
    started_at: Annotated[str | None, Field(description="When the first attempt began (RFC 3339).")] = None
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
        Field(description="Digest of the run.json that the pods were first started with; it stays for good."),
    ] = None
    cleaned_up_at: Annotated[
        str | None, Field(description="When the pods were removed after ttlSecondsAfterFinished (RFC 3339).")
    ] = None
