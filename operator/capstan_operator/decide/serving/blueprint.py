"""What follows from a spec and a model alone: computed once, or refused with reasons."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.pod_parts import GPU
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.build.serving_children import LONGEST_SERVICE_NAME, SERVICE_NAME
from capstan_operator.build.serving_pod import build_replica_template
from capstan_operator.build.serving_ray import build_ray_cluster
from capstan_operator.build.serving_revision import Revision, build_revision
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.validation import explain
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_serving import ObservedService


def read_spec(service: ObservedService) -> InferenceServiceSpec | Refusal:
    """The spec of `service`, or why it is none. Never raises for what a user wrote."""
    return _read(service.name, json.dumps(dict(service.spec)))


# Enough for the services that are worked on at the same time.
@lru_cache(maxsize=256)
def _read(name: str, spec_json: str) -> InferenceServiceSpec | Refusal:
    document: Mapping[str, Any] = json.loads(spec_json)
    try:
        spec = InferenceServiceSpec.parse(document)
    except ValidationError as error:
        return Refusal(explain(error, InferenceServiceSpec))
    problems = name_problems(name)
    if GPU in spec.resources:
        problems.append(f"spec.resources[{GPU}]: {spec.resources[GPU]} comes from gpus; remove it and set gpus")
    return Refusal(tuple(sorted(problems))) if problems else spec


def name_problems(name: str) -> list[str]:
    """What is wrong with the name of an InferenceService, after which Services are named."""
    if len(name) <= LONGEST_SERVICE_NAME and re.fullmatch(SERVICE_NAME, name):
        return []
    return [
        f"metadata.name: {name} must begin with a letter, hold only small letters, digits and dashes, and have at most "
        f"{LONGEST_SERVICE_NAME} characters, because Services are named after it; choose such a name"
    ]


def read_revision(
    service: ObservedService,
    spec: InferenceServiceSpec,
    model: ModelStatus,
    settings: OperatorSettings,
    name: str | None = None,
) -> Revision | Refusal:
    """The revision of `service` that serves `model`, or what in the spec's podPatch is in its way. `name`: that it has
    already; None: it gets the one that all it is made of gives it."""
    owner = _Identity(service.namespace, service.name, service.uid)
    return _build(owner, spec.model_dump_json(by_alias=True), model.model_dump_json(by_alias=True), settings, name)


@lru_cache(maxsize=256)
def _build(
    owner: "_Identity", spec_json: str, model_json: str, settings: OperatorSettings, name: str | None
) -> Revision | Refusal:
    spec = InferenceServiceSpec.model_validate_json(spec_json, by_alias=True)
    model = ModelStatus.model_validate_json(model_json, by_alias=True)
    runtime = spec.runtime or model.framework
    assert runtime is not None  # a model by uri must come with a runtime, and one of a job has a framework
    build_template = build_ray_cluster if spec.backend == "RayService" else build_replica_template
    try:
        return build_revision(owner, spec, model, runtime, settings, build_template, name)
    except PodPatchError as error:
        return Refusal(tuple(sorted(f"spec.{problem}" for problem in error.problems)))


@dataclass(frozen=True, slots=True)
class _Identity:
    namespace: str
    name: str
    uid: str
