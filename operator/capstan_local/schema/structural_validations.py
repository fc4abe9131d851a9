"""What the CEL rules in a CRD's schema may say."""

import re
from typing import Any, Final

from capstan_local.schema import cel
from capstan_local.schema.field_errors import INVALID, NOT_SUPPORTED, REQUIRED, go_quote, go_value
from capstan_local.schema.structural_problems import Problems, child_path, problem
from capstan_local.schema.structural_values import Schema

_REASONS: Final = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")


def check_rules(schema: Schema, path: str, *, is_resource: bool, uncorrelatable: str | None) -> Problems:
    """Rules compile; `uncorrelatable` is the part of the schema in which old values have no counterpart."""
    for index, rule in enumerate(schema.get("x-kubernetes-validations") or []):
        yield from _rule(schema, rule, f"{path}.x-kubernetes-validations[{index}]", is_resource, uncorrelatable)
    below = uncorrelatable or (path if schema.get("x-kubernetes-map-type") == "atomic" else None)
    for name, child in (schema.get("properties") or {}).items():
        yield from check_rules(child, child_path(path, name), is_resource=False, uncorrelatable=below)
    if isinstance(schema.get("additionalProperties"), dict):
        child = schema["additionalProperties"]
        yield from check_rules(child, f"{path}.additionalProperties", is_resource=False, uncorrelatable=below)
    if isinstance(schema.get("items"), dict):
        below = uncorrelatable or (path if schema.get("x-kubernetes-list-type") != "map" else None)
        yield from check_rules(schema["items"], f"{path}.items", is_resource=False, uncorrelatable=below)


def _rule(schema: Schema, rule: Schema, path: str, is_resource: bool, uncorrelatable: str | None) -> Problems:
    text, message = rule.get("rule", ""), rule.get("message", "")
    if not text.strip():
        yield problem(f"{path}.rule", REQUIRED, "rule is not specified")
        return
    if message and not message.strip():
        yield problem(f"{path}.message", INVALID, "must be non-empty if specified", go_quote(message))
    elif "\n" in message.strip():
        yield problem(f"{path}.message", INVALID, "must not contain line breaks", go_quote(message))
    elif "\n" in text.strip() and not message.strip():
        yield problem(f"{path}.message", REQUIRED, "message must be specified if rule contains line breaks")
    if rule.get("reason") is not None and rule["reason"] not in _REASONS:
        supported = ", ".join(go_quote(reason) for reason in _REASONS)
        yield problem(f"{path}.reason", NOT_SUPPORTED, f"supported values: {supported}", go_value(rule["reason"]))
    if rule.get("fieldPath") and not _is_field_path(rule["fieldPath"], schema):
        yield problem(f"{path}.fieldPath", INVALID, "must be a valid path", go_quote(rule["fieldPath"]))
    try:
        cel.compile_rules({**schema, "x-kubernetes-validations": [rule]}, is_resource=is_resource)
    except cel.RuleError as error:
        yield problem(f"{path}.{error.field}", INVALID, str(error), go_value(rule))
        return
    if not cel.uses_old_self(text):
        if rule.get("optionalOldSelf") is not None:
            detail = "may not be set if oldSelf is not used in rule"
            yield problem(f"{path}.optionalOldSelf", INVALID, detail, go_value(rule["optionalOldSelf"]))
    elif uncorrelatable:
        detail = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelatable}"
        yield problem(f"{path}.rule", INVALID, detail, go_quote(text))


def _is_field_path(path: str, schema: Schema) -> bool:
    """Whether `path` (.spec.x or .map['key']) leads to something the schema declares."""
    at: Any = schema
    steps = re.findall(r"\.([^.\['\]]+)|\['((?:\\.|[^'\\])*)'\]", path)
    if "".join(f".{name}" if name else f"['{key}']" for name, key in steps) != path:
        return False
    for name, key in steps:
        at = (at.get("properties") or {}).get(name or key) or at.get("additionalProperties")
        if not isinstance(at, dict):
            return False
    return bool(steps)
