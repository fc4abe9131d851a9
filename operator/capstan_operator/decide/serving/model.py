"""Which checkpoint `spec.modelRef` means."""

from typing import Literal

from pydantic import ValidationError

from capstan_operator.api.inference_service import InferenceServiceSpec, JobModel, StoredModel
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus
from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.api.training_job_status import CheckpointStatus, TrainingJobStatus
from capstan_operator.build.store import run_folder
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.types import NoModel
from capstan_operator.observe import ObservedJob

RUNTIME_OF: dict[str, Literal["flax", "torch"]] = {"flax": "flax", "deepspeed": "torch"}


def resolve(
    spec: InferenceServiceSpec, job: ObservedJob | None, status: InferenceServiceStatus, *, is_stuck: bool = False
) -> ModelStatus | NoModel:
    """The checkpoint to serve. What was found once stays on status, so that it is served when its job is gone, too.

    `is_stuck`: the rollout that is on its way cannot go on, and nobody gives it up. What a registry says is
    `registered.py`'s.
    """
    if spec.model_ref.uri:
        return _stored(spec.model_ref.uri)
    assert spec.model_ref.training_job is not None
    is_busy = status.rollout is not None and not is_stuck
    return _of_job(spec.model_ref.training_job, job, status, is_busy=is_busy)


def _stored(ref: StoredModel) -> ModelStatus:
    return ModelStatus(source="uri", run=ref.run, digest=ref.digest, store=ref.store, public_key=ref.public_key)


def _of_job(
    ref: JobModel, job: ObservedJob | None, status: InferenceServiceStatus, *, is_busy: bool
) -> ModelStatus | NoModel:
    source = f"trainingJob {ref.name}" + (f" {ref.digest}" if ref.digest else "")
    known = status.model if status.model and status.model.source == source else None
    # A checkpoint that comes while another is rolled out waits for its turn: a job that saves more often than a rollout
    # takes would otherwise never get one through.
    is_settled = known is not None and (not ref.track or is_busy)
    found = known if is_settled else _newest(ref, job, source, known)
    if found is None:
        return known or _nothing(ref, job)
    if isinstance(found, NoModel):
        return known or found
    # A key that was asked for once stays asked for, whatever becomes of the job; a job may only change it for another.
    key = ref.public_key or found.public_key or (known.public_key if known else None)
    return found.model_copy(update={"public_key": key})


def _newest(
    ref: JobModel, job: ObservedJob | None, source: str, known: ModelStatus | None
) -> ModelStatus | NoModel | None:
    """The checkpoint of `job` to serve; None: none is good enough yet."""
    if job is None:
        return None
    try:
        spec = TrainingJobSpec.parse(job.spec)
    except ValidationError:
        return NoModel(
            ServingReason.TRAINING_JOB_INVALID,
            f"the spec of TrainingJob {ref.name} is invalid, so nobody knows where its checkpoints are; see its status",
        )
    if spec.framework is None:
        return NoModel(
            ServingReason.TRAINING_JOB_INVALID,
            f"TrainingJob {ref.name} runs a program of its own, and only that knows its model; serve one of a job that "
            "Capstan trains",
        )
    if spec.model is not None and spec.model.custom is not None:
        return NoModel(
            ServingReason.TRAINING_JOB_INVALID,
            f"TrainingJob {ref.name} trains a model of its user's own code (model.custom), and only that code can "
            "serve it; serve one of a job with one of Capstan's models",
        )
    if ref.digest:
        told = next((c for c in _mentioned(job.status) if c.root == ref.digest), None)
        digest, step = ref.digest, told.step if told else None
    else:
        verified = _verified(job.status, may_be_older=ref.track and known is None)
        if verified is None or not (ref.track or _has_succeeded(job.status)):
            return None
        digest, step = verified.root, verified.step
    return ModelStatus(
        source=source,
        run=run_folder(job),
        digest=digest,
        step=step,
        framework=RUNTIME_OF[spec.framework.kind],
        store=spec.checkpoint.store,
        public_key=spec.checkpoint.verify.public_key,
    )


def _verified(status: TrainingJobStatus, *, may_be_older: bool) -> CheckpointStatus | None:
    """The newest checkpoint whose bytes were read back and matched; None: there is none, or a newer one is awaited."""
    choices = _mentioned(status) if may_be_older else [c for c in (status.checkpoint,) if c]
    return next((checkpoint for checkpoint in choices if checkpoint.verified_at), None)


def _has_succeeded(status: TrainingJobStatus) -> bool:
    return is_true(status, TrainingJobCondition.SUCCEEDED)


def _mentioned(status: TrainingJobStatus) -> list[CheckpointStatus]:
    return [checkpoint for checkpoint in (status.checkpoint, status.resumed_from) if checkpoint is not None]


def _nothing(ref: JobModel, job: ObservedJob | None) -> NoModel:
    if job is None:
        return NoModel(
            ServingReason.TRAINING_JOB_NOT_FOUND,
            f"there is no TrainingJob {ref.name} in this namespace; what it trains will be served",
        )
    if not ref.track and not _has_succeeded(job.status):
        return NoModel(
            ServingReason.TRAINING_JOB_NOT_DONE,
            f"TrainingJob {ref.name} has not succeeded yet; what it ends with will be served. To serve sooner, set "
            "modelRef.trainingJob.track (each verified checkpoint) or digest (a certain one)",
        )
    newest = job.status.checkpoint
    seen = f"{newest.summary or newest.root} was not read back yet" if newest else "it has committed none"
    return NoModel(
        ServingReason.NO_VERIFIED_CHECKPOINT, f"TrainingJob {ref.name} has no verified checkpoint so far: {seen}"
    )
