"""What a newer CustomResourceDefinition would no longer accept, or no longer keep, of objects stored under an older.

An API server checks a stored object again whenever anything of it is written, its status included, and drops fields
that the definition does not know any more. So a definition may only ever allow more than the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_LOWER_BOUNDS = ("minimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "maxLength", "maxItems", "maxProperties")
_MUST_STAY = ("type", "pattern", "format", "multipleOf", "not", "oneOf", "anyOf", "allOf", "uniqueItems")
_FLAGS = ("nullable", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")
_UNIQUE = ("set", "map")


def narrowed(old: Json, new: Json) -> list[str]:
    """One line `path: what` for each way in which `new` allows less than `old`; empty if it does not."""
    lines = [
        f"{field}: {json.dumps(old['spec'].get(field))} became {json.dumps(new['spec'].get(field))}"
        for field in ("group", "scope")
        if old["spec"].get(field) != new["spec"].get(field)
    ]
    lines += [
        f"names.{field}: {old['spec']['names'][field]} became {new['spec']['names'].get(field)}"
        for field in ("kind", "plural")
        if old["spec"]["names"][field] != new["spec"]["names"].get(field)
    ]
    versions = {version["name"]: version for version in new["spec"]["versions"]}
    for version in old["spec"]["versions"]:
        successor = versions.get(version["name"])
        if successor is None or (version["served"] and not successor["served"]):
            lines.append(f"{version['name']}: is not served any more")
            continue
        lines += [
            f"{version['name']}: has no subresource {name} any more"
            for name in version.get("subresources", {}).keys() - successor.get("subresources", {}).keys()
        ]
        lines += _schema(version["schema"]["openAPIV3Schema"], successor["schema"]["openAPIV3Schema"], "")
    return lines


def _schema(old: Json, new: Json, path: str) -> Iterator[str]:
    yield from _values(old, new, path)
    for field in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        # What has a default is there in every stored object: it is filled in as that is read.
        if "default" not in new.get("properties", {}).get(field, {}):
            yield f"{path}.{field}: is required now"
    known = {rule["rule"] for rule in old.get("x-kubernetes-validations", ())}
    for rule in new.get("x-kubernetes-validations", ()):
        # One that compares with oldSelf is about changes: what does not change passes.
        if rule["rule"] not in known and "oldSelf" not in rule["rule"]:
            yield f"{path}: new rule {rule['rule']}"
    for name, inner in old.get("properties", {}).items():
        if name in new.get("properties", {}):
            yield from _schema(inner, new["properties"][name], f"{path}.{name}")
        elif not new.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}: is gone"
    for name, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(old.get(name), dict):
            if isinstance(new.get(name), dict):
                yield from _schema(old[name], new[name], path + suffix)
            elif not (new.get(name) or new.get("x-kubernetes-preserve-unknown-fields")):
                yield f"{path}{suffix}: is gone"


def _values(old: Json, new: Json, path: str) -> Iterator[str]:
    """What a single value may be."""
    for field in _MUST_STAY:
        if field in new and old.get(field) != new[field]:
            yield f"{path}: {field} {json.dumps(old.get(field))} became {json.dumps(new[field])}"
    for field in _FLAGS:
        if old.get(field) and not new.get(field):
            yield f"{path}: {field} is gone"
    if "enum" in new:
        for value in sorted(set(old["enum"]) - set(new["enum"])) if "enum" in old else ["anything else"]:
            yield f"{path}: may not be {value} any more"
    for field, is_narrower in (
        *((field, lambda before, now: now > before) for field in _LOWER_BOUNDS),
        *((field, lambda before, now: now < before) for field in _UPPER_BOUNDS),
    ):
        if field in new and (field not in old or is_narrower(old[field], new[field])):
            yield f"{path}: {field} {old.get(field)} became {new[field]}"
    for field in ("exclusiveMinimum", "exclusiveMaximum"):
        if new.get(field) and not old.get(field):
            yield f"{path}: {field} is new"
    kind, keys = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"
    if new.get(kind) in _UNIQUE and (old.get(kind), old.get(keys)) != (new[kind], new.get(keys)):
        yield f"{path}: elements have to differ now"
