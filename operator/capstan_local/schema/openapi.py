"""The OpenAPI v2 and v3 documents that kubectl, Helm and the clients read.

Built-in definitions are written in OpenAPI v2 terms and translated for v3; the schemas of custom resources are v3 and
translated for v2.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from capstan_local.schema import builtin_schemas
from capstan_local.schema.openapi_crds import custom_definitions, served_versions
from capstan_local.schema.openapi_paths import BuiltinResource, PathWriter

__all__ = ["BuiltinResource", "v2_document", "v3_document", "v3_index"]

Document = dict[str, Any]

_INFO: Final = {"title": "Kubernetes", "version": "v1"}
_BEARER: Final = {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization"}}
_PATCH: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
_PATCH_DEFINITION: Final = {
    "type": "object",
    "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.",
}


def v2_document(builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v2: every definition and path of the served resources."""
    crds = list(crds)
    definitions = {**builtin_schemas.open_api_definitions(), _PATCH: _PATCH_DEFINITION}
    paths: Document = {}
    writer = PathWriter(version=2)
    for resource, definition in _with_definitions(builtin_resources):
        paths |= writer.paths(resource, definition)
    for crd, version in served_versions(crds):
        custom = custom_definitions(crd, version, open_api=2)
        definitions |= custom.definitions
        paths |= writer.paths(custom.resource, custom.name)
    return {
        "swagger": "2.0",
        "info": _INFO,
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": _BEARER,
        "security": [{"BearerToken": []}],
    }


def v3_index(builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v3: {"paths": {"apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=..."}}}.

    The hash changes with what the document is made of, since clients cache a document under its URL for ever.
    """
    parts: dict[str, list[Any]] = {}
    for resource in builtin_resources:
        parts.setdefault(_prefix(resource.api_version), []).append([resource.plural, resource.subresources])
    for crd, version in served_versions(crds):
        spec = crd["spec"]
        parts.setdefault(_prefix(f"{spec['group']}/{version['name']}"), []).append([spec["names"], version])
    return {
        "paths": {
            prefix: {"serverRelativeURL": f"/openapi/v3/{prefix}?hash={_digest(made_of)}"}
            for prefix, made_of in sorted(parts.items())
        }
    }


def v3_document(group_version: str, builtin_resources: Iterable[BuiltinResource], crds: Iterable[Document]) -> Document:
    """/openapi/v3/apis/GROUP/VERSION or /openapi/v3/api/v1; `group_version` is "v1" or "apps/v1".

    It holds the resources of that group and version and every definition they need; none when nothing is served there.
    """
    known = {**builtin_schemas.open_api_definitions(), _PATCH: _PATCH_DEFINITION}
    writer = PathWriter(version=3)
    paths: Document = {}
    schemas: Document = {}
    for resource, definition in _with_definitions(builtin_resources):
        if resource.api_version == group_version:
            paths |= writer.paths(resource, definition)
    for crd, version in served_versions(crds):
        if f"{crd['spec']['group']}/{version['name']}" == group_version:
            custom = custom_definitions(crd, version, open_api=3)
            schemas |= custom.definitions
            paths |= writer.paths(custom.resource, custom.name)
    wanted = list(_references([paths, schemas]))
    while wanted:
        name = wanted.pop()
        if name not in schemas:
            schemas[name] = to_v3(known[name])
            wanted.extend(_references(schemas[name]))
    return {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _BEARER},
    }


def _with_definitions(resources: Iterable[BuiltinResource]) -> Iterator[tuple[BuiltinResource, str]]:
    """Resources with the names of their definitions."""
    for resource in resources:
        yield resource, builtin_schemas.builtin_type(f"{resource.api_version}/{resource.kind}").name


def _prefix(group_version: str) -> str:
    return f"apis/{group_version}" if "/" in group_version else f"api/{group_version}"


def _digest(made_of: list[Any]) -> str:
    # What the schemas say comes from this program and the kubernetes package, so their versions belong to it.
    parts = [builtin_schemas.source_version(), *made_of]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest().upper()


def _references(document: Any) -> Iterator[str]:
    """The names of the schemas that a v3 document refers to."""
    if isinstance(document, dict):
        reference = document.get("$ref")
        if isinstance(reference, str):
            yield reference.rpartition("/")[2]
        for value in document.values():
            yield from _references(value)
    elif isinstance(document, list):
        for value in document:
            yield from _references(value)


def to_v3(schema: Any) -> Any:
    """A v2 schema in v3 terms: references point elsewhere and have no neighbours, unions are said as such."""
    if isinstance(schema, list):
        return [to_v3(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: to_v3(value) for key, value in schema.items()}
    if isinstance(result.get("$ref"), str):
        target = {"$ref": f"#/components/schemas/{result.pop('$ref').rpartition('/')[2]}"}
        return {**result, "allOf": [target], "default": {}} if result else target
    if result.get("format") == "int-or-string" and result.get("type") == "string":
        del result["type"]
        result["oneOf"] = [{"type": "integer"}, {"type": "string"}]
    return result
