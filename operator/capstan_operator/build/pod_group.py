"""A Kueue pod group: what its pods carry. https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods/"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from capstan_operator.api.queueing import (
    ANNOTATION_GROUP_SIZE,
    ANNOTATION_ROLE,
    LABEL_GROUP,
    LABEL_PRIORITY_CLASS,
    LABEL_QUEUE,
)
from capstan_operator.build.children import Owner

_ROOM = (
    *("nodeSelector", "affinity", "tolerations", "topologySpreadConstraints"),
    *("runtimeClassName", "priorityClassName", "overhead", "resourceClaims"),
)
"""Fields of a pod's spec that say what room it takes, besides its containers' requests."""


@dataclass(frozen=True, slots=True)
class PodGroup:
    """What every pod of a group says of it."""

    name: str
    size: int
    queue: str
    priority_class: str | None
    """None: the queue's default."""
    role: str
    """See `role_of`."""

    @property
    def labels(self) -> dict[str, str]:
        priority = {LABEL_PRIORITY_CLASS: self.priority_class} if self.priority_class else {}
        return {LABEL_QUEUE: self.queue, LABEL_GROUP: self.name} | priority

    @property
    def annotations(self) -> dict[str, str]:
        return {ANNOTATION_GROUP_SIZE: str(self.size), ANNOTATION_ROLE: self.role}


def group_name(job: Owner, number: int, first: int, size: int) -> str:
    """`<job>-<five digits>`: another one for each group of each job that ever has this name. Kueue keeps what it knows
    of a group for a moment after its last pod has gone, and a new one must not be taken for it."""
    text = f"{job.uid}/{number}/{first}/{size}"
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:5]}"


def role_of(template: dict[str, Any]) -> str:
    """Eight digits of what room a pod of this template takes.

    Kueue makes one of its own where there is none, from the pod as it is: a replacement that keeps away from a node
    would be in no role that was admitted, and wait for ever. One that asks for more room is to.
    """
    spec = template["spec"]
    requests = [
        container.get("resources", {}).get("requests", {})
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
    ]
    shape = {field: spec[field] for field in _ROOM if field in spec} | {"requests": requests}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]
