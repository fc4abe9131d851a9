"""Label and field selectors, parsed into predicates."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from capstan_local.server.errors import bad_request
from capstan_local.server.resources import Resource

Predicate = Callable[[Mapping[str, str]], bool]

_SET_BASED = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s=!<>]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s=!<>]*)$")
_ORDER = re.compile(r"^(?P<key>[^\s=!<>]+)\s*(?P<op>[<>])\s*(?P<value>-?\d+)$")
_EXISTS = re.compile(r"^(?P<not>!\s*)?(?P<key>[^\s=!<>(),]+)$")

# Fields a selector may name, beside metadata.name and metadata.namespace (kube-apiserver's own list per kind).
_FIELDS: dict[str, tuple[str, ...]] = {
    "v1/Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "v1/Event": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "v1/Namespace": ("status.phase",),
    "v1/Node": ("spec.unschedulable",),
    "v1/Secret": ("type",),
    "v1/Service": ("spec.clusterIP", "spec.type"),
    "v1/ReplicationController": ("status.replicas",),
    "apps/v1/ReplicaSet": ("status.replicas",),
    "batch/v1/Job": ("status.successful",),
}
_EVENT_V1_NAMES = {
    field.replace("involvedObject", "regarding"): field for field in _FIELDS["v1/Event"] if "involved" in field
}
_PATHS = {"source": "source.component", "status.successful": "status.succeeded"}
_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.successful": "0", "status.replicas": "0"}


def field_names(resource: Resource) -> tuple[str, ...]:
    """The fields of a stored object of this resource that selectors can name."""
    if resource.custom:
        return resource.custom.selectable_fields
    return _FIELDS.get("v1/Event" if resource.is_event else resource.kind_key, ())


def selectable_values(resource: Resource, obj: Mapping[str, Any]) -> dict[str, str]:
    """The value of each selectable field of a stored object, as the strings selectors compare."""
    values: dict[str, str] = {}
    for field in field_names(resource):
        value: Any = obj
        for step in _steps(field):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, bool):
            value = "true" if value else "false"
        values[field] = _ABSENT.get(field, "") if value is None else str(value)
    return values


@cache
def _steps(field: str) -> tuple[str, ...]:
    return tuple(_PATHS.get(field, field).split("."))


def _split_requirements(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    parts = re.split(r",(?![^(]*\))", text)
    return [part.strip() for part in parts if part.strip()]


def parse_label_selector(text: str) -> Predicate | None:
    """A predicate over labels; None selects everything. Raises ApiError 400."""
    requirements = [_label_requirement(part) for part in _split_requirements(text)]
    if not requirements:
        return None
    if len(requirements) == 1:
        return requirements[0]
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _label_requirement(text: str) -> Predicate:
    if match := _SET_BASED.match(text):
        key = match["key"]
        allowed = frozenset(value.strip() for value in match["values"].split(","))
        if match["op"] == "in":
            return lambda labels: key in labels and labels[key] in allowed
        return lambda labels: key not in labels or labels[key] not in allowed
    if match := _EQUALITY.match(text):
        key, value = match["key"], match["value"]
        if match["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _ORDER.match(text):
        return _order_requirement(match["key"], match["op"], int(match["value"]))
    if match := _EXISTS.match(text):
        key = match["key"]
        if match["not"]:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise bad_request(f"unable to parse requirement: {text!r} is not a label selector requirement")


def _order_requirement(key: str, operator: str, bound: int) -> Predicate:
    def holds(labels: Mapping[str, str]) -> bool:
        try:
            value = int(labels[key])
        except (KeyError, ValueError):
            return False
        return value > bound if operator == ">" else value < bound

    return holds


class FieldSelector:
    """A parsed field selector. `name` and `namespace` are the values it pins, None when it does not."""

    def __init__(self, requirements: list[tuple[str, str, bool]]) -> None:
        self._requirements = requirements
        self.name = self._pinned("metadata.name")
        self.namespace = self._pinned("metadata.namespace")

    def _pinned(self, field: str) -> str | None:
        return next((value for key, value, equal in self._requirements if key == field and equal), None)

    def matches(self, namespace: str, name: str, fields: Mapping[str, str]) -> bool:
        for field, value, equal in self._requirements:
            if field == "metadata.name":
                actual = name
            elif field == "metadata.namespace":
                actual = namespace
            else:
                actual = fields.get(field, "")
            if (actual == value) is not equal:
                return False
        return True


def parse_field_selector(text: str, resource: Resource) -> FieldSelector | None:
    """None selects everything. Raises ApiError 400 for a field this resource cannot be selected by."""
    known = {"metadata.name", *field_names(resource)}
    if resource.namespaced:
        known.add("metadata.namespace")
    requirements: list[tuple[str, str, bool]] = []
    for part in _split_requirements(text):
        match = re.fullmatch(r"([^=!]+?)(==|=|!=)(.*)", part)
        if not match:
            raise bad_request(f"invalid field selector {text!r}; can't understand {part!r}")
        field, operator, value = match.groups()
        if resource.group == "events.k8s.io":
            field = _EVENT_V1_NAMES.get(field, field)
        if field not in known:
            if resource.custom:
                raise bad_request(f"field label not supported: {field}")
            raise bad_request(
                f'Unable to find "{resource.group}/{resource.version}, Resource={resource.plural}" that match label '
                f'selector "", field selector "{text}": field label not supported: {field}'
            )
        requirements.append((field, value, operator != "!="))
    return FieldSelector(requirements) if requirements else None


class Selection:
    """What a list or watch asks for: one namespace or all, one label and one field selector."""

    __slots__ = ("_fields", "_labels", "is_filtered", "matches_all", "name", "namespace")

    def __init__(self, resource: Resource, namespace: str, label_selector: str, field_selector: str) -> None:
        self._labels = parse_label_selector(label_selector)
        self._fields = parse_field_selector(field_selector, resource)
        pinned = self._fields.namespace if self._fields else None
        self.namespace = namespace or pinned or ""
        self.name = self._fields.name if self._fields else None
        self.is_filtered = self._labels is not None or self._fields is not None
        self.matches_all = not (self.namespace or self.is_filtered)

    def matches(self, namespace: str, name: str, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
        if self.matches_all:
            return True
        if self.namespace and namespace != self.namespace:
            return False
        if self._labels is not None and not self._labels(labels):
            return False
        return self._fields is None or self._fields.matches(namespace, name, fields)
