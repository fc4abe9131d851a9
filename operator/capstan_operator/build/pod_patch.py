"""`spec.workers.podPatch`: what of it is refused, and how it is merged into the pod."""

from collections.abc import Iterator
from typing import Any

from capstan_operator.api.meta import LABEL_INCARNATION, LABEL_JOB, LABEL_MANAGED_BY, LABEL_WORKER
from capstan_operator.build.strategic_merge import MergeError, strategic_merge

PATH = "workers.podPatch"
TRAINER = "trainer"
"""Name of the container that runs the supervisor."""
RUN_VOLUME = "run"
"""Name of the volume with the run's Secret."""
RUN_FOLDER = "/etc/capstan"

PROTECTED_LABELS = (LABEL_MANAGED_BY, LABEL_JOB, LABEL_WORKER, LABEL_INCARNATION)
PROTECTED_TRAINER_FIELDS = ("terminationMessagePath", "terminationMessagePolicy")
PROTECTED_ENV_PREFIX = "CAPSTAN_"


class PodPatchError(ValueError):
    """The patch is refused. `problems` holds one line per field: path, rule and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def apply_pod_patch(template: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`template` ({metadata, spec} of a pod) with `patch` merged in. Raises PodPatchError."""
    try:
        # Merged first: what comes out of it is known to be well-formed, which the search for protected fields needs.
        merged: dict[str, Any] = strategic_merge(template, patch, PATH)
    except MergeError as error:
        raise PodPatchError([str(error)]) from None
    problems = [
        f"{PATH}.{field}: is set by the operator, which relies on it; remove it" for field in _protected_fields(patch)
    ]
    if problems:
        raise PodPatchError(sorted(problems))
    return merged


def replaces_command(patch: dict[str, Any] | None) -> bool:
    """Whether the trainer's container runs a command of the user's own, so that no supervisor may ever answer."""
    containers = ((patch or {}).get("spec") or {}).get("containers") or []
    return any(container.get("name") == TRAINER and container.get("command") for container in containers)


def _protected_fields(patch: dict[str, Any]) -> Iterator[str]:
    yield from (key for key in patch if key not in ("metadata", "spec"))
    metadata, spec = patch.get("metadata") or {}, patch.get("spec") or {}
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        return
    yield from (f"metadata.{key}" for key in metadata if key not in ("labels", "annotations"))
    yield from (f"metadata.labels[{key}]" for key in PROTECTED_LABELS if key in (metadata.get("labels") or {}))
    if "restartPolicy" in spec:
        yield "spec.restartPolicy"
    yield from (f"spec.volumes[{RUN_VOLUME}]" for volume in _items(spec, "volumes") if volume.get("name") == RUN_VOLUME)
    for container in _items(spec, "containers"):
        if container.get("name") == TRAINER:
            yield from (f"spec.containers[{TRAINER}].{field}" for field in _protected_of_trainer(container))


def _protected_of_trainer(container: dict[str, Any]) -> Iterator[str]:
    if container.get("$patch"):
        yield "$patch"
    yield from (field for field in PROTECTED_TRAINER_FIELDS if field in container)
    for variable in _items(container, "env"):
        if str(variable.get("name", "")).startswith(PROTECTED_ENV_PREFIX):
            yield f"env[{variable['name']}]"
    for mount in _items(container, "volumeMounts"):
        if mount.get("mountPath") == RUN_FOLDER:
            yield f"volumeMounts[{RUN_FOLDER}]"


def _items(parent: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [item for item in parent.get(field) or [] if isinstance(item, dict)]
