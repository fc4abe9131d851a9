"""What kube-apiserver refuses in built-in kinds beyond wrong types: missing fields, bad values, immutable fields."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from capstan_local.server import pod_validation
from capstan_local.server.errors import (
    Cause,
    duplicate,
    forbidden_value,
    invalid_value,
    not_supported,
    required,
)
from capstan_local.server.metadata import label_problems, validate_labels

Object = dict[str, Any]

_IMMUTABLE = "field is immutable"
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_NOT_DATA_KEY = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_STATEFUL_SET_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def validate(kind_key: str, obj: Object, old: Object | None) -> list[Cause]:
    """Everything wrong with a defaulted built-in object; `old` is the stored one of an update."""
    causes = list(_CREATE[kind_key](obj)) if kind_key in _CREATE else []
    if old is not None and kind_key in _UPDATE:
        causes += _UPDATE[kind_key](obj, old)
    return causes


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def _pod(obj: Object) -> Iterable[Cause]:
    return pod_validation.pod_spec_causes(_spec(obj), "spec")


def _selector_causes(spec: Object) -> Iterable[Cause]:
    """apps/v1: a selector must be there and match the template."""
    selector = spec.get("selector") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    wanted = selector.get("matchLabels") or {}
    if not wanted and not selector.get("matchExpressions"):
        yield required("spec.selector")
        return
    yield from validate_labels(wanted, "spec.selector.matchLabels")
    if any(labels.get(key) != value for key, value in wanted.items()):
        yield invalid_value(
            "spec.template.metadata.labels", _go_map(labels), "`selector` does not match template `labels`"
        )


def _go_map(labels: dict[str, str]) -> str:
    return "map[" + " ".join(f"{key}:{value}" for key, value in sorted(labels.items())) + "]"


def _template_causes(spec: Object, restart: tuple[str, ...]) -> Iterable[Cause]:
    template = spec.get("template") or {}
    pod_spec = template.get("spec") or {}
    yield from validate_labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.metadata.labels")
    yield from pod_validation.pod_spec_causes(pod_spec, "spec.template.spec")
    policy = pod_spec.get("restartPolicy")
    if policy not in restart:
        yield not_supported("spec.template.spec.restartPolicy", policy, restart)


def _not_negative(spec: Object, *fields: str) -> Iterable[Cause]:
    for field in fields:
        value = spec.get(field)
        if isinstance(value, int) and value < 0:
            yield invalid_value(f"spec.{field}", value, "must be greater than or equal to 0")


def _workload(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    yield from _selector_causes(spec)
    yield from _not_negative(spec, "replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
    yield from _template_causes(spec, ("Always",))


def _job(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    yield from _not_negative(spec, "parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished")
    pod_spec = (spec.get("template") or {}).get("spec") or {}
    yield from pod_validation.pod_spec_causes(pod_spec, "spec.template.spec")
    policy = pod_spec.get("restartPolicy")
    if policy not in ("OnFailure", "Never"):
        why = 'Required value: valid values: "OnFailure", "Never"' if not policy else None
        if why:
            yield Cause("FieldValueRequired", why, "spec.template.spec.restartPolicy")
        else:
            yield not_supported("spec.template.spec.restartPolicy", policy, ("OnFailure", "Never"))
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        yield required("spec.completions", "when completion mode is Indexed")


def _cron_job(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    if not spec.get("schedule"):
        yield required("spec.schedule")
    elif len(spec["schedule"].split()) != 5 and not spec["schedule"].startswith("@"):
        yield invalid_value("spec.schedule", spec["schedule"], "expected exactly 5 fields")


def _service(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    kind = spec.get("type")
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if kind not in kinds:
        yield not_supported("spec.type", kind, kinds)
    headless = spec.get("clusterIP") == "None"
    ports = spec.get("ports") or []
    if kind == "ExternalName":
        if not spec.get("externalName"):
            yield required("spec.externalName")
    elif not ports and not headless:
        yield required("spec.ports")
    names: set[str] = set()
    for at, port in enumerate(ports):
        path = f"spec.ports[{at}]"
        name = port.get("name", "")
        if not name and len(ports) > 1:
            yield required(f"{path}.name")
        elif name in names:
            yield duplicate(f"{path}.name", name)
        elif name:
            for why in label_problems(name):
                yield invalid_value(f"{path}.name", name, why)
        names.add(name)
        number = port.get("port", 0)
        if not 1 <= number <= 65535:
            yield invalid_value(f"{path}.port", number, "must be between 1 and 65535, inclusive")
        if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
            yield not_supported(f"{path}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))
    yield from validate_labels(spec.get("selector") or {}, "spec.selector")


def _data_keys(obj: Object) -> Iterable[Cause]:
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            size += len(value)
            if not _DATA_KEY.fullmatch(key):
                yield invalid_value(f"{field}[{key}]", key, _NOT_DATA_KEY)
            elif len(key) > 253:
                yield invalid_value(f"{field}[{key}]", key, "must be no more than 253 characters")
    # A Secret's values are base64: 4/3 of the 1 MiB that may be stored.
    limit = (1 << 20) * (4 if obj.get("kind") == "Secret" else 3) // 3
    if size > limit:
        yield Cause("FieldValueTooLong", "Too long: may not be more than 1048576 bytes", "data")


def _claim(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    if not spec.get("accessModes"):
        yield required("spec.accessModes", "at least 1 access mode is required")
    if not ((spec.get("resources") or {}).get("requests") or {}).get("storage"):
        yield required("spec.resources[storage]")


def _lease(obj: Object) -> Iterable[Cause]:
    spec = _spec(obj)
    seconds = spec.get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        yield invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    transitions = spec.get("leaseTransitions")
    if transitions is not None and transitions < 0:
        yield invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def _role_binding(obj: Object) -> Iterable[Cause]:
    role = obj.get("roleRef") or {}
    kinds = ("Role", "ClusterRole") if obj.get("kind") == "RoleBinding" else ("ClusterRole",)
    if role.get("kind") not in kinds:
        yield not_supported("roleRef.kind", role.get("kind", ""), kinds)
    if not role.get("name"):
        yield required("roleRef.name")


def _event(obj: Object) -> Iterable[Cause]:
    involved = (obj.get("involvedObject") or {}).get("namespace") or "default"
    namespace = obj["metadata"].get("namespace", "")
    if involved != namespace:
        yield invalid_value("involvedObject.namespace", involved, "does not match event.namespace")


def _frozen(path: str, value: Any) -> Cause:
    return invalid_value(path, value, _IMMUTABLE)


def _workload_update(obj: Object, old: Object) -> Iterable[Cause]:
    selector = _spec(obj).get("selector")
    if selector != _spec(old).get("selector"):
        yield _frozen("spec.selector", selector)


def _stateful_set_update(obj: Object, old: Object) -> Iterable[Cause]:
    new_spec, old_spec = _spec(obj), _spec(old)
    changed = {field for field in {*new_spec, *old_spec} if new_spec.get(field) != old_spec.get(field)}
    if not changed.issubset(_STATEFUL_SET_MUTABLE):
        listed = ", ".join(f"'{field}'" for field in _STATEFUL_SET_MUTABLE)
        yield forbidden_value("spec", f"updates to statefulset spec for fields other than {listed} are forbidden")


def _job_update(obj: Object, old: Object) -> Iterable[Cause]:
    new_spec, old_spec = _spec(obj), _spec(old)
    frozen = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"]
    if new_spec.get("completionMode") != "Indexed":
        frozen.append("completions")
    # A suspended job that has not started may still change where its pods go.
    if not (old_spec.get("suspend") and not (old.get("status") or {}).get("startTime")):
        frozen.append("template")
    for field in frozen:
        if new_spec.get(field) != old_spec.get(field):
            yield _frozen(f"spec.{field}", new_spec.get(field))


def _service_update(obj: Object, old: Object) -> Iterable[Cause]:
    new_spec, old_spec = _spec(obj), _spec(old)
    if "ExternalName" in (new_spec.get("type"), old_spec.get("type")):
        return
    before, after = old_spec.get("clusterIP"), new_spec.get("clusterIP")
    if before and after != before:
        yield invalid_value("spec.clusterIPs[0]", [after] if after else None, "may not change once set")


def _immutable_data_update(obj: Object, old: Object) -> Iterable[Cause]:
    if obj.get("type") != old.get("type"):
        yield _frozen("type", obj.get("type"))
    if not old.get("immutable"):
        return
    if not obj.get("immutable"):
        yield forbidden_value("immutable", "field is immutable when `immutable` is set")
    for field in ("data", "binaryData"):
        if (obj.get(field) or {}) != (old.get(field) or {}):
            yield forbidden_value(field, "field is immutable when `immutable` is set")


def _claim_update(obj: Object, old: Object) -> Iterable[Cause]:
    free = ("resources", "volumeName", "volumeAttributesClassName")
    new_spec = {field: value for field, value in _spec(obj).items() if field not in free}
    old_spec = {field: value for field, value in _spec(old).items() if field not in free}
    if new_spec != old_spec:
        yield forbidden_value(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )


def _role_binding_update(obj: Object, old: Object) -> Iterable[Cause]:
    if obj.get("roleRef") != old.get("roleRef"):
        yield invalid_value("roleRef", obj.get("roleRef"), "cannot change roleRef")


def _frozen_fields(*fields: str) -> Callable[[Object, Object], Iterable[Cause]]:
    def check(obj: Object, old: Object) -> Iterable[Cause]:
        for field in fields:
            if obj.get(field) != old.get(field):
                yield forbidden_value(field, f"updates to {field} are forbidden.")

    return check


_CREATE: dict[str, Callable[[Object], Iterable[Cause]]] = {
    "v1/ConfigMap": _data_keys,
    "v1/Event": _event,
    "v1/PersistentVolumeClaim": _claim,
    "v1/Pod": _pod,
    "v1/Secret": _data_keys,
    "v1/Service": _service,
    "apps/v1/DaemonSet": _workload,
    "apps/v1/Deployment": _workload,
    "apps/v1/ReplicaSet": _workload,
    "apps/v1/StatefulSet": _workload,
    "batch/v1/CronJob": _cron_job,
    "batch/v1/Job": _job,
    "coordination.k8s.io/v1/Lease": _lease,
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": _role_binding,
    "rbac.authorization.k8s.io/v1/RoleBinding": _role_binding,
}
_UPDATE: dict[str, Callable[[Object, Object], Iterable[Cause]]] = {
    "v1/ConfigMap": _immutable_data_update,
    "v1/PersistentVolumeClaim": _claim_update,
    "v1/Pod": pod_validation.pod_update_causes,
    "v1/Secret": _immutable_data_update,
    "v1/Service": _service_update,
    "apps/v1/DaemonSet": _workload_update,
    "apps/v1/Deployment": _workload_update,
    "apps/v1/ReplicaSet": _workload_update,
    "apps/v1/StatefulSet": _stateful_set_update,
    "batch/v1/Job": _job_update,
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": _role_binding_update,
    "rbac.authorization.k8s.io/v1/RoleBinding": _role_binding_update,
    "scheduling.k8s.io/v1/PriorityClass": _frozen_fields("value", "preemptionPolicy"),
    "storage.k8s.io/v1/StorageClass": _frozen_fields("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"),
}
