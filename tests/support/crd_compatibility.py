"""What a newer CustomResourceDefinition would no longer accept, or no longer keep, of objects stored under an older.

An API server checks a stored object again whenever anything of it is written, its status included, and drops fields
that the definition does not know any more. So a definition may only ever allow more than the one before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
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
        if "oldSelf" not in rule["rule"] and not _holds_of_all(rule["rule"], known, old, new):
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


_HAS = re.compile(r"has\(self((?:\.\w+)+)\)")


def _holds_of_all(rule: str, known: Set[str], old: Json, new: Json) -> bool:
    """Whether `rule` holds of every object that passed the `known` ones and has none of the fields that `old` lacks."""
    true = {_simplified(each, old, new) for each in known} | {"size([].filter(name, name != '')) == 0"}
    return _value(_simplified(rule, old, new), true) is True


def _simplified(rule: str, old: Json, new: Json) -> str:
    """`rule`, of objects that have none of the fields that `old` lacks and all that it requires."""
    for path in set(_HAS.findall(rule)):
        names = path.split(".")[1:]
        if _is_absent(names, old, new):
            rule = rule.replace(f"has(self{path})", "false")
        elif len(names) == 1 and names[0] in old.get("required", ()):
            rule = rule.replace(f"has(self{path})", "true")
    # Alternatives that are never there: without them, the rule of a union is the old one.
    return re.sub(r"(false|!true) \? '\w+' : ''(, )?", "", rule).replace(", ]", "]")


def _is_absent(path: list[str], old: Json, new: Json) -> bool:
    """Whether no stored object has the field, nor is it filled in as that is read."""
    for at, name in enumerate(path):
        if name not in old.get("properties", {}):
            filled = new.get("properties", {}).get(name, {}).get("default")
            for inner in path[at + 1 :]:
                filled = filled.get(inner) if isinstance(filled, dict) else None
            return filled is None
        old, new = old["properties"][name], new.get("properties", {}).get(name, {})
    return False


def _value(expression: str, true: Set[str]) -> bool | None:
    """Of a CEL expression in which nothing but those that are `true` is known, and literals; None: it depends."""
    expression = expression.strip()
    if expression in true:
        return True
    for operator, decides in (("||", True), ("&&", False)):
        parts = _split(expression, operator)
        if len(parts) > 1:
            values = [_value(part, true) for part in parts]
            if decides in values:
                return decides
            return None if None in values else not decides
    if expression.startswith("!"):
        inner = _value(expression[1:], true)
        return None if inner is None else not inner
    if expression.startswith("(") and _split(expression[1:-1], ")") == [expression[1:-1]]:
        return _value(expression[1:-1], true)
    return {"true": True, "false": False}.get(expression)


def _split(expression: str, separator: str) -> list[str]:
    """By separators that are in no bracket and in no text."""
    parts, depth, start, at, is_text = [], 0, 0, 0, False
    while at < len(expression):
        letter = expression[at]
        if letter == "'":
            is_text = not is_text
        elif not is_text and depth == 0 and expression.startswith(separator, at):
            parts.append(expression[start:at])
            start = at + len(separator)
            at = start - 1
        elif not is_text:
            depth += (letter in "([{") - (letter in ")]}")
        at += 1
    return [*parts, expression[start:]]


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
