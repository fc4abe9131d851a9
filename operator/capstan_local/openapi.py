"""The OpenAPI v2 and v3 documents that kubectl, Helm and the clients read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BuiltinResource:
    """One built-in resource as served."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


def v2_document(builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v2: every definition and path of the served resources."""
    raise NotImplementedError


def v3_index(builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v3: {"paths": {"apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=..."}}}."""
    raise NotImplementedError


def v3_document(group_version: str, builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v3/apis/GROUP/VERSION or /openapi/v3/api/v1; `group_version` is "v1" or "apps/v1"."""
    raise NotImplementedError
