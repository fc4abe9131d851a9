"""What kube-apiserver refuses in pod specs."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from capstan_local.quantity import parse_quantity
from capstan_local.server.errors import Cause, duplicate, forbidden_value, invalid_value, not_supported, required
from capstan_local.server.metadata import label_problems, subdomain_problems

Object = dict[str, Any]

_POD_UPDATE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")


def pod_spec_causes(spec: Object, at: str) -> Iterable[Cause]:
    """Everything wrong with a defaulted pod spec that stands at path `at`."""
    containers = spec.get("containers") or []
    if not containers:
        yield required(f"{at}.containers")
    volumes = list(_volume_names(spec, at))
    yield from (cause for cause in volumes if isinstance(cause, Cause))
    volume_names = {name for name in volumes if isinstance(name, str)}
    names: set[str] = set()
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            yield from _container_causes(container, f"{at}.{field}[{index}]", names, volume_names)
    if spec.get("restartPolicy") not in _RESTART_POLICIES:
        yield not_supported(f"{at}.restartPolicy", spec.get("restartPolicy"), _RESTART_POLICIES)
    if spec.get("dnsPolicy") not in _DNS_POLICIES:
        yield not_supported(f"{at}.dnsPolicy", spec.get("dnsPolicy"), _DNS_POLICIES)
    if spec.get("hostname"):
        for why in label_problems(spec["hostname"]):
            yield invalid_value(f"{at}.hostname", spec["hostname"], why)
    if spec.get("subdomain"):
        for why in label_problems(spec["subdomain"]):
            yield invalid_value(f"{at}.subdomain", spec["subdomain"], why)
    if spec.get("nodeName"):
        for why in subdomain_problems(spec["nodeName"]):
            yield invalid_value(f"{at}.nodeName", spec["nodeName"], why)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and deadline <= 0:
        yield invalid_value(f"{at}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        yield invalid_value(f"{at}.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0")


def _volume_names(spec: Object, at: str) -> Iterable[str | Cause]:
    seen: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        path = f"{at}.volumes[{index}]"
        name = volume.get("name", "")
        if not name:
            yield required(f"{path}.name")
        elif name in seen:
            yield duplicate(f"{path}.name", name)
        else:
            yield from (invalid_value(f"{path}.name", name, why) for why in label_problems(name))
            seen.add(name)
            yield name
        sources = [field for field in volume if field != "name" and volume[field] is not None]
        if not sources:
            yield required(path, "must specify a volume type")
        for extra in sources[1:]:
            yield forbidden_value(f"{path}.{extra}", "may not specify more than 1 volume type")


def _container_causes(container: Object, at: str, names: set[str], volumes: set[str]) -> Iterable[Cause]:
    name = container.get("name", "")
    if not name:
        yield required(f"{at}.name")
    elif name in names:
        yield duplicate(f"{at}.name", name)
    else:
        for why in label_problems(name):
            yield invalid_value(f"{at}.name", name, why)
    names.add(name)
    if not container.get("image"):
        yield required(f"{at}.image")
    if container.get("imagePullPolicy") not in _PULL_POLICIES:
        yield not_supported(f"{at}.imagePullPolicy", container.get("imagePullPolicy"), _PULL_POLICIES)
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("containerPort", 0)
        if not 1 <= number <= 65535:
            yield invalid_value(f"{at}.ports[{index}].containerPort", number, "must be between 1 and 65535, inclusive")
    for index, variable in enumerate(container.get("env") or ()):
        yield from _variable_causes(variable, f"{at}.env[{index}]")
    mounted: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        path = f"{at}.volumeMounts[{index}]"
        volume, where = mount.get("name", ""), mount.get("mountPath", "")
        if volume not in volumes:
            yield Cause("FieldValueNotFound", f'Not found: "{volume}"', f"{path}.name")
        if not where:
            yield required(f"{path}.mountPath")
        elif where in mounted:
            yield invalid_value(f"{path}.mountPath", where, "must be unique")
        mounted.add(where)
    yield from _resource_causes(container.get("resources") or {}, f"{at}.resources")


def _variable_causes(variable: Object, at: str) -> Iterable[Cause]:
    if not variable.get("name"):
        yield required(f"{at}.name")
    source = variable.get("valueFrom")
    if source is not None:
        if variable.get("value"):
            yield invalid_value(f"{at}.valueFrom", "", "may not be specified when `value` is not empty")
        if len(source) != 1:
            why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
            yield invalid_value(f"{at}.valueFrom", "", why)


def _resource_causes(resources: Object, at: str) -> Iterable[Cause]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            if _amount(amount) is None:
                yield invalid_value(
                    f"{at}.{kind}.{name}",
                    str(amount),
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                )
            elif "/" in name and (_amount(amount) or 0) % 1:
                yield invalid_value(f"{at}.{kind}.{name}", str(amount), "must be an integer")
    for name, amount in requests.items():
        limit = limits.get(name)
        low, high = _amount(amount), _amount(limit)
        if limit is None and "/" in name:
            yield required(f"{at}.limits", "Limit must be set for non overcommitable resources")
        elif low is not None and high is not None:
            if low > high:
                why = f"must be less than or equal to {name} limit of {limit}"
                yield invalid_value(f"{at}.requests", str(amount), why)
            elif "/" in name and low != high:
                yield invalid_value(f"{at}.requests", str(amount), f"must be equal to {name} limit of {limit}")


def _amount(value: Any) -> Decimal | None:
    """A resource.Quantity as a number; None when it is not one."""
    try:
        return parse_quantity(value)
    except (ValueError, ArithmeticError):
        return None


def pod_update_causes(pod: Object, old: Object) -> Iterable[Cause]:
    """An update may change the images, shorten the deadline and add tolerations, nothing else."""
    new_spec, old_spec = pod.get("spec") or {}, old.get("spec") or {}
    if new_spec == old_spec:
        return
    if _fixed_part(new_spec) != _fixed_part(old_spec):
        yield forbidden_value("spec", _POD_UPDATE)
    kept = new_spec.get("tolerations") or []
    if any(toleration not in kept for toleration in old_spec.get("tolerations") or ()):
        yield forbidden_value(
            "spec.tolerations", "existing toleration can not be modified except its tolerationSeconds"
        )


def _fixed_part(spec: Object) -> Object:
    free = ("activeDeadlineSeconds", "tolerations", "ephemeralContainers")
    fixed = {field: value for field, value in spec.items() if field not in free}
    for field in ("containers", "initContainers"):
        if spec.get(field):
            fixed[field] = [
                {key: value for key, value in container.items() if key != "image"} for container in spec[field]
            ]
    return fixed
