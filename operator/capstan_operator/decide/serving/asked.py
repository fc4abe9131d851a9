"""What spec and model ask of a revision, in words that no version of the operator changes.

A revision is named after all that its pods are made of, and of that the operator adds a part: its image for serving,
and whatever a newer one makes of the same spec. No service is to be rolled out for those: while spec and model ask for
the same as when its revision was made, that revision is what they ask for.
"""

import hashlib
import json

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus, RevisionStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.serving.fleet import known_revision, with_revision

_OF_THE_SERVICE = {"model_ref", "runtime", "backend", "managed_by", "rollout", "gateway"}
"""Not of its pods: who sees to it, how requests come to them and how they take over. Of the first three counts what
they come to."""
_SIZE = {"replicas", "autoscaling"}
_OF_THE_MODEL = {"run", "digest", "store", "public_key"}


def asked_digest(spec: InferenceServiceSpec, model: ModelStatus) -> str:
    """`sha256:` and 16 hex digits over what the user has a say in. Fields that equal their default are left out: one
    that a newer operator knows, and that nobody has set, asks for nothing else."""
    is_ray = spec.backend == "RayService"
    canary = spec.rollout.strategy.canary
    left_out = _OF_THE_SERVICE if is_ray else _OF_THE_SERVICE | _SIZE  # KubeRay's clusters are made for one size
    document = [
        spec.model_dump(mode="json", by_alias=True, exclude=left_out, exclude_defaults=True),
        model.model_dump(mode="json", by_alias=True, include=_OF_THE_MODEL, exclude_none=True),
        spec.runtime or model.framework,
        "RayService" if is_ray else "Standalone",
        "compares" if canary is not None and canary.gates.min_agreement is not None else "",
    ]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def with_asked(
    status: InferenceServiceStatus, asked: str, model: ModelStatus, generation: int
) -> InferenceServiceStatus:
    """`status`, of which an operator that did not note it has told what is asked for: then it is noted."""
    if status.observed_generation != generation or status.model != model:
        return status
    told = _told(status, model, generation)
    if told is None or told.asked is not None:
        return status
    return with_revision(status, told.model_copy(update={"asked": asked}))


def _told(status: InferenceServiceStatus, model: ModelStatus, generation: int) -> RevisionStatus | None:
    """The revision that this generation of the spec asks for, by what status says; None: it does not say."""
    if status.rollout is not None:
        return known_revision(status, status.rollout.candidate)
    if is_true(status, InferenceServiceCondition.UP_TO_DATE):
        return known_revision(status, status.stable)
    failed = [one for one in status.revisions if one.failure is not None and one.failure.generation == generation]
    return failed[-1] if failed and failed[-1].digest == model.digest else None


def kept_revision(status: InferenceServiceStatus, asked: str) -> RevisionStatus | None:
    """The revision, proven or on its way, that was made for the very same; None: there is none."""
    names = (status.rollout.candidate if status.rollout else None, status.stable)
    found = (known_revision(status, name) for name in names)
    return next((one for one in found if one is not None and one.asked == asked), None)
