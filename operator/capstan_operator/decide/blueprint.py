"""What follows from a spec alone: computed once per job and spec, or refused with reasons."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.host_path import allowing, allowing_all, paths_of
from capstan_operator.build.pod import build_pod_template
from capstan_operator.build.pod_patch import PodPatchError, replaces_command
from capstan_operator.build.run_config import build_run_config, pods_digest, run_digest
from capstan_operator.decide.validation import explain, spec_problems
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_runtime.contract.run_config import JobConfig


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A valid spec and all that is built of it."""

    spec: TrainingJobSpec
    run: JobConfig
    run_digest: str
    pods_digest: str
    pod_template: dict[str, Any]
    """Shared by all pods: never changed."""
    has_own_command: bool
    """The user's podPatch replaces the trainer's command: the pods may have no supervisor."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An invalid spec: one line per problem, `field: value, rule; fix`, sorted."""

    problems: tuple[str, ...]


def read_blueprint(job: ObservedJob, settings: OperatorSettings) -> Blueprint | Refusal:
    """The blueprint of `job`, or why there is none. Never raises for what a user wrote."""
    status, identity = job.status, _Identity(job.namespace, job.name, job.uid)
    begun = _Begun(status.virtual_ranks is not None or status.run_digest is not None, status.pods_digest)
    settings = allowing(settings, job.host_paths)
    # The text is the key, so that nobody has to promise that a generation never shows two specs.
    return _read(identity, json.dumps(dict(job.spec)), status.virtual_ranks, begun, settings)


# Enough for the jobs that are worked on at the same time; a miss costs less than a millisecond.
@lru_cache(maxsize=512)
def _read(
    job: "_Identity", spec_json: str, virtual_ranks: int | None, begun: "_Begun", settings: OperatorSettings
) -> Blueprint | Refusal:
    document: Mapping[str, Any] = json.loads(spec_json)
    try:
        spec = TrainingJobSpec.parse(document)
    except ValidationError as error:
        return Refusal(explain(error))
    problems = spec_problems(job.name, spec, job.namespace)
    try:
        template = build_pod_template(job, spec, _with_what_it_has(settings, spec, begun))
    except PodPatchError as error:
        problems += [f"spec.{problem}" for problem in error.problems]
    if problems:
        return Refusal(tuple(sorted(problems)))
    run = build_run_config(job, spec, virtual_ranks)
    digests = run_digest(run), pods_digest(spec.workers)
    return Blueprint(spec, run, *digests, template, replaces_command(spec.workers.pod_patch))


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is on record of a run that was let begin."""

    has_begun: bool
    pods_digest: str | None


def _with_what_it_has(settings: OperatorSettings, spec: TrainingJobSpec, begun: _Begun) -> OperatorSettings:
    """`settings` for a run that keeps the folders of nodes it has begun with, whatever the operator allows since. Its
    store cannot change; what a podPatch adds is known only as long as the pods are the ones it was begun with."""
    if begun.pods_digest == pods_digest(spec.workers):
        return allowing_all(settings)
    return allowing(settings, paths_of(spec.checkpoint.store)) if begun.has_begun else settings


@dataclass(frozen=True, slots=True)
class _Identity:
    namespace: str
    name: str
    uid: str
