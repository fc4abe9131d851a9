"""What built-in kinds do to their objects when these are written: the status and fields that only the server sets."""

from collections.abc import Callable
from typing import Any

from capstan_local.server.pod_defaults import quality_of_service
from capstan_local.server.resources import Resource

Object = dict[str, Any]

_FIRST_STATUS: dict[str, Callable[[Object], Object]] = {
    "v1/Namespace": lambda _: {"phase": "Active"},
    "v1/PersistentVolume": lambda _: {"phase": "Pending"},
    "v1/PersistentVolumeClaim": lambda _: {"phase": "Pending"},
    "v1/Pod": lambda pod: {"phase": "Pending", "qosClass": quality_of_service(pod.get("spec") or {})},
    "v1/ReplicationController": lambda _: {"replicas": 0},
    "v1/Service": lambda _: {"loadBalancer": {}},
    "apps/v1/DaemonSet": lambda _: {
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    },
    "apps/v1/ReplicaSet": lambda _: {"replicas": 0},
    "apps/v1/StatefulSet": lambda _: {"replicas": 0, "availableReplicas": 0},
    "autoscaling/v2/HorizontalPodAutoscaler": lambda _: {"desiredReplicas": 0, "currentMetrics": None},
    "networking.k8s.io/v1/Ingress": lambda _: {"loadBalancer": {}},
    "policy/v1/PodDisruptionBudget": lambda _: {
        "disruptionsAllowed": 0,
        "currentHealthy": 0,
        "desiredHealthy": 0,
        "expectedPods": 0,
    },
}
_KEEPS_FIRST_STATUS = ("v1/Node",)
_SERVER_FINALIZED = "v1/Namespace"


def drop_foreign_status(resource: Resource, obj: Object) -> None:
    """A new object brings no status where status has its own endpoint; Nodes do."""
    if resource.has_status and resource.kind_key not in _KEEPS_FIRST_STATUS:
        obj.pop("status", None)


def prepare_create(resource: Resource, obj: Object) -> None:
    """Set the first status and what else the server sets on a new, defaulted, built-in object."""
    if resource.has_status and resource.kind_key not in _KEEPS_FIRST_STATUS:
        first = _FIRST_STATUS.get(resource.kind_key)
        obj["status"] = first(obj) if first else {}
    if resource.kind_key == _SERVER_FINALIZED:
        obj["spec"]["finalizers"] = ["kubernetes"]
    elif resource.kind_key == "batch/v1/Job":
        _select_own_pods(obj)


def _select_own_pods(job: Object) -> None:
    """A Job without a manual selector selects pods by its own uid."""
    spec, metadata = job["spec"], job["metadata"]
    if spec.get("manualSelector"):
        return
    labels = spec["template"].setdefault("metadata", {})
    labels["labels"] = {
        **(labels.get("labels") or {}),
        "batch.kubernetes.io/controller-uid": metadata["uid"],
        "batch.kubernetes.io/job-name": metadata["name"],
        "controller-uid": metadata["uid"],
        "job-name": metadata["name"],
    }
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": metadata["uid"]}}


def restrict_update(resource: Resource, new: Object, old: Object, subresource: str) -> Object:
    """`new` without the changes that an update through this endpoint may not make."""
    if subresource == "status":
        return _only_status(resource, new, old)
    if subresource == "finalize":
        return _only_in_spec("finalizers", new, old)
    if subresource == "ephemeralcontainers":
        return _only_in_spec("ephemeralContainers", new, old)
    if resource.has_status and subresource != "binding":
        _copy_field("status", old, new)
    if resource.kind_key == _SERVER_FINALIZED:
        _copy_field("finalizers", old.get("spec") or {}, new.setdefault("spec", {}))
    if resource.kind_key == "v1/Service":
        _keep_addresses(new, old)
    return new


def _only_in_spec(field: str, new: Object, old: Object) -> Object:
    restricted = {**old, "metadata": {**old["metadata"]}, "spec": dict(old.get("spec") or {})}
    _copy_field("managedFields", new["metadata"], restricted["metadata"])
    _copy_field(field, new.get("spec") or {}, restricted["spec"])
    return restricted


def _only_status(resource: Resource, new: Object, old: Object) -> Object:
    metadata = dict(old["metadata"])
    if "managedFields" in new["metadata"]:
        metadata["managedFields"] = new["metadata"]["managedFields"]
    if not resource.custom:
        # Built-in kinds take labels and annotations through /status too: kubelets rely on it.
        for field in ("labels", "annotations", "finalizers"):
            _copy_field(field, new["metadata"], metadata)
    restricted = {**old, "metadata": metadata}
    _copy_field("status", new, restricted)
    return restricted


def _copy_field(field: str, source: Object, target: Object) -> None:
    if field in source:
        target[field] = source[field]
    else:
        target.pop(field, None)


def _keep_addresses(new: Object, old: Object) -> None:
    """A client that leaves the addresses out of an update keeps them."""
    new_spec, old_spec = new.setdefault("spec", {}), old.get("spec") or {}
    if "ExternalName" in (new_spec.get("type"), old_spec.get("type")):
        return
    for field in ("clusterIP", "clusterIPs"):
        if not new_spec.get(field) and old_spec.get(field):
            new_spec[field] = old_spec[field]
    known = {port.get("port"): port.get("nodePort") for port in old_spec.get("ports") or ()}
    if new_spec.get("type") in ("NodePort", "LoadBalancer"):
        for port in new_spec.get("ports") or ():
            if not port.get("nodePort") and known.get(port.get("port")):
                port["nodePort"] = known[port["port"]]


def bump_generation(resource: Resource, new: Object, old: Object) -> None:
    """metadata.generation counts the changes of what is wanted."""
    if resource.custom:
        ignored = {"metadata", "apiVersion", "kind"} | ({"status"} if resource.has_status else set())
        changed = any(new.get(field) != old.get(field) for field in {*new, *old} - ignored)
    elif resource.has_generation:
        changed = new.get("spec") != old.get("spec")
    else:
        return
    if changed:
        new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
