"""`run.json`: the job as its pods see it."""

import hashlib
import json
from typing import Any

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.api.workers import Workers
from capstan_operator.build.children import Owner
from capstan_runtime.contract.callbacks import Callbacks
from capstan_runtime.contract.run_config import CheckpointPlan, Deadlines, JobConfig, ProgramConfig, RunConfig
from capstan_runtime.contract.tracking import Tracking


def build_run_config(job: Owner, spec: TrainingJobSpec, virtual_ranks: int | None = None) -> RunConfig | ProgramConfig:
    """The run of `job`, with every default that depends on another field resolved. `virtual_ranks`: those it was
    started with; None: it was not, and those of the spec are."""
    deadlines = spec.recovery.deadlines
    of_every_job: dict[str, Any] = {
        "job": f"{job.namespace}/{job.name}",
        "uid": job.uid,
        "training": spec.training.model_copy(update={"virtual_ranks": virtual_ranks or spec.virtual_ranks}),
        "checkpoint": CheckpointPlan(
            interval=spec.checkpoint.interval, retention=spec.checkpoint.retention, verify=spec.checkpoint.verify
        ),
        "numerical": spec.recovery.numerical,
        "tracking": spec.tracking or Tracking(),
        "warm_spare": spec.recovery.warm_spare,
        "memory_tier": spec.recovery.memory_tier,
        "deadlines": Deadlines(
            form=deadlines.form,
            first_step=deadlines.first_step,
            hang=deadlines.hang,
            save=deadlines.save,
            stop=deadlines.stop,
        ),
    }
    if spec.program is not None:
        return ProgramConfig(**of_every_job, program=spec.program)
    run = spec.of_trainers()
    return RunConfig(
        **of_every_job,
        framework=run.framework,
        model=run.model,
        data=run.data,
        data_quality=run.data_quality,
        augmentation=run.augmentation,
        optimizer=run.optimizer,
        schedule=run.schedule,
        loss=run.loss,
        regularization=run.regularization,
        compression=spec.compression,
        parallelism=run.parallelism,
        workers_per_replica=spec.workers_per_replica,
        callbacks=spec.callbacks or Callbacks(),
        register_as=spec.register_as,
        record=spec.record_steps,
    )


def run_json(run: JobConfig) -> str:
    """Canonical JSON: equal runs give equal bytes. What equals its default is left out: pods may be of the release
    before the operator's, or of the one after it, which knows other fields and has the same defaults for these."""
    return _canonical(run.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True))


def run_digest(run: JobConfig) -> str:
    """`sha256:` and 16 hex digits over the canonical JSON of what differs from the defaults: a field that a newer
    operator knows, and that nobody has set, makes no other run of this one."""
    return _digest(run.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True))


def pods_digest(workers: Workers) -> str:
    """The same over what `workers` says of each pod: all but how many there are."""
    counts = {"min", "max"}
    return _digest(workers.model_dump(mode="json", by_alias=True, exclude=counts, exclude_defaults=True))


def room_digest(spec: TrainingJobSpec) -> str:
    """The same over what may change in a job and decides how much of a step a device has to hold, and what it can."""
    shares = spec.model_dump(mode="json", by_alias=True, include={"parallelism"}, exclude_defaults=True)
    devices = {"gpus", "node_selector"}
    return _digest(shares | spec.workers.model_dump(mode="json", by_alias=True, include=devices, exclude_defaults=True))


def _digest(document: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(_canonical(document).encode()).hexdigest()[:16]


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
