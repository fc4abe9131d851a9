"""The paths of OpenAPI documents: what kubectl needs to find a kind's schema and the parameters its requests take."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Document = dict[str, Any]

_STATUS: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.Status"
_DELETE_OPTIONS: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
_PATCH: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
_SCALE: Final = "io.k8s.api.autoscaling.v1.Scale"
_EVICTION: Final = "io.k8s.api.policy.v1.Eviction"
_BINDING: Final = "io.k8s.api.core.v1.Binding"

_STRATEGIC: Final = "application/strategic-merge-patch+json"
_PATCH_TYPES: Final = (
    "application/json-patch+json",
    "application/merge-patch+json",
    _STRATEGIC,
    "application/apply-patch+yaml",
)


@dataclass(frozen=True, slots=True)
class BuiltinResource:
    """One resource as served; custom resources have this form too."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
    is_custom: bool = False

    @property
    def patch_types(self) -> list[str]:
        """Media types of the patches it takes. kubectl looks here whether it may send strategic ones."""
        return [name for name in _PATCH_TYPES if not (self.is_custom and name == _STRATEGIC)]

    @property
    def api_version(self) -> str:
        """`v1` or `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    kind: str
    description: str


_DRY_RUN: Final = _Parameter("dryRun", "string", "All: go through every stage of the request but persist nothing.")
_MANAGER: Final = _Parameter("fieldManager", "string", "Name of the actor that makes these changes.")
_VALIDATION: Final = _Parameter(
    "fieldValidation", "string", "What to do about unknown or duplicate fields: Ignore, Warn or Strict."
)
_FORCE: Final = _Parameter("force", "boolean", "Take over fields that other managers own; for apply patches only.")
_PRETTY: Final = _Parameter("pretty", "string", "If 'true', the output is indented.")
_WRITE: Final = (_DRY_RUN, _MANAGER, _VALIDATION)
_DELETE: Final = (
    _DRY_RUN,
    _Parameter("gracePeriodSeconds", "integer", "Seconds before the object is deleted; 0 deletes at once."),
    _Parameter("propagationPolicy", "string", "Orphan, Background or Foreground."),
)
_LIST: Final = (
    _Parameter("allowWatchBookmarks", "boolean", "Send BOOKMARK events on a watch."),
    _Parameter("continue", "string", "Where the list before left off."),
    _Parameter("fieldSelector", "string", "Restricts the list by fields."),
    _Parameter("labelSelector", "string", "Restricts the list by labels."),
    _Parameter("limit", "integer", "Most items to return."),
    _Parameter("resourceVersion", "string", "Resource version to list at or watch from."),
    _Parameter("resourceVersionMatch", "string", "How resourceVersion applies to a list."),
    _Parameter("sendInitialEvents", "boolean", "Begin a watch with the present objects."),
    _Parameter("timeoutSeconds", "integer", "Ends a list or watch after this time."),
    _Parameter("watch", "boolean", "Watch for changes instead of listing."),
)


@dataclass(frozen=True, slots=True)
class PathWriter:
    """Writes paths in the form of OpenAPI 2 or 3."""

    version: Literal[2, 3]

    def paths(self, resource: BuiltinResource, definition: str) -> Document:
        """All paths of `resource`, whose objects have the schema `definition`."""
        root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.api_version}"
        scoped = f"{root}/namespaces/{{namespace}}" if resource.namespaced else root
        collection = f"{scoped}/{resource.plural}"
        result = {collection: self._item(self._collection(resource, definition), collection)}
        if resource.namespaced and "list" in resource.verbs:
            everywhere = f"{root}/{resource.plural}"
            operation = self._operation(resource, "list", f"{definition}List", "ForAllNamespaces", parameters=_LIST)
            result[everywhere] = self._item({"get": operation}, everywhere)
        item = f"{collection}/{{name}}"
        if operations := self._object(resource, definition, resource.verbs):
            result[item] = self._item(operations, item)
        for subresource in resource.subresources:
            path = f"{item}/{subresource}"
            result[path] = self._item(dict(self._subresource(resource, definition, subresource)), path)
        return {path: operations for path, operations in result.items() if operations}

    def _collection(self, resource: BuiltinResource, definition: str) -> Document:
        operations: Document = {}
        if "list" in resource.verbs:
            operations["get"] = self._operation(resource, "list", f"{definition}List", parameters=_LIST)
        if "create" in resource.verbs:
            operations["post"] = self._operation(resource, "post", definition, parameters=_WRITE, body=definition)
        if "deletecollection" in resource.verbs:
            operations["delete"] = self._operation(
                resource, "deletecollection", _STATUS, parameters=(*_DELETE, *_LIST), body=_DELETE_OPTIONS
            )
        return operations

    def _object(self, resource: BuiltinResource, definition: str, verbs: tuple[str, ...], suffix: str = "") -> Document:
        operations: Document = {}
        if "get" in verbs:
            operations["get"] = self._operation(resource, "get", definition, suffix)
        if "update" in verbs:
            operations["put"] = self._operation(resource, "put", definition, suffix, parameters=_WRITE, body=definition)
        if "patch" in verbs:
            operations["patch"] = self._operation(
                resource, "patch", definition, suffix, parameters=(*_WRITE, _FORCE), body=_PATCH
            )
        if "delete" in verbs:
            operations["delete"] = self._operation(
                resource, "delete", _STATUS, suffix, parameters=_DELETE, body=_DELETE_OPTIONS
            )
        return operations

    def _subresource(self, resource: BuiltinResource, definition: str, name: str) -> Iterator[tuple[str, Document]]:
        suffix = name.capitalize()
        if name in ("status", "scale"):
            about = _SCALE if name == "scale" else definition
            yield from self._object(resource, about, ("get", "update", "patch"), suffix).items()
        elif name in ("eviction", "binding"):
            about = _EVICTION if name == "eviction" else _BINDING
            yield "post", self._operation(resource, "post", about, suffix, parameters=_WRITE, body=about)
        elif name == "log":
            yield "get", self._operation(resource, "get", None, suffix)
        else:
            yield "post", self._operation(resource, "connect", None, suffix)

    def _operation(
        self,
        resource: BuiltinResource,
        action: str,
        answer: str | None,
        suffix: str = "",
        *,
        parameters: tuple[_Parameter, ...] = (),
        body: str | None = None,
    ) -> Document:
        scope = "Namespaced" if resource.namespaced and suffix != "ForAllNamespaces" else ""
        group = "".join(part.capitalize() for part in (resource.group.partition(".")[0] or "core").split("-"))
        schema = {"$ref": self._reference(answer)} if answer else {"type": "string"}
        operation: Document = {
            "operationId": f"{action}{group}{resource.version.capitalize()}{scope}{resource.kind}{suffix}",
            "tags": [f"{group.lower()}_{resource.version}"],
            "parameters": [self._parameter(parameter, "query") for parameter in parameters],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {
                "group": resource.group,
                "kind": resource.kind,
                "version": resource.version,
            },
        }
        if self.version == 2:
            operation["responses"] = {"200": {"description": "OK", "schema": schema}}
            if body:
                operation["parameters"].insert(
                    0, {"name": "body", "in": "body", "required": True, "schema": {"$ref": self._reference(body)}}
                )
            if action == "patch":
                operation["consumes"] = resource.patch_types
        else:
            content = {"application/json": {"schema": schema}}
            operation["responses"] = {"200": {"description": "OK", "content": content}}
            if body:
                types = resource.patch_types if action == "patch" else ["application/json"]
                reference = {"schema": {"$ref": self._reference(body)}}
                operation["requestBody"] = {"content": dict.fromkeys(types, reference), "required": True}
        return operation

    def _item(self, operations: Document, path: str) -> Document:
        """The operations of a path with the parameters in it; empty without operations."""
        if not operations:
            return {}
        names = [name for name in ("name", "namespace") if f"{{{name}}}" in path]
        in_path = [self._parameter(_Parameter(name, "string", f"{name} of the object"), "path") for name in names]
        return {**operations, "parameters": [*in_path, self._parameter(_PRETTY, "query")]}

    def _parameter(self, parameter: _Parameter, place: str) -> Document:
        described: Document = {"name": parameter.name, "in": place, "description": parameter.description}
        if place == "path":
            described["required"] = True
        kind: Document = {"type": parameter.kind, "uniqueItems": True}
        return described | (kind if self.version == 2 else {"schema": kind})

    def _reference(self, name: str) -> str:
        return f"#/definitions/{name}" if self.version == 2 else f"#/components/schemas/{name}"
