"""The defaults kube-apiserver fills into pod specs and templates (k8s.io/kubernetes/pkg/apis/core/v1/defaults.go)."""

from typing import Any

from capstan_local.server.quantity_form import canonical, canonicalise

Object = dict[str, Any]

_TOLERATED_SECONDS = 300


def default_pod_spec(spec: Object) -> None:
    """What every pod spec gets, in a pod and in a template alike."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    host_network = spec.get("hostNetwork", False)
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            _default_container(container, host_network=host_network)
    for volume in spec.get("volumes") or ():
        _default_volume(volume)


def default_pod(pod: Object) -> None:
    """A pod of its own: what templates leave open, and what the built-in admission plugins add."""
    spec = pod.setdefault("spec", {})
    default_pod_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            _request_limits(container)
    _tolerate_lost_nodes(spec)


def quality_of_service(spec: Object) -> str:
    """status.qosClass: Guaranteed, Burstable or BestEffort."""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    compute = ("cpu", "memory")
    any_set = False
    guaranteed = True
    for container in containers:
        resources = container.get("resources") or {}
        asked, limits = resources.get("requests") or {}, resources.get("limits") or {}
        any_set = any_set or any(name in asked or name in limits for name in compute)
        guaranteed = guaranteed and all(name in limits and asked.get(name) == limits[name] for name in compute)
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _default_container(container: Object, *, host_network: bool) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    canonicalise(resources.get("limits"))
    canonicalise(resources.get("requests"))
    if "imagePullPolicy" not in container:
        container["imagePullPolicy"] = "Always" if _is_latest(container.get("image", "")) else "IfNotPresent"
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        if "fieldRef" in source:
            source["fieldRef"].setdefault("apiVersion", "v1")
        if "resourceFieldRef" in source:
            source["resourceFieldRef"].setdefault("divisor", "0")
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(field) is not None:
            _default_probe(container[field])
    for action in (container.get("lifecycle") or {}).values():
        if isinstance(action, dict) and action.get("httpGet") is not None:
            _default_http_get(action["httpGet"])


def _is_latest(image: str) -> bool:
    if "@" in image:
        return False
    name = image.rpartition("/")[2]
    _, colon, tag = name.partition(":")
    return not colon or tag == "latest"


def _default_http_get(action: Object) -> None:
    action.setdefault("path", "/")
    action.setdefault("scheme", "HTTP")


def _default_probe(probe: Object) -> None:
    for field, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        if not probe.get(field):
            probe[field] = value
    if probe.get("httpGet") is not None:
        _default_http_get(probe["httpGet"])
    if probe.get("grpc") is not None:
        probe["grpc"].setdefault("service", "")


def _default_volume(volume: Object) -> None:
    if not any(field != "name" for field in volume):
        volume["emptyDir"] = {}
    for field in ("secret", "configMap", "downwardAPI", "projected"):
        if volume.get(field) is not None:
            volume[field].setdefault("defaultMode", 0o644)
    if (volume.get("emptyDir") or {}).get("sizeLimit") is not None:
        volume["emptyDir"]["sizeLimit"] = canonical(volume["emptyDir"]["sizeLimit"])
    if volume.get("hostPath") is not None:
        volume["hostPath"].setdefault("type", "")
    items = list((volume.get("downwardAPI") or {}).get("items") or ())
    for source in (volume.get("projected") or {}).get("sources") or ():
        items += (source.get("downwardAPI") or {}).get("items") or ()
        if source.get("serviceAccountToken") is not None:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
    for item in items:
        if item.get("fieldRef") is not None:
            item["fieldRef"].setdefault("apiVersion", "v1")
        if item.get("resourceFieldRef") is not None:
            item["resourceFieldRef"].setdefault("divisor", "0")


def _request_limits(container: Object) -> None:
    """Requests default to limits."""
    resources = container.get("resources") or {}
    for name, amount in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(name, amount)


def _tolerate_lost_nodes(spec: Object) -> None:
    """The admission plugin DefaultTolerationSeconds: stay five minutes on a node that is not ready or unreachable."""
    tolerations = spec.get("tolerations") or []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        covered = any(
            toleration.get("effect") in ("NoExecute", None, "") and toleration.get("key") in (key, None, "")
            for toleration in tolerations
        )
        if not covered:
            toleration = {"key": key, "operator": "Exists", "effect": "NoExecute"}
            tolerations = [*tolerations, {**toleration, "tolerationSeconds": _TOLERATED_SECONDS}]
    spec["tolerations"] = tolerations
