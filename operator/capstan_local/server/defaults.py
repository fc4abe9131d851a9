"""Defaults of the built-in kinds, written before validation on every create and update."""

import base64
from collections.abc import Callable
from typing import Any

from capstan_local.server.pod_defaults import default_pod, default_pod_spec
from capstan_local.server.quantity_form import canonicalise

Object = dict[str, Any]


def default_object(kind_key: str, obj: Object) -> None:
    """Fill in the defaults of a built-in kind. The values must have the right types."""
    default = _DEFAULTS.get(kind_key)
    if default is not None:
        default(obj)


def _default_template(obj: Object) -> None:
    template = obj.setdefault("spec", {}).setdefault("template", {})
    template.setdefault("metadata", {})
    default_pod_spec(template.setdefault("spec", {}))


def _default_deployment(obj: Object) -> None:
    _default_template(obj)
    spec = obj["spec"]
    spec.setdefault("replicas", 1)
    strategy = spec.setdefault("strategy", {})
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _default_replica_set(obj: Object) -> None:
    _default_template(obj)
    obj["spec"].setdefault("replicas", 1)


def _default_replication_controller(obj: Object) -> None:
    _default_template(obj)
    spec = obj["spec"]
    labels = (spec["template"]["metadata"] or {}).get("labels") or {}
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        metadata = obj["metadata"]
        if not metadata.get("labels"):
            metadata["labels"] = dict(labels)
    spec.setdefault("replicas", 1)


def _default_stateful_set(obj: Object) -> None:
    _default_template(obj)
    spec = obj["spec"]
    spec.setdefault("podManagementPolicy", "OrderedReady")
    spec.setdefault("serviceName", "")
    strategy = spec.setdefault("updateStrategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    retention.setdefault("whenDeleted", "Retain")
    retention.setdefault("whenScaled", "Retain")
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.setdefault("kind", "PersistentVolumeClaim")
        claim.setdefault("apiVersion", "v1")
        _default_claim(claim)


def _default_daemon_set(obj: Object) -> None:
    _default_template(obj)
    spec = obj["spec"]
    strategy = spec.setdefault("updateStrategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)
    spec.setdefault("revisionHistoryLimit", 10)


def _default_job(obj: Object) -> None:
    _default_template(obj)
    _default_job_spec(obj["spec"])


def _default_job_spec(spec: Object) -> None:
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
        spec["parallelism"] = 1
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")


def _default_cron_job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    template = spec.setdefault("jobTemplate", {})
    template.setdefault("metadata", {})
    pod_template = template.setdefault("spec", {}).setdefault("template", {})
    pod_template.setdefault("metadata", {})
    default_pod_spec(pod_template.setdefault("spec", {}))
    spec.setdefault("concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)


def _default_service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("sessionAffinity", "None")
    kind = spec.setdefault("type", "ClusterIP")
    if spec["sessionAffinity"] == "ClientIP":
        spec.setdefault("sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 10800}})
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if "port" in port and port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port["port"]
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    if kind in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _default_endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _default_endpoint_slice(obj: Object) -> None:
    for port in obj.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _default_secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    strings = obj.pop("stringData", None) or {}
    if strings:
        data = obj["data"] = obj.get("data") or {}
        for key, value in strings.items():
            data[key] = base64.b64encode(value.encode()).decode()


def _default_namespace(obj: Object) -> None:
    name = obj["metadata"].get("name")
    if name:
        labels = obj["metadata"]["labels"] = obj["metadata"].get("labels") or {}
        labels["kubernetes.io/metadata.name"] = name
    obj.setdefault("spec", {})


def _default_claim(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("volumeMode", "Filesystem")
    canonicalise((spec.get("resources") or {}).get("requests"))
    canonicalise((spec.get("resources") or {}).get("limits"))
    status = obj.setdefault("status", {})
    status.setdefault("phase", "Pending")
    canonicalise(status.get("capacity"))


def _default_volume(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
    spec.setdefault("volumeMode", "Filesystem")
    canonicalise(spec.get("capacity"))
    if spec.get("hostPath") is not None:
        spec["hostPath"].setdefault("type", "")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _default_node(obj: Object) -> None:
    status = obj.setdefault("status", {})
    canonicalise(status.get("capacity"))
    canonicalise(status.get("allocatable"))


def _default_quota(obj: Object) -> None:
    canonicalise((obj.get("spec") or {}).get("hard"))
    for field in ("hard", "used"):
        canonicalise((obj.get("status") or {}).get(field))


def _default_pod_template(obj: Object) -> None:
    template = obj.setdefault("template", {})
    template.setdefault("metadata", {})
    default_pod_spec(template.setdefault("spec", {}))


def _default_binding(obj: Object) -> None:
    """RoleBinding and ClusterRoleBinding: groups of the role and the subjects."""
    role = obj.get("roleRef")
    if isinstance(role, dict) and not role.get("apiGroup"):
        role["apiGroup"] = "rbac.authorization.k8s.io"
    for subject in obj.get("subjects") or ():
        if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
            subject["apiGroup"] = "rbac.authorization.k8s.io"


def _default_cluster_role(obj: Object) -> None:
    obj.setdefault("rules", None)


def _default_priority_class(obj: Object) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")
    obj.setdefault("value", 0)


def _default_storage_class(obj: Object) -> None:
    obj.setdefault("reclaimPolicy", "Delete")
    obj.setdefault("volumeBindingMode", "Immediate")


def _default_network_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _default_autoscaler(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("minReplicas", 1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]


def _default_crd(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {}).setdefault("strategy", "None")


_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "v1/Endpoints": _default_endpoints,
    "v1/Namespace": _default_namespace,
    "v1/Node": _default_node,
    "v1/PersistentVolume": _default_volume,
    "v1/PersistentVolumeClaim": _default_claim,
    "v1/Pod": default_pod,
    "v1/PodTemplate": _default_pod_template,
    "v1/ReplicationController": _default_replication_controller,
    "v1/ResourceQuota": _default_quota,
    "v1/Secret": _default_secret,
    "v1/Service": _default_service,
    "apps/v1/DaemonSet": _default_daemon_set,
    "apps/v1/Deployment": _default_deployment,
    "apps/v1/ReplicaSet": _default_replica_set,
    "apps/v1/StatefulSet": _default_stateful_set,
    "batch/v1/CronJob": _default_cron_job,
    "batch/v1/Job": _default_job,
    "autoscaling/v2/HorizontalPodAutoscaler": _default_autoscaler,
    "networking.k8s.io/v1/NetworkPolicy": _default_network_policy,
    "rbac.authorization.k8s.io/v1/ClusterRole": _default_cluster_role,
    "rbac.authorization.k8s.io/v1/Role": _default_cluster_role,
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": _default_binding,
    "rbac.authorization.k8s.io/v1/RoleBinding": _default_binding,
    "storage.k8s.io/v1/StorageClass": _default_storage_class,
    "scheduling.k8s.io/v1/PriorityClass": _default_priority_class,
    "discovery.k8s.io/v1/EndpointSlice": _default_endpoint_slice,
    "apiextensions.k8s.io/v1/CustomResourceDefinition": _default_crd,
}
