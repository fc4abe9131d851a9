"""What a CRD's schema may say: the structural-schema rules, with kube-apiserver's refusals."""

import re
from dataclasses import dataclass, replace
from typing import Final

import orjson

from capstan_local.schema.field_errors import (
    FORBIDDEN,
    INVALID,
    NOT_SUPPORTED,
    REQUIRED,
    go_quote,
    go_value,
)
from capstan_local.schema.structural_problems import Problems, child_path, problem
from capstan_local.schema.structural_tree import compile_schema
from capstan_local.schema.structural_validations import check_rules
from capstan_local.schema.structural_values import Schema, regular_expression

_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED: Final = ("id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref")
_INT_OR_STRING: Final = [{"type": "integer"}, {"type": "string"}]
_META: Final = ("metadata", "apiVersion", "kind")

# What a schema under allOf, anyOf, oneOf or not must leave to the structure around it.
_STRUCTURE_ONLY: Final = {
    "type": "must be empty to be structural",
    "additionalProperties": "must be undefined to be structural",
    "default": "must be undefined to be structural",
    "title": "must be empty to be structural",
    "description": "must be empty to be structural",
    "nullable": "must be false to be structural",
    "x-kubernetes-preserve-unknown-fields": "must be false to be structural",
    "x-kubernetes-embedded-resource": "must be false to be structural",
    "x-kubernetes-int-or-string": "must be false to be structural",
    "x-kubernetes-list-map-keys": "must be empty to be structural",
    "x-kubernetes-list-type": "must be undefined to be structural",
    "x-kubernetes-map-type": "must be undefined to be structural",
    "x-kubernetes-validations": "must be empty to be structural",
}


def check_structural(schema: Schema, path: str = "openAPIV3Schema") -> list[str]:
    """Why kube-apiserver would refuse a CRD with this schema, one line each; empty: it would take it.

    `path` is where the schema stands, such as spec.versions[0].schema.openAPIV3Schema.
    """
    problems = [*_structure(schema, path, "root"), *_completeness(schema, schema, path, path)]
    problems += _open_api(schema, path, _Surroundings(is_root=True))
    if not problems:
        problems += _defaults(schema, path)
    if not problems:
        problems += check_rules(schema, path, is_resource=True, uncorrelatable=None)
    return sorted(problems)


# --- structure -------------------------------------------------------------------------------------------------------


def _structure(schema: Schema, path: str, level: str) -> Problems:
    """Every node has a type, and value validation adds no structure."""
    yield from _node_type(schema, path, level)
    if schema.get("type") == "array" and not schema.get("items"):
        yield problem(f"{path}.items", REQUIRED, "must be specified")
    if isinstance(schema.get("items"), dict):
        yield from _structure(schema["items"], f"{path}.items", "item")
    for name, child in (schema.get("properties") or {}).items():
        if not (level == "root" and name == "metadata"):
            yield from _structure(child, child_path(path, name), "field")
    additional = schema.get("additionalProperties")
    if additional is not None and level == "root":
        yield problem(f"{path}.additionalProperties", FORBIDDEN, "must not be used at the root")
    if isinstance(additional, dict):
        yield from _structure(additional, f"{path}.additionalProperties", "field")
    yield from _int_or_string(schema, path)
    yield from _junctors(schema, path, is_structural=True)
    yield from _metadata(schema, path, level)


def _node_type(schema: Schema, path: str, level: str) -> Problems:
    kind = schema.get("type")
    is_embedded = schema.get("x-kubernetes-embedded-resource")
    if is_embedded and kind != "object":
        detail = "must be object if x-kubernetes-embedded-resource is true"
        yield problem(f"{path}.type", INVALID if kind else REQUIRED, detail, go_quote(kind) if kind else None)
    elif (
        not kind
        and not schema.get("x-kubernetes-int-or-string")
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        where = {"root": "at the root", "item": "for specified array items", "field": "for specified object fields"}
        yield problem(f"{path}.type", REQUIRED, f"must not be empty {where[level]}")
    if level == "root" and kind and kind != "object":
        yield problem(f"{path}.type", INVALID, "must be object at the root", go_quote(kind))
    if is_embedded and schema.get("additionalProperties") is not None:
        detail = "must not be used if x-kubernetes-embedded-resource is set"
        yield problem(f"{path}.additionalProperties", FORBIDDEN, detail)
    if is_embedded and not schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
        detail = (
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        )
        yield problem(f"{path}.properties", REQUIRED, detail)


def _int_or_string(schema: Schema, path: str) -> Problems:
    if schema.get("x-kubernetes-int-or-string"):
        for name in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"):
            if schema.get(name):
                yield problem(f"{path}.{name}", INVALID, "must be false if x-kubernetes-int-or-string is true", "true")


def _metadata(schema: Schema, path: str, level: str) -> Problems:
    """apiVersion and kind are strings; metadata is an object of which only the name may be restricted."""
    if level != "root" and not schema.get("x-kubernetes-embedded-resource"):
        return
    properties = schema.get("properties") or {}
    for name in ("apiVersion", "kind"):
        if name in properties and properties[name].get("type") != "string":
            yield problem(
                f"{child_path(path, name)}.type", INVALID, "must be string", go_quote(properties[name].get("type", ""))
            )
    if "metadata" not in properties:
        return
    metadata = properties["metadata"]
    if metadata.get("type") != "object":
        yield problem(
            f"{child_path(path, 'metadata')}.type", INVALID, "must be object", go_quote(metadata.get("type", ""))
        )
    restricted = set(metadata.get("properties") or {})
    if level == "root" and (
        set(metadata) - {"type", "properties", "default"} or not restricted <= {"name", "generateName"}
    ):
        detail = "must not specify anything other than name and generateName, but metadata is implicitly specified"
        yield problem(child_path(path, "metadata"), FORBIDDEN, detail)


def _junctors(schema: Schema, path: str, *, is_structural: bool) -> Problems:
    if schema.get("pattern"):
        try:
            regular_expression(schema["pattern"])
        except ValueError as error:
            detail = f"must be a valid regular expression, but isn't: {error}"
            yield problem(f"{path}.pattern", INVALID, detail, go_quote(schema["pattern"]))
    if not (is_structural and schema.get("anyOf") == _INT_OR_STRING):
        for index, part in enumerate(schema.get("anyOf") or []):
            yield from _nested(part, f"{path}.anyOf[{index}]")
    for index, part in enumerate(schema.get("allOf") or []):
        if is_structural and index == 0 and part.get("anyOf") == _INT_OR_STRING:
            part = {name: value for name, value in part.items() if name != "anyOf"}
        yield from _nested(part, f"{path}.allOf[{index}]")
    for index, part in enumerate(schema.get("oneOf") or []):
        yield from _nested(part, f"{path}.oneOf[{index}]")
    if schema.get("not"):
        yield from _nested(schema["not"], f"{path}.not")


def _nested(schema: Schema, path: str) -> Problems:
    for name, detail in _STRUCTURE_ONLY.items():
        if schema.get(name) not in (None, False, "", [], {}) or (name == "default" and name in schema):
            yield problem(f"{path}.{name}", FORBIDDEN, detail)
    if "metadata" in (schema.get("properties") or {}):
        yield problem(child_path(path, "metadata"), FORBIDDEN, "must not be specified in a nested context")
    yield from _junctors(schema, path, is_structural=False)
    if isinstance(schema.get("items"), dict):
        yield from _nested(schema["items"], f"{path}.items")
    for name, child in (schema.get("properties") or {}).items():
        yield from _nested(child, child_path(path, name))


def _completeness(part: Schema, structure: Schema | None, structure_path: str, path: str) -> Problems:
    """Whatever a junctor at the root mentions is also declared outside of it. (Below the root nobody looks.)"""
    parts = [(part.get("not"), f"{path}.not")]
    for junctor in ("allOf", "anyOf", "oneOf"):
        parts += [(child, f"{path}.{junctor}[{index}]") for index, child in enumerate(part.get(junctor) or [])]
    for child, place in parts:
        if child:
            yield from _nested_completeness(child, structure, structure_path, place)


def _nested_completeness(part: Schema, structure: Schema | None, structure_path: str, path: str) -> Problems:
    if structure is None:
        yield problem(structure_path, REQUIRED, f"because it is defined in {path}")
        return
    yield from _completeness(part, structure, structure_path, path)
    if isinstance(part.get("items"), dict):
        items = structure.get("items")
        items_path = f"{structure_path}.items"
        yield from _nested_completeness(
            part["items"], items if isinstance(items, dict) else None, items_path, f"{path}.items"
        )
    declared = structure.get("properties") or {}
    for name, child in (part.get("properties") or {}).items():
        yield from _nested_completeness(
            child, declared.get(name), child_path(structure_path, name), child_path(path, name)
        )


# --- the OpenAPI subset ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What a node may do because of where it stands."""

    is_root: bool = False
    forbidden_default: str = ""  # why a default is not allowed here
    is_in_metadata: bool = False


def _open_api(schema: Schema, path: str, around: _Surroundings) -> Problems:
    yield from _plain_node(schema, path, around)
    yield from _list_node(schema, path)
    inner = replace(around, is_root=False)
    additional = schema.get("additionalProperties")
    if additional is not None and schema.get("properties") and additional is not True:
        detail = "additionalProperties and properties are mutual exclusive"
        yield problem(f"{path}.additionalProperties", FORBIDDEN, detail)
    if isinstance(additional, dict):
        below = inner
        if around.is_in_metadata:
            below = replace(inner, forbidden_default="inside additionalProperties applying to object metadata")
        yield from _open_api(additional, f"{path}.additionalProperties", below)
    for name, child in (schema.get("properties") or {}).items():
        below = inner
        if (around.is_root or schema.get("x-kubernetes-embedded-resource")) and name in _META:
            reason = f"in top-level {name}" if around.is_root else inner.forbidden_default
            below = replace(inner, is_in_metadata=True, forbidden_default=reason)
        yield from _open_api(child, child_path(path, name), below)
    if isinstance(schema.get("items"), dict):
        yield from _open_api(schema["items"], f"{path}.items", inner)
    for junctor in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(junctor) or []):
            yield from _open_api(part, f"{path}.{junctor}[{index}]", inner)
    if schema.get("not"):
        yield from _open_api(schema["not"], f"{path}.not", inner)


def _plain_node(schema: Schema, path: str, around: _Surroundings) -> Problems:
    kind = schema.get("type")
    if kind == "null":
        yield problem(f"{path}.type", FORBIDDEN, "type cannot be set to null, use nullable as an alternative")
    if kind and kind not in _TYPES:
        supported = ", ".join(go_quote(name) for name in _TYPES)
        yield problem(f"{path}.type", NOT_SUPPORTED, f"supported values: {supported}", go_value(kind))
    if schema.get("default") is not None and around.forbidden_default:
        yield problem(f"{path}.default", FORBIDDEN, f"must not be set {around.forbidden_default}")
    for name in _UNSUPPORTED:
        if schema.get(name) not in (None, "", {}):
            yield problem(f"{path}.{name}", FORBIDDEN, f"{name} is not supported")
    if isinstance(schema.get("items"), list):
        yield problem(f"{path}.items", FORBIDDEN, "items must be a schema object and not an array")
    if schema.get("uniqueItems"):
        detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield problem(f"{path}.uniqueItems", FORBIDDEN, detail)
    if schema.get("nullable") and around.is_root:
        yield problem(f"{path}.nullable", FORBIDDEN, "nullable cannot be true at the root")
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        name = "x-kubernetes-preserve-unknown-fields"
        yield problem(f"{path}.{name}", INVALID, "must be true or undefined", "false")
    if around.is_in_metadata and schema.get("x-kubernetes-embedded-resource"):
        yield problem(f"{path}.x-kubernetes-embedded-resource", FORBIDDEN, "must not be used inside of resource meta")
    yield from _extension_type(schema, path, "x-kubernetes-map-type", "object", ("atomic", "granular"))
    yield from _extension_type(schema, path, "x-kubernetes-list-type", "array", ("atomic", "set", "map"))


def _extension_type(schema: Schema, path: str, name: str, kind: str, values: tuple[str, ...]) -> Problems:
    if name not in schema:
        return
    found = schema.get("type")
    if found != kind:
        detail = f"must be {kind} if {name} is specified"
        yield problem(f"{path}.type", INVALID if found else REQUIRED, detail, go_quote(found) if found else None)
    if schema[name] not in values:
        supported = ", ".join(go_quote(value) for value in values)
        yield problem(f"{path}.{name}", NOT_SUPPORTED, f"supported values: {supported}", go_value(schema[name]))


def _list_node(schema: Schema, path: str) -> Problems:
    list_type, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or []
    items: Schema = schema["items"] if isinstance(schema.get("items"), dict) else {}
    items_path = f"{path}.items"
    if keys and list_type != "map":
        detail = "must be map if x-kubernetes-list-map-keys is non-empty"
        reason = INVALID if list_type else REQUIRED
        yield problem(f"{path}.x-kubernetes-list-type", reason, detail, go_quote(list_type) if list_type else None)
    if list_type in ("set", "map") and items.get("nullable"):
        yield problem(
            f"{items_path}.nullable", FORBIDDEN, f"cannot be nullable when x-kubernetes-list-type is {list_type}"
        )
    if list_type == "set":
        for kind, name in (("array", "x-kubernetes-list-type"), ("object", "x-kubernetes-map-type")):
            if items.get("type") == kind and items.get(name, "atomic" if kind == "array" else "") != "atomic":
                detail = "must be atomic as item of a list with x-kubernetes-list-type=set"
                yield problem(f"{items_path}.{name}", INVALID, detail, go_value(items.get(name)))
    if list_type != "map":
        return
    if not keys:
        yield problem(
            f"{path}.x-kubernetes-list-map-keys", REQUIRED, "must not be empty if x-kubernetes-list-type is map"
        )
    if not items:
        yield problem(items_path, REQUIRED, "must have a schema if x-kubernetes-list-type is map")
    elif items.get("type") != "object":
        detail = "must be object if parent array's x-kubernetes-list-type is map"
        yield problem(f"{items_path}.type", INVALID, detail, go_quote(items.get("type", "")))
    else:
        yield from _list_map_keys(keys, items, path)


def _list_map_keys(keys: list[str], items: Schema, path: str) -> Problems:
    properties = items.get("properties") or {}
    shown = orjson.dumps(keys).decode()
    for index, key in enumerate(keys):
        declared, place = properties.get(key), f"{path}.items.properties[{key}]"
        if key in keys[:index]:
            yield problem(f"{path}.x-kubernetes-list-map-keys", INVALID, "must not contain duplicate entries", shown)
        if declared is None:
            detail = "entries must all be names of item properties"
            yield problem(f"{path}.x-kubernetes-list-map-keys", INVALID, detail, shown)
            continue
        if declared.get("type") in ("array", "object"):
            detail = "must be a scalar type if parent array's x-kubernetes-list-type is map"
            yield problem(f"{place}.type", INVALID, detail, go_quote(items["type"]))
        if key not in (items.get("required") or []) and declared.get("default") is None:
            detail = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            yield problem(f"{place}.default", REQUIRED, detail)
        if declared.get("nullable"):
            detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"
            yield problem(f"{place}.nullable", FORBIDDEN, detail)


# --- defaults --------------------------------------------------------------------------------------------------------


def _defaults(schema: Schema, path: str) -> Problems:
    """A default has only known fields and is valid against the schema it stands in."""
    if schema.get("default") is not None:
        yield from _default(schema, f"{path}.default")
    if isinstance(schema.get("items"), dict):
        yield from _defaults(schema["items"], f"{path}.items")
    for name, child in (schema.get("properties") or {}).items():
        yield from _defaults(child, child_path(path, name))


def _default(schema: Schema, path: str) -> Problems:
    """The default is checked as the one field `x` of an object, since a schema's root is always an object."""
    wrapper = compile_schema({"type": "object", "properties": {"x": {**schema, "default": None}}})
    text = orjson.dumps({"x": schema["default"]})
    _, unknown = wrapper.prune(orjson.loads(text))
    if unknown:
        yield problem(path, INVALID, "must not have unknown fields", go_value(schema["default"]))
        return
    for error in wrapper.validate(orjson.loads(text)):
        body = re.sub(r"\bx(?:\.(\S+))? in body", lambda match: f"{match[1] or ''} in body", error.body)
        yield f"{path}{error.path.removeprefix('x')}: {body}"
