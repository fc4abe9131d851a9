"""The pod of one worker. All pods of a job share one template; only name and labels tell them apart."""

import math
import re
from typing import Any

from capstan_operator.api.training_job import Store, TrainingJobSpec
from capstan_operator.build.children import Owner, owner_reference, pod_labels, pod_name, secret_name
from capstan_operator.build.deepspeed_env import deepspeed_env
from capstan_operator.build.flax_env import flax_env
from capstan_operator.build.pod_patch import RUN_FOLDER, RUN_VOLUME, TRAINER, apply_pod_patch
from capstan_operator.build.secret import RUN_FILE, TOKEN_FILE
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env

GPU = "nvidia.com/gpu"
STORE_VOLUME = "store"
STORE_FOLDER = "/var/lib/capstan/store"
MEMORY_VOLUME = "memory"
MEMORY_FOLDER = "/capstan/memory"
SIGNING_VOLUME = "signing"
SIGNING_FOLDER = "/capstan/signing"
SIGNING_FILE = "private.pem"
SHARED_MEMORY_VOLUME = "shared-memory"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point, not a temporary file
TERMINATION_LOG = "/dev/termination-log"
SUPERVISOR = ["python", "-m", "capstan_runtime.supervisor"]
REPORT_SECONDS = 10
"""Left to the supervisor after the trainer has stopped and saved, to write its last words."""
FS_GROUP = 1000
"""Group that owns the volumes' files and joins every container, so that a user who is not root can read the Secret and
write checkpoints. Any number would do."""

FRAMEWORK_ENV = {"flax": flax_env, "deepspeed": deepspeed_env}


def build_pod_template(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    """`{metadata, spec}` that every pod of the job starts from, the user's patch merged in.

    Raises PodPatchError, whose lines name the fields at fault.
    """
    deadlines = spec.recovery.deadlines
    scheduling = {
        "nodeSelector": dict(spec.workers.node_selector),
        "tolerations": [toleration.document() for toleration in spec.workers.tolerations],
    }
    template = {
        "metadata": {},
        "spec": {
            # The operator decides what a failure means; a kubelet that restarts a container would hide it.
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": deadlines.stop + deadlines.save + REPORT_SECONDS,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": FS_GROUP,
                # Changing the group of every file of a big store at every start would take hours.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_trainer(job, spec, settings)],
            "volumes": _volumes(job, spec),
        }
        | {field: value for field, value in scheduling.items() if value},
    }
    patch = spec.workers.pod_patch
    return apply_pod_patch(template, patch) if patch else template


def build_pod(job: Owner, template: dict[str, Any], worker: int, incarnation: int) -> dict[str, Any]:
    """The pod `incarnation` of `worker`. Shares everything it can with `template`: neither may be changed."""
    metadata: dict[str, Any] = template["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata
        | {
            "name": pod_name(job.name, worker, incarnation),
            "namespace": job.namespace,
            "labels": metadata.get("labels", {}) | pod_labels(job, worker, incarnation),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": template["spec"],
    }


def _trainer(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    images = {"flax": settings.flax_image, "deepspeed": settings.deepspeed_image}
    mounts: list[dict[str, Any]] = [
        {"name": RUN_VOLUME, "mountPath": RUN_FOLDER, "readOnly": True},
    ]
    if not spec.checkpoint.store.object:
        mounts.append({"name": STORE_VOLUME, "mountPath": STORE_FOLDER})
    if spec.recovery.memory_tier:
        mounts.append({"name": MEMORY_VOLUME, "mountPath": MEMORY_FOLDER})
    if spec.checkpoint.sign:
        mounts.append({"name": SIGNING_VOLUME, "mountPath": SIGNING_FOLDER, "readOnly": True})
    if spec.workers.gpus:
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY})
    resources = dict(spec.workers.resources)
    if spec.workers.gpus:
        resources[GPU] = str(spec.workers.gpus)
    return {
        "name": TRAINER,
        "image": spec.workers.image or images[spec.framework.kind],
        "command": SUPERVISOR,
        "env": _env(job, spec, settings),
        **_env_from(spec.checkpoint.store),
        "ports": [{"name": "supervisor", "containerPort": env.SUPERVISOR_PORT}],
        # Requests equal limits: the Guaranteed class is the last to be evicted.
        "resources": {"requests": resources, "limits": resources},
        "terminationMessagePath": TERMINATION_LOG,
        # A supervisor that dies before it can write its last words leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }


def _env(job: Owner, spec: TrainingJobSpec, settings: OperatorSettings) -> list[dict[str, Any]]:
    plain = {
        env.RUN_CONFIG: f"{RUN_FOLDER}/{RUN_FILE}",
        env.TOKEN_FILE: f"{RUN_FOLDER}/{TOKEN_FILE}",
        env.TERMINATION_LOG: TERMINATION_LOG,
        **_store_env(job, spec.checkpoint.store),
    }
    if spec.recovery.memory_tier:
        plain[env.MEMORY] = MEMORY_FOLDER
    if spec.checkpoint.sign:
        plain[env.SIGNING_KEY] = f"{SIGNING_FOLDER}/{SIGNING_FILE}"
    if settings.operator_url:
        plain[env.OPERATOR_URL] = settings.operator_url
    if "cpu" in spec.workers.resources:
        # Libraries count the cores of the node, not of the container, and start that many threads.
        plain["OMP_NUM_THREADS"] = str(whole_cores(spec.workers.resources["cpu"]))
    plain |= FRAMEWORK_ENV[spec.framework.kind](spec)
    from_fields = {env.POD_NAME: "metadata.name", env.POD_IP: "status.podIP"}
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_fields.items()),
        *({"name": name, "value": value} for name, value in plain.items()),
    ]


def _store_env(job: Owner, store: Store) -> dict[str, str]:
    """Where the run's checkpoints are, and what the client of an object store reads by itself."""
    below = f"{job.namespace}/{job.name}/{job.uid}"
    if not store.object:
        return {env.STORE: f"{STORE_FOLDER}/{below}"}
    variables = {env.STORE: f"{store.object.url.rstrip('/')}/{below}"}
    if store.object.endpoint:
        variables["AWS_ENDPOINT_URL"] = store.object.endpoint
        if store.object.endpoint.startswith("http://"):
            variables["AWS_ALLOW_HTTP"] = "true"
    if store.object.region:
        variables["AWS_REGION"] = store.object.region
    return variables


def _env_from(store: Store) -> dict[str, Any]:
    """The credentials of an object store, which never pass through the operator."""
    if not store.object or not store.object.secret_name:
        return {}
    return {"envFrom": [{"secretRef": {"name": store.object.secret_name}}]}


def _volumes(job: Owner, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        # 0440: readable through FS_GROUP, by nobody else.
        {"name": RUN_VOLUME, "secret": {"secretName": secret_name(job.name), "defaultMode": 0o440}},
    ]
    if not spec.checkpoint.store.object:
        volumes.append({"name": STORE_VOLUME} | _store_source(spec.checkpoint.store))
    if spec.recovery.memory_tier:
        # No sizeLimit: what a save takes is known to nobody but the job, and the pod's memory limit counts it anyway.
        volumes.append({"name": MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    if spec.checkpoint.sign:
        signing = {"secretName": spec.checkpoint.sign.secret_name, "defaultMode": 0o440}
        volumes.append({"name": SIGNING_VOLUME, "secret": signing})
    if spec.workers.gpus:
        # NCCL and data loaders pass buffers through /dev/shm, of which a container has 64 MiB unless told otherwise.
        volumes.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    return volumes


def _store_source(store: Store) -> dict[str, Any]:
    if store.claim:
        return {"persistentVolumeClaim": {"claimName": store.claim.name}}
    if store.host_path:
        # Directory, not DirectoryOrCreate: where the file system is not mounted, the pod must not fill the root disk.
        return {"hostPath": {"path": store.host_path.path, "type": "Directory"}}
    raise AssertionError("the model sets exactly one kind of store, and a bucket is no volume")


def whole_cores(quantity: str) -> int:
    """CPUs of a Kubernetes quantity, rounded up, at least 1.

    >>> [whole_cores(text) for text in ("500m", "2", "2500m", "1.5", "1k")]
    [1, 2, 3, 2, 1000]
    """
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity)
    scale = {"": 1.0, "m": 1e-3, "k": 1e3}
    if match is None or match[2] not in scale:
        return 1
    return max(1, math.ceil(float(match[1]) * scale[match[2]]))
