"""A gang: the PodGroup, and what binds a pod to it.

https://volcano.sh/en/docs/podgroup/ and https://scheduler-plugins.sigs.k8s.io/docs/plugins/coscheduling/
"""

from typing import Any

from capstan_operator.api.gang import Gang, GangStatus
from capstan_operator.build.children import Owner, job_labels, owner_reference

POD_GROUP_APIS = {"volcano": "scheduling.volcano.sh/v1beta1", "schedulerPlugins": "scheduling.x-k8s.io/v1alpha1"}
"""apiVersion of the PodGroups of each scheduler that a spec can name."""
VOLCANO_ANNOTATION = "scheduling.k8s.io/group-name"
PLUGINS_LABEL = "scheduling.x-k8s.io/pod-group"


def gang_name(job: Owner) -> str:
    """`<job>-gang`."""
    return f"{job.name}-gang"


def build_gang(job: Owner, gang: GangStatus) -> dict[str, Any]:
    """The PodGroup that `gang` describes."""
    queue = {"queue": gang.queue} if gang.queue else {}
    return {
        "apiVersion": POD_GROUP_APIS[gang.scheduler],
        "kind": "PodGroup",
        "metadata": {
            "name": gang.name,
            "namespace": job.namespace,
            "labels": job_labels(job),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {"minMember": gang.min_member} | queue,
    }


def gang_metadata(job: Owner, gang: Gang | None) -> dict[str, Any]:
    """Labels or annotations that bind a pod to the gang of its job."""
    if gang is None:
        return {}
    if gang.volcano is not None:
        return {"annotations": {VOLCANO_ANNOTATION: gang_name(job)}}
    return {"labels": {PLUGINS_LABEL: gang_name(job)}}


def gang_scheduler(gang: Gang | None) -> dict[str, str]:
    """The field of a pod's spec that names its scheduler; empty: the cluster's own."""
    if gang is None:
        return {}
    plugins = gang.scheduler_plugins
    return {"schedulerName": plugins.scheduler_name if plugins is not None else "volcano"}
