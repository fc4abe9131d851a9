"""Reads the installed `kubernetes` package's models and prints the built-in API types as JSON.

Run as a program (`python -m capstan_local.schema.builtin_introspection`): importing 800 model classes costs 80 MB and
over a second, which a process that lives for days should not carry.

The JSON is {"kinds": {"apps/v1/Deployment": type name}, "types": {type name: {"description", "required", "fields"}}},
fields being {JSON name: [kind of value, description]}. A kind of value is a scalar (see SCALARS), `#NAME` for another
type, `[]K` for a list or `{}K` for a map of K.
"""

import json
import re
import sys
from typing import Any, Final

SCALARS: Final = ("string", "integer", "boolean", "number", "time", "bytes", "any", "intOrString", "quantity")

KINDS: Final[dict[str, str]] = {
    "v1": "Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod "
    "PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount Status DeleteOptions",
    "apps/v1": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
    "batch/v1": "CronJob Job",
    "autoscaling/v1": "HorizontalPodAutoscaler Scale",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "policy/v1": "Eviction PodDisruptionBudget",
    "coordination.k8s.io/v1": "Lease",
    "events.k8s.io/v1": "Event",
    "discovery.k8s.io/v1": "EndpointSlice",
    "networking.k8s.io/v1": "Ingress IngressClass NetworkPolicy",
    "node.k8s.io/v1": "RuntimeClass",
    "scheduling.k8s.io/v1": "PriorityClass",
    "storage.k8s.io/v1": "CSIDriver CSINode StorageClass VolumeAttachment",
    "rbac.authorization.k8s.io/v1": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "authentication.k8s.io/v1": "SelfSubjectReview TokenRequest TokenReview",
    "authorization.k8s.io/v1": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview "
    "SubjectAccessReview",
    "admissionregistration.k8s.io/v1": "MutatingWebhookConfiguration ValidatingWebhookConfiguration",
    "apiextensions.k8s.io/v1": "CustomResourceDefinition",
    "apiregistration.k8s.io/v1": "APIService",
}
"""Every kind that a schema is derived for, by apiVersion. `List` kinds are added where the package has them."""

_META_TYPES: Final = frozenset(
    {
        *("ObjectMeta", "ListMeta", "OwnerReference", "ManagedFieldsEntry"),
        *("LabelSelector", "LabelSelectorRequirement", "FieldSelectorRequirement"),
        *("Status", "StatusDetails", "StatusCause", "DeleteOptions", "Preconditions", "Condition"),
    }
)
_PACKAGES: Final = {
    "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
}
_MODEL_PREFIX: Final = re.compile(r"^(?:[A-Z][a-z]+)?V\d+(?:(?:alpha|beta)\d+)?(?=[A-Z])")

_INT_OR_STRING_FIELDS: Final = frozenset({"port", "targetPort", "maxSurge", "maxUnavailable", "minAvailable"})
# The client calls a quantity a string; these are the fields whose Go type is resource.Quantity or a map or list of it.
_QUANTITY_FIELDS: Final = frozenset(
    {
        *("allocatable", "allocatedResources", "capacity", "divisor", "limits", "overhead", "requests", "sizeLimit"),
        *("default", "defaultRequest", "hard", "max", "maxLimitRequestRatio", "min", "used"),
        *("averageValue", "currentAverageValue", "maximumVolumeSize", "podFixed", "tolerance"),
    }
)
_QUANTITY_TYPES: Final = frozenset({("MetricTarget", "value"), ("MetricValueStatus", "value")})
_PRIMITIVES: Final = {
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "float": "number",
    "datetime": "time",
    "date": "time",
    "bytes": "bytes",
    "bytearray": "bytes",
    "object": "any",
}


class _Reader:
    """Follows the models from the kinds, naming each type after the group it is first reached from."""

    def __init__(self, models: Any) -> None:
        self._models = models
        self._type_names: dict[str, str] = {}
        self.types: dict[str, Any] = {}

    def type_name(self, model_name: str, api_version: str) -> str:
        if model_name not in self._type_names:
            short = _MODEL_PREFIX.sub("", model_name)
            name = f"{_package(short, api_version)}.{short}"
            if name in self.types:  # two models of one name in one group: keep the client's own, longer name
                name = f"{_package(short, api_version)}.{model_name}"
            self._type_names[model_name] = name
            self._describe(model_name, name, short, api_version)
        return self._type_names[model_name]

    def _describe(self, model_name: str, name: str, short: str, api_version: str) -> None:
        model = getattr(self._models, model_name)
        described: dict[str, Any] = {"description": _summary(model), "required": [], "fields": {}}
        self.types[name] = described
        info = getattr(model, "model_fields", {})
        for attribute, value_type in sorted(model.openapi_types.items()):
            json_name = model.attribute_map[attribute]
            field = info.get(attribute)
            description = (field.description if field else _property_text(model, attribute)) or ""
            kind = self._kind(value_type, short, json_name, api_version)
            described["fields"][json_name] = [kind, description]
            if field is not None and field.is_required():
                described["required"].append(json_name)

    def _kind(self, value_type: str, short: str, json_name: str, api_version: str) -> str:
        if match := re.fullmatch(r"[Ll]ist\[(.+)\]", value_type):
            return "[]" + self._kind(match[1], short, json_name, api_version)
        if match := re.fullmatch(r"(?:Dict\[|dict\()str, (.+)[\])]", value_type):
            return "{}" + self._kind(match[1], short, json_name, api_version)
        if value_type == "object" and json_name in _INT_OR_STRING_FIELDS:
            return "intOrString"
        is_quantity = json_name in _QUANTITY_FIELDS or (short, json_name) in _QUANTITY_TYPES
        if value_type == "str" and is_quantity:
            return "quantity"
        if value_type in _PRIMITIVES:
            return _PRIMITIVES[value_type]
        return "#" + self.type_name(value_type, api_version)


def _package(short: str, api_version: str) -> str:
    group, _, version = api_version.rpartition("/")
    if short in _META_TYPES:
        return "io.k8s.apimachinery.pkg.apis.meta.v1"
    return f"{_PACKAGES.get(group) or 'io.k8s.api.' + (group.partition('.')[0] or 'core')}.{version}"


def _summary(model: Any) -> str:
    """The first paragraph of a model's docstring; older clients have only a generator's notice there."""
    text = (model.__doc__ or "").split("\n\n")[0].strip()
    return "" if text.startswith(("NOTE:", "Attributes:")) else " ".join(text.split())


def _property_text(model: Any, attribute: str) -> str:
    """What clients before v36 say in the property's docstring: two lines, the second is the description."""
    lines = [line.strip() for line in (getattr(model, attribute).__doc__ or "").split("\n")]
    return lines[2] if len(lines) > 2 else ""


def _model_name(models: Any, api_version: str, kind: str) -> str | None:
    group, _, version = api_version.rpartition("/")
    prefix = (group.partition(".")[0] or "core").capitalize()
    for candidate in (f"{prefix}{version.upper()}{kind}", f"{version.upper()}{kind}"):
        if hasattr(models, candidate):
            return candidate
    return None


def read() -> dict[str, Any]:
    """Kinds and types as described above. KeyError: the package lacks a kind that every release has."""
    from kubernetes.client import models

    reader = _Reader(models)
    kinds = {}
    for api_version, names in KINDS.items():
        for kind in names.split():
            model = _model_name(models, api_version, kind)
            if model is None:
                raise KeyError(f"the kubernetes package has no model for {api_version}/{kind}; install kubernetes>=37")
            kinds[f"{api_version}/{kind}"] = reader.type_name(model, api_version)
            if list_model := _model_name(models, api_version, f"{kind}List"):
                kinds[f"{api_version}/{kind}List"] = reader.type_name(list_model, api_version)
    return {"kinds": kinds, "types": reader.types}


if __name__ == "__main__":
    json.dump(read(), sys.stdout)
