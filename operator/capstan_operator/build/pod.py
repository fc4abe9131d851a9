"""The pod of one worker. All pods of a job share one template; only name and labels tell them apart."""

from typing import Any

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.children import Owner, owner_reference, pod_labels, pod_name, secret_name
from capstan_operator.build.data import DATA_CACHE, DATA_VOLUME, data_env_from, data_volume, is_fetched
from capstan_operator.build.deepspeed_env import deepspeed_env
from capstan_operator.build.flax_env import flax_env
from capstan_operator.build.gang import gang_metadata, gang_scheduler
from capstan_operator.build.host_path import checked_volumes
from capstan_operator.build.pod_group import PodGroup
from capstan_operator.build.pod_parts import (
    TERMINATION_LOG,
    container_resources,
    env_entries,
    hardened_container,
    hardened_pod,
    machine_entries,
    scheduling,
    whole_cores,
)
from capstan_operator.build.pod_patch import RUN_FOLDER, RUN_VOLUME, TRAINER, TRAINER_POD, apply_pod_patch
from capstan_operator.build.secret import RUN_FILE, TOKEN_FILE
from capstan_operator.build.store import (
    STORE_FOLDER,
    STORE_VOLUME,
    run_folder,
    store_env,
    store_env_from,
    store_place,
    store_volume,
)
from capstan_operator.build.tracking import TRACKER_FOLDER, TRACKER_VOLUME, tracker_secrets, tracker_volume
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.registry import REGISTRY

SCRATCH_VOLUME = "scratch"
"""For what is offloaded to a disk of the node."""
SCRATCH_FOLDER = "/var/cache/capstan/scratch"
SAVES_FOLDER = "saves"
"""In it, the memory tier of what no memory holds."""
MEMORY_VOLUME = "memory"
MEMORY_FOLDER = "/capstan/memory"
SIGNING_VOLUME = "signing"
SIGNING_FOLDER = "/capstan/signing"
SIGNING_FILE = "private.pem"
SHARED_MEMORY_VOLUME = "shared-memory"
SHARED_MEMORY = "/dev/shm"  # nosec B108  # a mount point, not a temporary file
SUPERVISOR = ["python", "-m", "capstan_runtime.supervisor"]
REPORT_SECONDS = 10
"""Left to the supervisor after the trainer has stopped and saved, to write its last words."""

FRAMEWORK_ENV = {"flax": flax_env, "deepspeed": deepspeed_env}
_FRAMEWORK_OF_PROGRAM = {"torch": "deepspeed", "jax": "flax"}


def build_pod_template(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    """`{metadata, spec}` that every pod of the job starts from, the user's patch merged in.

    Raises PodPatchError, whose lines name the fields at fault.
    """
    deadlines = spec.recovery.deadlines
    template = {
        "metadata": gang_metadata(job, spec.workers.gang),
        "spec": {
            # The operator decides what a failure means; a kubelet that restarts a container would hide it.
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": deadlines.stop + deadlines.save + REPORT_SECONDS,
            **hardened_pod(),
            "containers": [_trainer(job, spec, settings)],
            "volumes": _volumes(job, spec),
            **scheduling(spec.workers.node_selector, spec.workers.tolerations),
            **gang_scheduler(spec.workers.gang),
        },
    }
    patch = spec.workers.pod_patch
    patched = apply_pod_patch(template, patch) if patch else template
    return checked_volumes(patched, "checkpoint.store", TRAINER_POD, settings)


def with_image(template: dict[str, Any], image: str) -> dict[str, Any]:
    """`template` whose trainer container has this image; shares all else with it."""
    return template | {
        "spec": template["spec"]
        | {
            "containers": [
                _of_image(container, image) if container["name"] == TRAINER else container
                for container in template["spec"]["containers"]
            ]
        }
    }


def _of_image(container: dict[str, Any], image: str) -> dict[str, Any]:
    told = {entry["name"] for entry in machine_entries(image) if "value" in entry}
    entries = [entry | {"value": image} if entry["name"] in told else entry for entry in container["env"]]
    return container | {"image": image, "env": entries}


def build_pod(
    job: Owner, template: dict[str, Any], worker: int, incarnation: int, group: PodGroup | None = None
) -> dict[str, Any]:
    """The pod `incarnation` of `worker`; `group` None: it waits in no queue. Shares everything it can with `template`:
    neither may be changed."""
    metadata: dict[str, Any] = template["metadata"]
    labels = metadata.get("labels", {}) | pod_labels(job, worker, incarnation)
    if group is not None:
        labels |= group.labels
        metadata = metadata | {"annotations": metadata.get("annotations", {}) | group.annotations}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata
        | {
            "name": pod_name(job.name, worker, incarnation),
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": template["spec"],
    }


def _trainer(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": RUN_VOLUME, "mountPath": RUN_FOLDER, "readOnly": True},
    ]
    if not spec.checkpoint.store.object:
        mounts.append({"name": STORE_VOLUME, "mountPath": STORE_FOLDER})
    if is_fetched(spec):
        mounts.append({"name": DATA_VOLUME, "mountPath": DATA_CACHE})
    if _needs_disk(spec):
        mounts.append({"name": SCRATCH_VOLUME, "mountPath": SCRATCH_FOLDER})
    if _has_memory_volume(spec):
        mounts.append({"name": MEMORY_VOLUME, "mountPath": MEMORY_FOLDER})
    if spec.checkpoint.sign:
        mounts.append({"name": SIGNING_VOLUME, "mountPath": SIGNING_FOLDER, "readOnly": True})
    if tracker_secrets(spec.tracking):
        mounts.append({"name": TRACKER_VOLUME, "mountPath": TRACKER_FOLDER, "readOnly": True})
    if spec.workers.gpus:
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY})
    image = _image(spec, settings)
    return {
        "name": TRAINER,
        "image": image,
        "command": SUPERVISOR,
        "env": [*(machine_entries(image) if spec.record_steps or spec.register_as else []), *_env(job, spec, settings)],
        **_env_from(spec),
        "ports": [{"name": "supervisor", "containerPort": env.SUPERVISOR_PORT}],
        **container_resources(spec.workers.resources, spec.workers.gpus),
        **hardened_container(),
        "volumeMounts": mounts,
    }


def _env_from(spec: TrainingJobSpec) -> dict[str, Any]:
    secrets = [*store_env_from(spec.checkpoint.store).get("envFrom", []), *data_env_from(spec)]
    return {"envFrom": secrets} if secrets else {}


def _env(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> list[dict[str, Any]]:
    plain = {
        env.RUN_CONFIG: f"{RUN_FOLDER}/{RUN_FILE}",
        env.TOKEN_FILE: f"{RUN_FOLDER}/{TOKEN_FILE}",
        env.TERMINATION_LOG: TERMINATION_LOG,
        **store_env(spec.checkpoint.store, run_folder(job)),
    }
    if spec.register_as or (spec.compression is not None and spec.compression.models):
        plain[REGISTRY] = store_place(spec.checkpoint.store)
    if is_fetched(spec):
        plain[env.DATA_CACHE] = DATA_CACHE
    if _needs_disk(spec):
        plain[env.SCRATCH] = SCRATCH_FOLDER
    if spec.recovery.memory_tier:
        plain[env.MEMORY] = MEMORY_FOLDER if _has_memory_volume(spec) else f"{SCRATCH_FOLDER}/{SAVES_FOLDER}"
    if spec.checkpoint.sign:
        plain[env.SIGNING_KEY] = f"{SIGNING_FOLDER}/{SIGNING_FILE}"
    if tracker_secrets(spec.tracking):
        plain[env.TRACKER_SECRETS] = TRACKER_FOLDER
    if settings.operator_url:
        plain[env.OPERATOR_URL] = settings.operator_url
    if "cpu" in spec.workers.resources:
        # Libraries count the cores of the node, not of the container, and start that many threads.
        plain["OMP_NUM_THREADS"] = str(whole_cores(spec.workers.resources["cpu"]))
    framework = _framework(spec)
    if framework is not None:
        plain |= FRAMEWORK_ENV[framework](spec)
    return env_entries(plain)


def _image(spec: TrainingJobSpec, settings: OperatorSettings) -> str:
    if spec.workers.image is not None:
        return spec.workers.image
    framework = _framework(spec)
    assert framework is not None, "a program without a framework names its image"
    return {"flax": settings.flax_image, "deepspeed": settings.deepspeed_image}[framework]


def _framework(spec: TrainingJobSpec) -> str | None:
    """Whose image and variables the pods have; None: a program that has its own."""
    if spec.framework is not None:
        return spec.framework.kind
    assert spec.program is not None
    return _FRAMEWORK_OF_PROGRAM[spec.program.framework] if spec.program.framework is not None else None


def _needs_disk(spec: TrainingJobSpec) -> bool:
    framework = spec.framework.deepspeed if spec.framework is not None else None
    return framework is not None and framework.offload is not None and framework.offload.needs_disk


def _has_memory_volume(spec: TrainingJobSpec) -> bool:
    return spec.recovery.memory_tier and not _needs_disk(spec)


def _volumes(job: Owner, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        # 0440: readable through FS_GROUP, by nobody else.
        {"name": RUN_VOLUME, "secret": {"secretName": secret_name(job.name), "defaultMode": 0o440}},
    ]
    if not spec.checkpoint.store.object:
        volumes.append(store_volume(spec.checkpoint.store))
    if is_fetched(spec):
        volumes.append(data_volume(spec))
    if _needs_disk(spec):
        volumes.append({"name": SCRATCH_VOLUME, "emptyDir": {}})
    if _has_memory_volume(spec):
        # No sizeLimit: what a save takes is known to nobody but the job, and the pod's memory limit counts it anyway.
        volumes.append({"name": MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    if spec.checkpoint.sign:
        signing = {"secretName": spec.checkpoint.sign.secret_name, "defaultMode": 0o440}
        volumes.append({"name": SIGNING_VOLUME, "secret": signing})
    if tracker_secrets(spec.tracking):
        volumes.append(tracker_volume(spec.tracking))
    if spec.workers.gpus:
        # NCCL and data loaders pass buffers through /dev/shm, of which a container has 64 MiB unless told otherwise.
        volumes.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    return volumes
