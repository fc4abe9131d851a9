"""Object metadata: names, labels, and what the server alone may set."""

import re
import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from capstan_local.server.errors import Cause, bad_request, forbidden_value, invalid_value, required
from capstan_local.server.resources import Resource

Object = dict[str, Any]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

# The sentences of k8s.io/apimachinery/pkg/util/validation, two spaces included.
_NOT_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_NOT_LABEL_1123 = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_NOT_LABEL_1035 = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_NOT_LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_NOT_QUALIFIED = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)

_ANNOTATIONS_BYTES = 256 << 10
_GENERATED_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED_BASE = 58  # the longest prefix that leaves room for 5 random characters in a DNS label
_SERVER_OWNED = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")

_LABEL_NAMED = {"Namespace"}
_LABEL_1035_NAMED = {"Service"}
_PATH_SEGMENT_NAMED = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def now_rfc3339() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def subdomain_problems(value: str) -> list[str]:
    """Why `value` is no DNS subdomain; empty when it is one."""
    problems = ["must be no more than 253 characters"] if len(value) > 253 else []
    return problems if _SUBDOMAIN.fullmatch(value) else [*problems, _NOT_SUBDOMAIN]


def label_problems(value: str) -> list[str]:
    """Why `value` is no DNS label."""
    problems = ["must be no more than 63 characters"] if len(value) > 63 else []
    return problems if _LABEL_1123.fullmatch(value) else [*problems, _NOT_LABEL_1123]


def _service_name_problems(value: str) -> list[str]:
    problems = ["must be no more than 63 characters"] if len(value) > 63 else []
    return problems if _LABEL_1035.fullmatch(value) else [*problems, _NOT_LABEL_1035]


def _path_segment_problems(value: str) -> list[str]:
    if value in (".", ".."):
        return [f"may not be '{value}'"]
    return [f"may not contain '{mark}'" for mark in ("/", "%") if mark in value]


def name_problems(resource: Resource, name: str) -> list[str]:
    """Why this resource cannot be called `name`."""
    if resource.custom is None:
        if resource.kind in _LABEL_NAMED:
            return label_problems(name)
        if resource.kind in _LABEL_1035_NAMED:
            return _service_name_problems(name)
        if resource.kind in _PATH_SEGMENT_NAMED:
            return _path_segment_problems(name)
    return subdomain_problems(name)


def qualified_name_problems(value: str) -> list[str]:
    """Why `value` is no label key (`prefix/name`, prefix optional)."""
    prefix, slash, name = value.rpartition("/")
    problems: list[str] = []
    if slash and not prefix:
        problems.append("prefix part must be non-empty")
    elif slash:
        problems += [f"prefix part {problem}" for problem in subdomain_problems(prefix)]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > 63:
        problems.append("name part must be no more than 63 characters")
    if name and not _QUALIFIED.fullmatch(name):
        problems.append(_NOT_QUALIFIED)
    return problems


def label_value_problems(value: str) -> list[str]:
    problems = ["must be no more than 63 characters"] if len(value) > 63 else []
    return problems if _LABEL_VALUE.fullmatch(value) else [*problems, _NOT_LABEL_VALUE]


def generate_name(base: str) -> str:
    return base[:_GENERATED_BASE] + "".join(secrets.choice(_GENERATED_ALPHABET) for _ in range(5))


def settle_namespace(resource: Resource, metadata: Object, namespace: str) -> None:
    """Give the object the namespace of the request. Raises ApiError 400 when it names another one."""
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return
    named = metadata.get("namespace") or namespace
    if named != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    metadata["namespace"] = namespace


def prepare_create(resource: Resource, metadata: Object) -> None:
    """Set what the server sets on a new object; drop what clients may not bring."""
    for field in (*_SERVER_OWNED, "resourceVersion", "selfLink"):
        metadata.pop(field, None)
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = generate_name(metadata["generateName"])
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now_rfc3339()
    if resource.has_generation or resource.custom:
        metadata["generation"] = 1
    drop_empty(metadata)


def prepare_update(metadata: Object, old: Object) -> None:
    """Carry over what clients may not change."""
    metadata.pop("selfLink", None)
    for field in (*_SERVER_OWNED, "resourceVersion", "generateName", "name", "namespace"):
        if field in old:
            metadata[field] = old[field]
        else:
            metadata.pop(field, None)
    drop_empty(metadata)


def drop_empty(metadata: Object) -> None:
    """Remove empty maps and lists, as Go's omitempty does."""
    for field in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields", "generateName"):
        if field in metadata and not metadata[field]:
            del metadata[field]


def validate(resource: Resource, metadata: Object, old: Object | None = None) -> list[Cause]:
    """Everything wrong with the metadata of a new object, or of an update of `old`."""
    causes: list[Cause] = []
    name = metadata.get("name", "")
    if not name:
        causes.append(required("metadata.name", "name or generateName is required"))
    elif old is None:
        causes += [invalid_value("metadata.name", name, why) for why in name_problems(resource, name)]
    causes += validate_labels(metadata.get("labels") or {})
    causes += _validate_annotations(metadata.get("annotations") or {})
    causes += _validate_owners(metadata.get("ownerReferences") or [])
    finalizers = metadata.get("finalizers") or []
    for finalizer in finalizers:
        causes += [invalid_value("metadata.finalizers", finalizer, why) for why in qualified_name_problems(finalizer)]
    if old is not None and old.get("deletionTimestamp"):
        added = [finalizer for finalizer in finalizers if finalizer not in (old.get("finalizers") or [])]
        if added:
            listed = ", ".join(f'"{finalizer}"' for finalizer in added)
            why = "no new finalizers can be added if the object is being deleted, found new finalizers []string{%s}"
            causes.append(forbidden_value("metadata.finalizers", why % listed))
    return causes


def validate_labels(labels: Mapping[str, str], at: str = "metadata.labels") -> list[Cause]:
    causes: list[Cause] = []
    for key, value in labels.items():
        causes += [invalid_value(at, key, why) for why in qualified_name_problems(key)]
        causes += [invalid_value(at, value, why) for why in label_value_problems(value)]
    return causes


def _validate_annotations(annotations: Mapping[str, str]) -> list[Cause]:
    causes: list[Cause] = []
    size = 0
    for key, value in annotations.items():
        causes += [invalid_value("metadata.annotations", key, why) for why in qualified_name_problems(key.lower())]
        size += len(key) + len(value)
    if size > _ANNOTATIONS_BYTES:
        why = f"Too long: may not be more than {_ANNOTATIONS_BYTES} bytes"
        causes.append(Cause("FieldValueTooLong", why, "metadata.annotations"))
    return causes


def _validate_owners(owners: list[Object]) -> list[Cause]:
    causes: list[Cause] = []
    controllers: list[str] = []
    for owner in owners:
        for field, why in (
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ):
            if not owner.get(field):
                causes.append(invalid_value(f"metadata.ownerReferences.{field}", owner.get(field, ""), why))
        if owner.get("controller"):
            controllers.append(f"{owner.get('kind')}/{owner.get('name')}")
    if len(controllers) > 1:
        found = " and ".join(controllers)
        why = f'Only one reference can have Controller set to true. Found "true" in references for {found}'
        causes.append(invalid_value("metadata.ownerReferences", found, why))
    return causes
