"""What the pods of all kinds have in common: hardening, resources, scheduling, variables."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from capstan_operator.api.placement import Toleration
from capstan_runtime.contract import env

GPU = "nvidia.com/gpu"
TERMINATION_LOG = "/dev/termination-log"
FS_GROUP = 1000
"""Group that owns the volumes' files and joins every container, so that a user who is not root can read the Secret and
write checkpoints. Any number would do."""


def hardened_pod() -> dict[str, Any]:
    """Fields of a pod's spec: nothing of the cluster is handed in that is not needed, and nobody is root."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": FS_GROUP,
            # Changing the group of every file of a big store at every start would take hours.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def hardened_container() -> dict[str, Any]:
    """Fields of a container that has last words and no privileges."""
    return {
        "terminationMessagePath": TERMINATION_LOG,
        # A process that dies before it can write its last words leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def container_resources(resources: Mapping[str, str], gpus: int) -> dict[str, Any]:
    """Requests equal limits: the Guaranteed class is the last to be evicted."""
    wanted = dict(resources) | ({GPU: str(gpus)} if gpus else {})
    return {"resources": {"requests": wanted, "limits": wanted}}


def scheduling(node_selector: Mapping[str, str], tolerations: Iterable[Toleration]) -> dict[str, Any]:
    """Fields of a pod's spec that choose its node; what is empty is left out."""
    fields = {
        "nodeSelector": dict(node_selector),
        "tolerations": [toleration.document() for toleration in tolerations],
    }
    return {field: value for field, value in fields.items() if value}


def env_entries(plain: Mapping[str, str]) -> list[dict[str, Any]]:
    """The variables of a container: who and where it is, then `plain`."""
    from_fields = {env.POD_NAME: "metadata.name", env.POD_IP: "status.podIP"}
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_fields.items()),
        *({"name": name, "value": value} for name, value in plain.items()),
    ]


def machine_entries(image: str) -> list[dict[str, Any]]:
    """The variables of a container that keeps what it was measured on."""
    return [
        {"name": "CAPSTAN_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "CAPSTAN_IMAGE", "value": image},
    ]


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
