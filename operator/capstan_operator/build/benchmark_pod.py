"""The pods of a Benchmark's own: they measure one trial, or put the report together."""

from dataclasses import dataclass
from typing import Any

from capstan_operator.api.benchmark import ConfigMapBaseline, Pods
from capstan_operator.api.meta import LABEL_BENCHMARK, LABEL_MANAGED_BY, LABEL_TRIAL
from capstan_operator.api.store import Store
from capstan_operator.build.benchmark_children import metadata
from capstan_operator.build.children import Owner
from capstan_operator.build.host_path import checked_volumes
from capstan_operator.build.pod import SHARED_MEMORY, SHARED_MEMORY_VOLUME
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
from capstan_operator.build.pod_patch import Patchable, apply_pod_patch
from capstan_operator.build.store import STORE_FOLDER, STORE_VOLUME, store_env, store_env_from, store_volume
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import COORDINATOR, MOUNTED_BASELINE, TASK, BenchTask
from capstan_runtime.contract.workloads import Runtime

BENCH = "bench"
"""Name of the container."""
BENCH_COMMAND = ["python", "-m", "capstan_runtime.bench"]
BASELINE_VOLUME = "baseline"
ACCOUNT_VOLUME = "service-account"
ACCOUNT_FILES: list[dict[str, Any]] = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
]
"""What the API server's admission mounts by itself where it is on; said here, it is there in any cluster."""
_LIBRARY_OF_THE_OTHER = {"flax": "TorchDCP", "torch": "Orbax"}
GRACE_SECONDS = 15
"""After the deadline: a pod that does not end itself is ended by its node."""

BENCH_POD = Patchable(
    path="pods.podPatch",
    container=BENCH,
    labels=(LABEL_MANAGED_BY, LABEL_BENCHMARK, LABEL_TRIAL),
    volumes=(BASELINE_VOLUME, ACCOUNT_VOLUME),
    folders=(MOUNTED_BASELINE, env.ACCOUNT_FOLDER),
    pod_fields=("restartPolicy", "activeDeadlineSeconds"),
)


@dataclass(frozen=True, slots=True)
class BenchPod:
    """What tells one such pod from another."""

    name: str
    trial: str
    """Value of its label: the trial, or `report`."""
    task: BenchTask
    store: Store
    pods: Pods
    runtime: Runtime | None
    """Whose image it is; None: the operator's for what needs no framework."""
    deadline_seconds: int
    coordinator: str | None = None
    """Where the ranks meet; None: it is rank 0 of several, or alone."""
    baseline: ConfigMapBaseline | None = None
    """Mounted for the report; None: it reads none."""


def build_bench_pod(owner: Owner, pod: BenchPod, settings: OperatorSettings) -> dict[str, Any]:
    """The pod, the user's patch merged in. Raises PodPatchError, whose lines name the fields at fault."""
    account = pod.pods.service_account_name
    template: dict[str, Any] = {
        "metadata": {},
        "spec": {
            # The operator decides what a failure means; a kubelet that restarts a container would hide it.
            "restartPolicy": "Never",
            "activeDeadlineSeconds": pod.deadline_seconds + GRACE_SECONDS,
            **hardened_pod(),
            **({"serviceAccountName": account} if account else {}),
            "containers": [_container(owner, pod, settings)],
            "volumes": _volumes(pod),
            **scheduling(pod.pods.node_selector, pod.pods.tolerations),
        },
    }
    if pod.pods.pod_patch:
        template = apply_pod_patch(template, pod.pods.pod_patch, BENCH_POD)
    template = checked_volumes(template, "results.store", BENCH_POD, settings)
    own = metadata(owner, pod.name, pod.trial)
    labels = template["metadata"].get("labels", {}) | own["labels"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template["metadata"] | own | {"labels": labels},
        "spec": template["spec"],
    }


def bench_image(pod: BenchPod, settings: OperatorSettings) -> str:
    """The image that has what is measured. A trainer's has its own framework; the one of replicas has both."""
    images = {"flax": settings.flax_image, "torch": settings.deepspeed_image, None: settings.bench_image}
    return pod.pods.image or (settings.serve_image if _needs_both(pod) else images[pod.runtime])


def _needs_both(pod: BenchPod) -> bool:
    checkpoint = pod.task.trial.work.checkpoint if pod.task.trial else None
    return checkpoint is not None and _LIBRARY_OF_THE_OTHER[checkpoint.runtime] in checkpoint.beside


def _container(owner: Owner, pod: BenchPod, settings: OperatorSettings) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = []
    if not pod.store.object:
        mounts.append({"name": STORE_VOLUME, "mountPath": STORE_FOLDER})
    if pod.baseline:
        mounts.append({"name": BASELINE_VOLUME, "mountPath": MOUNTED_BASELINE, "readOnly": True})
    if pod.pods.service_account_name:
        mounts.append({"name": ACCOUNT_VOLUME, "mountPath": env.ACCOUNT_FOLDER, "readOnly": True})
    if pod.pods.gpus:
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY})
    return {
        "name": BENCH,
        "image": bench_image(pod, settings),
        "command": BENCH_COMMAND,
        "env": _env(owner, pod, settings),
        **store_env_from(pod.store),
        **container_resources(pod.pods.resources, pod.pods.gpus),
        **hardened_container(),
        "volumeMounts": mounts,
    }


def _env(owner: Owner, pod: BenchPod, settings: OperatorSettings) -> list[dict[str, Any]]:
    trial = pod.task.trial
    task = pod.task.model_dump_json(by_alias=True, exclude_none=True)
    plain = {
        # Kubernetes would put variables in where a user's text says $(NAME).
        TASK: task.replace("$", "$$"),
        env.TERMINATION_LOG: TERMINATION_LOG,
        **store_env(pod.store, owner.namespace),
    }
    if trial is not None and trial.world > 1:
        plain[COORDINATOR] = pod.coordinator or f"$({env.POD_IP}):{env.BENCH_COORDINATOR_PORT}"
    if pod.runtime == "flax":
        # Named, so that a pod whose GPU is broken fails instead of measuring its CPU.
        plain["JAX_PLATFORMS"] = "cuda,cpu" if pod.pods.gpus else "cpu"
    if pod.runtime == "torch":
        plain["DS_ACCELERATOR"] = "cuda" if pod.pods.gpus else "cpu"
    if "cpu" in pod.pods.resources:
        # Libraries count the cores of the node, not of the container, and start that many threads.
        plain["OMP_NUM_THREADS"] = str(whole_cores(pod.pods.resources["cpu"]))
    return [*machine_entries(bench_image(pod, settings)), *env_entries(plain)]


def _volumes(pod: BenchPod) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = []
    if not pod.store.object:
        volumes.append(store_volume(pod.store))
    if pod.baseline:
        volumes.append({"name": BASELINE_VOLUME, "configMap": {"name": pod.baseline.name}})
    if pod.pods.service_account_name:
        volumes.append({"name": ACCOUNT_VOLUME, "projected": {"sources": ACCOUNT_FILES}})
    if pod.pods.gpus:
        volumes.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    return volumes
