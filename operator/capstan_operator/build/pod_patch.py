"""`podPatch` of a spec: what of it is refused, and how it is merged into the pod."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from capstan_operator.api.meta import LABEL_INCARNATION, LABEL_JOB, LABEL_MANAGED_BY, LABEL_WORKER
from capstan_operator.build.strategic_merge import MergeError, strategic_merge

TRAINER = "trainer"
"""Name of the container that runs the supervisor."""
RUN_VOLUME = "run"
"""Name of the volume with the run's Secret."""
RUN_FOLDER = "/etc/capstan"

PROTECTED_CONTAINER_FIELDS = ("terminationMessagePath", "terminationMessagePolicy")
PROTECTED_ENV_PREFIX = "CAPSTAN_"


@dataclass(frozen=True, slots=True)
class Patchable:
    """A kind of pod, by what a patch of it may not touch, because the operator relies on it."""

    path: str
    """Of the patch in the spec."""
    container: str
    """The one that is ours."""
    labels: tuple[str, ...]
    volumes: tuple[str, ...]
    folders: tuple[str, ...]
    """Where those volumes are mounted in that container."""
    pod_fields: tuple[str, ...] = ("restartPolicy",)
    """Of the pod's spec."""


TRAINER_POD = Patchable(
    path="workers.podPatch",
    container=TRAINER,
    labels=(LABEL_MANAGED_BY, LABEL_JOB, LABEL_WORKER, LABEL_INCARNATION),
    volumes=(RUN_VOLUME,),
    folders=(RUN_FOLDER,),
)


class PodPatchError(ValueError):
    """The patch is refused. `problems` holds one line per field: path, rule and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def apply_pod_patch(template: dict[str, Any], patch: dict[str, Any], kind: Patchable = TRAINER_POD) -> dict[str, Any]:
    """`template` ({metadata, spec} of a pod of this kind) with `patch` merged in. Raises PodPatchError."""
    try:
        # Merged first: what comes out of it is known to be well-formed, which the search for protected fields needs.
        merged: dict[str, Any] = strategic_merge(template, patch, kind.path)
    except MergeError as error:
        raise PodPatchError([str(error)]) from None
    problems = [
        f"{kind.path}.{field}: is set by the operator, which relies on it; remove it"
        for field in _protected_fields(patch, kind)
    ]
    if problems:
        raise PodPatchError(sorted(problems))
    return merged


def replaces_command(patch: dict[str, Any] | None) -> bool:
    """Whether the trainer's container runs a command of the user's own, so that no supervisor may ever answer."""
    containers = ((patch or {}).get("spec") or {}).get("containers") or []
    return any(container.get("name") == TRAINER and container.get("command") for container in containers)


def _protected_fields(patch: dict[str, Any], kind: Patchable) -> Iterator[str]:
    yield from (key for key in patch if key not in ("metadata", "spec"))
    metadata, spec = patch.get("metadata") or {}, patch.get("spec") or {}
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        return
    yield from (f"metadata.{key}" for key in metadata if key not in ("labels", "annotations"))
    yield from (f"metadata.labels[{key}]" for key in kind.labels if key in (metadata.get("labels") or {}))
    yield from (f"spec.{field}" for field in kind.pod_fields if field in spec)
    named = (volume.get("name") for volume in _items(spec, "volumes"))
    yield from (f"spec.volumes[{name}]" for name in named if name in kind.volumes)
    for container in _items(spec, "containers"):
        if container.get("name") == kind.container:
            fields = _protected_of_container(container, kind.folders)
            yield from (f"spec.containers[{kind.container}].{field}" for field in fields)


def _protected_of_container(container: dict[str, Any], folders: tuple[str, ...]) -> Iterator[str]:
    if container.get("$patch"):
        yield "$patch"
    yield from (field for field in PROTECTED_CONTAINER_FIELDS if field in container)
    for variable in _items(container, "env"):
        if str(variable.get("name", "")).startswith(PROTECTED_ENV_PREFIX):
            yield f"env[{variable['name']}]"
    for mount in _items(container, "volumeMounts"):
        if mount.get("mountPath") in folders:
            yield f"volumeMounts[{mount['mountPath']}]"


def _items(parent: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [item for item in parent.get(field) or [] if isinstance(item, dict)]
