"""The schemas of custom resources as OpenAPI definitions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from capstan_local.schema.openapi_paths import BuiltinResource

Document = dict[str, Any]

_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1"
_API_VERSION: Final = {
    "type": "string",
    "description": "Version of the schema of this object, such as apps/v1.",
}
_KIND: Final = {"type": "string", "description": "The REST resource this object represents, in CamelCase."}

# What OpenAPI v2 cannot say, or what kubectl would refuse to read.
_NOT_IN_V2: Final = frozenset({"oneOf", "anyOf", "allOf", "not", "nullable", "x-kubernetes-validations"})


@dataclass(frozen=True, slots=True)
class CustomDefinitions:
    """A custom resource in one version: itself, the name of its definition, and the definitions, list included."""

    resource: BuiltinResource
    name: str
    definitions: Document


def served_versions(crds: Iterable[Document]) -> Iterator[tuple[Document, Document]]:
    """Each CRD with each version that it serves."""
    for crd in crds:
        for version in crd["spec"]["versions"]:
            if version.get("served"):
                yield crd, version


def custom_definitions(crd: Document, version: Document, *, open_api: Literal[2, 3]) -> CustomDefinitions:
    """The definitions of one version of a CRD."""
    spec = crd["spec"]
    group, kind = spec["group"], spec["names"]["kind"]
    list_kind = spec["names"].get("listKind") or f"{kind}List"
    name = f"{'.'.join(reversed(group.split('.')))}.{version['name']}.{kind}"
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
    schema = _v2(schema) if open_api == 2 else schema
    definition: Document = {
        **schema,
        "properties": {**(schema.get("properties") or {}), **_type_and_metadata("ObjectMeta", open_api)},
        "x-kubernetes-group-version-kind": [{"group": group, "kind": kind, "version": version["name"]}],
    }
    items: Document = {
        "type": "array",
        "items": {"$ref": _reference(name, open_api)},
        "description": f"List of {kind} objects.",
    }
    listed: Document = {
        "type": "object",
        "description": f"{list_kind} is a list of {kind}",
        "required": ["items"],
        "properties": {"items": items, **_type_and_metadata("ListMeta", open_api)},
        "x-kubernetes-group-version-kind": [{"group": group, "kind": list_kind, "version": version["name"]}],
    }
    resource = BuiltinResource(
        group=group,
        version=version["name"],
        kind=kind,
        plural=spec["names"]["plural"],
        namespaced=spec["scope"] == "Namespaced",
        subresources=tuple(version.get("subresources") or ()),
        is_custom=True,
    )
    return CustomDefinitions(resource, name, {name: definition, f"{name}List": listed})


def _type_and_metadata(meta: str, open_api: Literal[2, 3]) -> Document:
    description = "Standard object's metadata." if meta == "ObjectMeta" else "Standard list metadata."
    reference = {"$ref": _reference(f"{_META}.{meta}", open_api)}
    metadata: Document = {**reference, "description": description}
    if open_api == 3:
        metadata = {"description": description, "allOf": [reference]}
    return {"apiVersion": _API_VERSION, "kind": _KIND, "metadata": metadata}


def _reference(name: str, open_api: Literal[2, 3]) -> str:
    return f"#/definitions/{name}" if open_api == 2 else f"#/components/schemas/{name}"


def _v2(schema: Document) -> Document:
    """`schema` without what v2 has no words for. Where a value may have several types, nothing is said of its type."""
    result = {key: value for key, value in schema.items() if key not in _NOT_IN_V2}
    if schema.get("x-kubernetes-int-or-string") or schema.get("nullable"):
        for key in ("type", "items", "properties", "additionalProperties"):
            result.pop(key, None)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        for key in ("items", "properties", "additionalProperties"):
            result.pop(key, None)
    if isinstance(result.get("properties"), dict):
        result["properties"] = {name: _v2(child) for name, child in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = _v2(result[key])
    return result
