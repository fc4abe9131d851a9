"""The pod that finds out which checkpoint a version or a stage means: the operator has no access to stores."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from capstan_operator.api.inference_service import InferenceServiceSpec, RegisteredModel
from capstan_operator.api.meta import LABEL_MANAGED_BY, LABEL_REGISTRY, MANAGED_BY
from capstan_operator.build.children import Owner, owner_reference
from capstan_operator.build.host_path import checked_volumes
from capstan_operator.build.pod_parts import (
    TERMINATION_LOG,
    env_entries,
    hardened_container,
    hardened_pod,
    scheduling,
)
from capstan_operator.build.pod_patch import apply_pod_patch
from capstan_operator.build.serving_children import HASH_DIGITS
from capstan_operator.build.serving_pod import SERVER_POD, model_store
from capstan_operator.build.store import (
    STORE_FOLDER,
    STORE_VOLUME,
    store_access,
    store_env_from,
    store_place,
    store_volume,
)
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.registry import REGISTRY, RESOLVE, ResolveTask

RESOLVER = "registry"
"""Name of the container."""
RESOLVE_COMMAND = ["python", "-m", "capstan_runtime.registry.resolve"]
GRACE_SECONDS = 5
"""It holds nothing that must be finished."""
_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}
"""So that quotas let it in, and it is not the first to be evicted. Measured: 68 MB, and 0.3 s of CPU to begin."""
_OF_THE_POD = (
    *("serviceAccountName", "automountServiceAccountToken", "securityContext"),
    *("imagePullSecrets", "runtimeClassName", "priorityClassName", "schedulerName", "nodeSelector", "tolerations"),
    *("hostAliases", "hostNetwork", "dnsPolicy", "dnsConfig"),
)
"""What a patch of the service's pods says of this one, too: who it is, what lets it in, and how it reaches a bucket.
Not what is in them: a sidecar would keep it from its end."""
_REGISTRY_POD = replace(SERVER_POD, labels=(*SERVER_POD.labels, LABEL_REGISTRY))


def build_registry_pod(
    owner: Owner, spec: InferenceServiceSpec, ref: RegisteredModel, known: str | None, settings: OperatorSettings
) -> dict[str, Any]:
    """The pod. It ends with its answer, a Resolved: at once, or when the stage means another version than `known`. Its
    name is a digest of all that it is made of, so that a pod with another question is another pod.

    Raises PodPatchError for a patch that is none, and where the store is a folder of the nodes, which the operator does
    not allow.
    """
    mounts: list[dict[str, Any]] = []
    if not ref.store.object:
        mounts.append({"name": STORE_VOLUME, "mountPath": STORE_FOLDER, "readOnly": True})
    template: dict[str, Any] = {
        "metadata": {},
        "spec": {
            # What it could not find out this time it may the next; a promotion may come after months.
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            **hardened_pod(),
            "containers": [
                {
                    "name": RESOLVER,
                    "image": spec.image or settings.serve_image,
                    "command": RESOLVE_COMMAND,
                    "env": env_entries(_env(ref, known)),
                    **store_env_from(ref.store),
                    **hardened_container(),
                    "resources": _RESOURCES,
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [] if ref.store.object else [store_volume(ref.store)],
            **scheduling(spec.node_selector, spec.tolerations),
        },
    }
    if spec.pod_patch:
        template = apply_pod_patch(template, _of_the_pod(spec.pod_patch), _REGISTRY_POD)
    template = checked_volumes(template, model_store(spec), SERVER_POD, settings)
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{owner.name}-registry-{digest}",
            "namespace": owner.namespace,
            **template["metadata"],
            # Not the label of the service's pods: its Services would lead requests here.
            "labels": {
                **template["metadata"].get("labels", {}),
                LABEL_MANAGED_BY: MANAGED_BY,
                LABEL_REGISTRY: owner.name,
            },
            "ownerReferences": [owner_reference(owner, "InferenceService")],
        },
        "spec": template["spec"],
    }


def _of_the_pod(patch: dict[str, Any]) -> dict[str, Any]:
    """The part of a patch of the service's pods that holds for this one; what is malformed stays to be refused."""
    spec = patch.get("spec")
    if not isinstance(spec, dict):
        return patch
    return {**patch, "spec": {field: value for field, value in spec.items() if field in _OF_THE_POD}}


def _env(ref: RegisteredModel, known: str | None) -> dict[str, str]:
    task = ResolveTask(name=ref.name, version=ref.version, stage=ref.stage, known=known, public_key=ref.public_key)
    text = json.dumps(task.document(), sort_keys=True, separators=(",", ":"))
    return {
        RESOLVE: text.replace("$", "$$"),  # $(NAME) would be another variable
        REGISTRY: store_place(ref.store),
        env.TERMINATION_LOG: TERMINATION_LOG,
        **store_access(ref.store),
    }
