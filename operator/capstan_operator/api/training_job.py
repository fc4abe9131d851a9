"""TrainingJob: its spec, its status, and the rules that bind several fields."""

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from capstan_operator.api.augmentation_rules import AUGMENTATION_RULES, require_augmentation_fits
from capstan_operator.api.checkpoint_spec import CheckpointSpec
from capstan_operator.api.compression_rules import COMPRESSION_RULES, require_compression_fits
from capstan_operator.api.custom_rules import CUSTOM_RULES, require_custom_fits
from capstan_operator.api.deepspeed_parallelism_rules import (
    DEEPSPEED_PARALLELISM_RULES,
    require_exact_with_deepspeed,
)
from capstan_operator.api.flax_parallelism_rules import FLAX_PARALLELISM_RULES, require_exact_with_flax
from capstan_operator.api.loss_rules import LOSS_RULES, require_loss_fits
from capstan_operator.api.managed_by import MANAGED_BY_RULE, ManagedBy
from capstan_operator.api.memory_rules import MEMORY_RULES, require_memory_fits
from capstan_operator.api.model_rules import MODEL_RULES, require_model_fits
from capstan_operator.api.parallelism_rules import PARALLELISM_RULES, require_parallelism_fits
from capstan_operator.api.program_rules import program_rules, require_program_or_trainer
from capstan_operator.api.recovery_spec import Chaos, Recovery
from capstan_operator.api.replicas import (
    CEL_MIN,
    CEL_RANKS,
    CEL_WORKERS_PER_REPLICA,
    REPLICA_RULES,
    replicas_of,
    require_whole_replicas,
    whole_worlds,
)
from capstan_operator.api.update_rules import UPDATE_RULES, require_update_fits
from capstan_operator.api.workers import Workers
from capstan_runtime.contract.augmentation import Augmentation
from capstan_runtime.contract.base import Positive, Record, cel, rules_of
from capstan_runtime.contract.callbacks import Callbacks
from capstan_runtime.contract.compression import Compression
from capstan_runtime.contract.data import Data
from capstan_runtime.contract.data_quality import DataQuality
from capstan_runtime.contract.framework import Framework
from capstan_runtime.contract.losses import Loss, Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.optimizers import Optimizer
from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.contract.program import Program
from capstan_runtime.contract.registry import Register
from capstan_runtime.contract.schedules import Schedule
from capstan_runtime.contract.tracking import Tracking
from capstan_runtime.contract.training import Training

# How the ranks are shown: with where they come from when the user did not write them.
_CEL_RANKS_SHOWN = (
    f"string({CEL_RANKS}) + (has(self.training.virtualRanks) ? ''"
    f" : {CEL_WORKERS_PER_REPLICA} > 1 ? ' (default: replicas of workers.max)' : ' (default: workers.max)')"
)


def _cel_world_fits(name: str, workers: str) -> tuple[str, str]:
    """Numbers below 1 have a line of their own already; without looking at them a division would add another."""
    return (
        f"self.workers.max < 1 || [{workers} / {CEL_WORKERS_PER_REPLICA}].all(n, n < 1 || {CEL_RANKS} % n == 0)",
        f"'workers: {name} ' + string({workers}) + [{CEL_WORKERS_PER_REPLICA}].map(n,"
        " n > 1 ? ' in replicas of ' + string(n) : '')[0] + ' does not divide virtualRanks ' +"
        f" {_CEL_RANKS_SHOWN} + '; choose a divisor'",
    )


# What the run is cannot change under it: data order, weights and checkpoints would no longer belong together.
FROZEN = (
    *("program", "framework", "model", "data", "dataQuality", "augmentation", "optimizer", "schedule", "loss"),
    *("regularization", "training", "compression"),
)
"""Fields that cannot change after a job was created."""


class Run(Record):
    """What to train, on what, how, and with how many workers: what a Benchmark measures, too."""

    model_config = cel(
        (
            f"{CEL_MIN} <= self.workers.max",
            f"'workers: min ' + string({CEL_MIN}) + ' is above max ' + string(self.workers.max) + '; lower min'",
        ),
        (
            f"[{CEL_RANKS}].all(ranks, ranks < 1 || self.training.globalBatchSize % ranks == 0)",
            "'training: globalBatchSize ' + string(self.training.globalBatchSize)"
            f" + ' is not a multiple of virtualRanks ' + {_CEL_RANKS_SHOWN} + '; choose a multiple'",
        ),
        *REPLICA_RULES,
        _cel_world_fits("min", CEL_MIN),
        _cel_world_fits("max", "self.workers.max"),
        (
            "has(self.model.custom) || has(self.model.transformer) == (has(self.data.text) || has(self.data.tokens))",
            "'model: transformer trains on data text or tokens, mlp and cnn on digits, arrays or images; change model "
            "or data'",
        ),
        *AUGMENTATION_RULES,
        *MEMORY_RULES,
        *CUSTOM_RULES,
        *MODEL_RULES,
        *UPDATE_RULES,
        *LOSS_RULES,
        *PARALLELISM_RULES,
        *FLAX_PARALLELISM_RULES,
        *DEEPSPEED_PARALLELISM_RULES,
    )

    framework: Annotated[Framework, Field(description="Which trainer runs the job.")]
    model: Annotated[Model, Field(description="The model's architecture.")]
    data: Annotated[Data, Field(description="What the model is trained on.")]
    data_quality: Annotated[
        DataQuality | None, Field(description="Left out: data is looked at only as it is trained on.")
    ] = None
    augmentation: Annotated[
        Augmentation | None, Field(description="Left out: pictures are trained on as they are.")
    ] = None
    optimizer: Annotated[Optimizer, Field(description="The optimizer.")]
    schedule: Annotated[Schedule, Field(description="How the learning rate moves.")]
    training: Annotated[Training, Field(description="Length, batch, precision and randomness of the run.")]
    loss: Annotated[Loss | None, Field(description="What training makes small. Left out: cross-entropy.")] = None
    regularization: Annotated[
        Regularization | None, Field(description="What makes training harder, so that the model generalises.")
    ] = None
    workers: Annotated[Workers, Field(description="How many pods train together.")]
    parallelism: Annotated[
        Parallelism | None,
        Field(
            description="Spread each replica of a decoder over several devices. May change while the job is suspended. "
            "Left out: every device holds a replica."
        ),
    ] = None

    @property
    def virtual_ranks(self) -> int:
        """`training.virtualRanks`, or its default: the replicas that `workers.max` hold."""
        return self.training.virtual_ranks or max(1, self.workers.max // self.workers_per_replica)

    @property
    def workers_per_replica(self) -> int:
        """How many workers with consecutive ranks hold one replica of the model together."""
        return replicas_of(self).workers

    @property
    def min_workers(self) -> int:
        """`workers.min`, or its default `workers.max`."""
        return self.workers.min or self.workers.max

    def valid_worlds(self) -> list[int]:
        """The world sizes between min and max whose replicas divide virtualRanks, smallest first; never empty."""
        worlds = whole_worlds(replicas_of(self), self.workers.max, self.virtual_ranks)
        return [world for world in worlds if world >= self.min_workers]

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for rule in (*_of_every_job(), *_of_trainers()):
            rule(self)
        return self


def _said(field: str) -> Any:
    """The description that a field of a Run has."""
    return Field(description=Run.model_fields[field].description)


class TrainingJobSpec(Run):
    """What to train and with what. The operator never writes here."""

    model_config = cel(
        *program_rules(Run, list(rules_of(Run))),
        (
            "self.chaos.all(one, !has(one.rank) || one.rank < self.workers.max)",
            "'chaos: ' + self.chaos.filter(one, has(one.rank) && one.rank >= self.workers.max)[0].name"
            " + ' is for a rank that is not below workers.max ' + string(self.workers.max) + '; lower its rank'",
        ),
        (
            "!has(self.training.steps) || self.chaos.all(one, !has(one.step) || one.step < self.training.steps)",
            "'chaos: ' + self.chaos.filter(one, has(one.step) && one.step >= self.training.steps)[0].name"
            " + ' is for a step that is not below training.steps ' + string(self.training.steps) + '; lower its step'",
        ),
        (
            "!has(self.callbacks) || !has(self.callbacks.earlyStopping) || has(self.training.evaluation)",
            "'callbacks: earlyStopping follows evaluations, and there are none; set training.evaluation'",
        ),
        *(
            (
                f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
                f"'{field}: cannot change after the job was created; delete the job and create one with a new name'",
            )
            for field in FROZEN
        ),
        (
            "self.checkpoint.store == oldSelf.checkpoint.store",
            "'checkpoint.store: cannot change after the job was created; its checkpoints are there'",
        ),
        (
            "has(self.checkpoint.sign) == has(oldSelf.checkpoint.sign)"
            " && (!has(self.checkpoint.sign) || self.checkpoint.sign == oldSelf.checkpoint.sign)",
            "'checkpoint.sign: cannot change after the job was created; its checkpoints must stay signed by one key'",
        ),
        *COMPRESSION_RULES,
        MANAGED_BY_RULE,
    )

    program: Annotated[
        Program | None,
        Field(
            description="A program of your own in the place of Capstan's trainers. It decides about model, data and "
            "optimizer itself. Left out: Capstan trains the model."
        ),
    ] = None
    # What a program has none of; everybody else has to give it.
    framework: Annotated[Framework | None, _said("framework")] = None  # type: ignore[assignment]
    model: Annotated[Model | None, _said("model")] = None  # type: ignore[assignment]
    data: Annotated[Data | None, _said("data")] = None  # type: ignore[assignment]
    optimizer: Annotated[Optimizer | None, _said("optimizer")] = None  # type: ignore[assignment]
    schedule: Annotated[Schedule | None, _said("schedule")] = None  # type: ignore[assignment]
    checkpoint: Annotated[CheckpointSpec, Field(description="Where, how often and how carefully the run is saved.")]
    compression: Annotated[
        Compression | None, Field(description="What makes the model smaller while it is trained.")
    ] = None
    register_as: Annotated[
        Register | None,
        Field(
            description="Register what the job ends with as a version of a model, in the registry of the checkpoint "
            "store: capstan model list. Left out: somebody else does, or nobody. A change is followed once the job was "
            "suspended, no pod was left, and it was resumed."
        ),
    ] = None
    recovery: Annotated[Recovery, Field(description="What happens when something breaks.")] = Recovery()
    # Nothing that an earlier release does not know may have a default: the API server would fill it in, and an operator
    # of that release, in the middle of an upgrade, would call every job invalid.
    callbacks: Annotated[
        Callbacks | None,
        Field(
            description="What follows the run. A change is followed once the job was suspended, no pod was left, and "
            "it was resumed."
        ),
    ] = None
    tracking: Annotated[
        Tracking | None,
        Field(
            description="Who is told of every metric, besides status and Prometheus. A change is followed as one of "
            "callbacks is."
        ),
    ] = None
    chaos: Annotated[
        list[Chaos],
        Field(
            max_length=100,
            description="Faults to inject, for testing recovery. Needs the operator's and the namespace's consent. May "
            "change while the job runs: what ranks suffer is handed out when an attempt begins, so a new entry waits "
            "for the next one, except DeletePod.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    record_steps: Annotated[
        bool,
        Field(
            description="Keep how long steps took, and on what machine, beside the checkpoints, as Benchmarks do. A "
            "change is followed once the job was suspended, no pod was left, and it was resumed."
        ),
    ] = False
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
            description="Seconds after the end until the pods are removed; those whose trainer still runs when a job "
            "fails go at once. The TrainingJob itself stays, so that GitOps tools do not run it again. Left out: pods "
            "stay.",
        ),
    ] = None
    managed_by: ManagedBy = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The spec a JSON document describes. Types are strict, as the API server's are: "3" is not 3."""
        return cls.model_validate(document, strict=True, by_alias=True, by_name=False)

    def of_trainers(self) -> Run:
        """The same as what Capstan's own trainers do. Only of a spec without a program."""
        return Run.model_construct(**{name: getattr(self, name) for name in Run.model_fields})

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        require_program_or_trainer(self, Run)
        for rule in (*_of_every_job(), *(_of_trainers() if self.program is None else ())):
            rule(self)
        if self.program is None:
            require_compression_fits(self)
        return self

    @model_validator(mode="after")
    def _additions_fit(self) -> Self:
        for rule in (_chaos_is_named_and_placed, _early_stopping_has_evaluations):
            rule(self)
        return self


def _of_every_job() -> tuple[Callable[[Run], None], ...]:
    return _min_within_max, require_whole_replicas, _ranks_divide_batch, _some_world_fits


def _of_trainers() -> tuple[Callable[[Run], None], ...]:
    """Rules about what a program has none of."""
    return (
        _model_suits_data,
        require_augmentation_fits,
        require_memory_fits,
        require_model_fits,
        require_update_fits,
        require_loss_fits,
        require_custom_fits,
        require_parallelism_fits,
        require_exact_with_flax,
        require_exact_with_deepspeed,
    )


def _min_within_max(spec: Run) -> None:
    if spec.min_workers > spec.workers.max:
        raise ValueError(f"workers: min {spec.workers.min} is above max {spec.workers.max}; lower min")


def _ranks_divide_batch(spec: Run) -> None:
    batch, ranks = spec.training.global_batch_size, spec.virtual_ranks
    if batch % ranks:
        raise ValueError(
            f"training: globalBatchSize {batch} is not a multiple of virtualRanks {_ranks_shown(spec)}; "
            f"choose {batch - batch % ranks or ranks} or {batch - batch % ranks + ranks}"
        )


def _ranks_shown(spec: Run) -> str:
    if spec.training.virtual_ranks:
        return str(spec.virtual_ranks)
    return f"{spec.virtual_ranks} (default: {'replicas of ' if spec.workers_per_replica > 1 else ''}workers.max)"


def _some_world_fits(spec: Run) -> None:
    """Both ends must be usable sizes, so that nobody reserves workers that can never take part."""
    per_replica, ranks = spec.workers_per_replica, spec.virtual_ranks
    over = f" in replicas of {per_replica}" if per_replica > 1 else ""
    for name, size in (("min", spec.min_workers), ("max", spec.workers.max)):
        if ranks % (size // per_replica):
            choices = ", ".join(str(n * per_replica) for n in range(1, min(ranks, 64) + 1) if ranks % n == 0)
            raise ValueError(
                f"workers: {name} {size}{over} does not divide virtualRanks {_ranks_shown(spec)}; "
                f"choose one of {choices}"
            )


def _model_suits_data(spec: Run) -> None:
    is_sequence_data = spec.data.kind in ("text", "tokens")
    if spec.model.custom is None and is_sequence_data != (spec.model.kind == "transformer"):
        fix = "choose model transformer" if is_sequence_data else "choose model mlp or cnn"
        raise ValueError(f"model: {spec.model.kind} cannot train on data {spec.data.kind}; {fix}")


def _chaos_is_named_and_placed(spec: TrainingJobSpec) -> None:
    names = [one.name for one in spec.chaos]
    for one in spec.chaos:
        if names.count(one.name) > 1:
            raise ValueError(f"chaos: {one.name} is the name of {names.count(one.name)} entries; rename all but one")
        if one.rank is not None and one.rank >= spec.workers.max:
            raise ValueError(
                f"chaos: {one.name} is for a rank that is not below workers.max {spec.workers.max}; lower its rank"
            )
        steps = spec.training.steps
        if one.step is not None and steps is not None and one.step >= steps:
            raise ValueError(
                f"chaos: {one.name} is for a step that is not below training.steps {steps}; lower its step"
            )


def _early_stopping_has_evaluations(spec: TrainingJobSpec) -> None:
    if spec.callbacks and spec.callbacks.early_stopping and not spec.training.evaluation:
        raise ValueError("callbacks: earlyStopping follows evaluations, and there are none; set training.evaluation")
