"""Objects against a structural schema: defaulting, pruning and validation as kube-apiserver does them.

A schema is compiled once per CRD version into a tree of nodes. On an update, errors in parts that did not change are
not raised again (ratcheting), so that a stricter schema does not lock up what is stored.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from capstan_local.schema import builtin_schemas
from capstan_local.schema.cel import RuleError
from capstan_local.schema.field_errors import (
    DUPLICATE,
    INVALID,
    NO_PATH,
    NOT_SUPPORTED,
    REQUIRED,
    TOO_LONG,
    TOO_MANY,
    TYPE_INVALID,
    FieldError,
    field_error,
    go_value,
)
from capstan_local.schema.structural_rules import RuleNode, compile_rule_tree
from capstan_local.schema.structural_values import Check, Errors, Schema, correlated_items, required_error, value_checks

Object = dict[str, Any]

_META_FIELDS = frozenset({"apiVersion", "kind", "metadata"})
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

# Errors after which rules are not evaluated: they could not rely on the types.
_BLOCKING = frozenset({NOT_SUPPORTED, REQUIRED, TOO_LONG, TOO_MANY, TYPE_INVALID})
_NOT_EVALUATED = field_error(
    NO_PATH,
    INVALID,
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation",
    "null",
)


class SchemaError(ValueError):
    """A schema a CRD must not be installed with; `problems` are whole lines, each naming its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Structural:
    """A compiled schema."""

    def __init__(self, root: "_Node", rules: RuleNode | None) -> None:
        self._root = root
        self._rules = rules

    def default(self, obj: Object) -> Object:
        """`obj` itself, with the schema's static defaults filled in and nulls that are not allowed taken out."""
        if self._root.has_defaults or self._root.has_properties:
            _default(obj, self._root)
        return obj

    def prune(self, obj: Object) -> tuple[Object, list[str]]:
        """`obj` itself without the fields the schema does not know, and the paths of what was removed, sorted."""
        unknown: list[str] = []
        _prune(obj, self._root, "", unknown, is_resource=True)
        return obj, sorted(unknown)

    def validate(self, obj: Object, old: Object | None = None) -> list[FieldError]:
        """Everything wrong with `obj`, in schema order; `old` is the stored object of an update."""
        errors: Errors = []
        _validate(self._root, obj, "", errors, old)
        if self._root.has_keyed_lists:
            _check_keyed_lists(self._root, obj, "", errors)
        if self._root.has_embedded:
            _check_embedded(self._root, obj, "", errors)
        if self._rules is not None:
            if any(error.reason in _BLOCKING for error in errors):
                errors.append(_NOT_EVALUATED)
            else:
                self._rules.evaluate(obj, old, "", errors)
        return errors


def compile_schema(open_api_v3_schema: Schema) -> Structural:
    """A checker for objects of this schema. Raises SchemaError when a rule does not compile."""
    try:
        rules = compile_rule_tree(open_api_v3_schema, is_resource=True)
    except RuleError as error:
        raise SchemaError([str(error)]) from None
    return Structural(_Node(open_api_v3_schema), rules)


class _Node:
    """One node of a compiled schema. The `has_` flags cover the node and everything below it."""

    def __init__(self, schema: Schema) -> None:
        self.is_nullable = bool(schema.get("nullable"))
        self.default = None if schema.get("default") is None else orjson.dumps(schema["default"])
        self.properties = {name: _Node(child) for name, child in (schema.get("properties") or {}).items()}
        additional = schema.get("additionalProperties")
        self.additional = _Node(additional) if isinstance(additional, dict) else None
        self.allows_additional = additional is not None and additional is not False
        self.items = _Node(schema["items"]) if isinstance(schema.get("items"), dict) else None
        self.required = tuple(schema.get("required") or ())
        self.preserves_unknown = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        self.is_embedded = bool(schema.get("x-kubernetes-embedded-resource"))
        self.list_type = schema.get("x-kubernetes-list-type")
        self.list_map_keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        self.checks: list[Check] = value_checks(schema, _compile_nested)
        children = list(self._children())
        self.has_properties: bool = bool(self.properties) or any(child.has_properties for child in children)
        self.has_defaults: bool = self.default is not None or any(child.has_defaults for child in children)
        self.has_keyed_lists: bool = self.list_type in ("set", "map") or any(
            child.has_keyed_lists for child in children
        )
        self.has_embedded: bool = self.is_embedded or any(child.has_embedded for child in children)

    def _children(self) -> "Iterator[_Node]":
        yield from self.properties.values()
        yield from (child for child in (self.additional, self.items) if child is not None)

    def new_default(self) -> Any:
        """A fresh copy of the default; None without one."""
        return None if self.default is None else orjson.loads(self.default)


def _compile_nested(schema: Schema) -> Check:
    """A schema under allOf, anyOf, oneOf or not: it validates and does nothing else."""
    node = _Node(schema)
    return lambda value, path, errors: _validate(node, value, path, errors, None)


# --- defaulting ------------------------------------------------------------------------------------------------------


def _default(value: Any, node: _Node) -> None:
    if isinstance(value, dict):
        _default_object(value, node)
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            if item is None and not node.items.is_nullable and node.items.default is not None:
                value[index] = node.items.new_default()
            _default(value[index], node.items)


def _default_object(value: Object, node: _Node) -> None:
    for name, child in node.properties.items():
        if value.get(name) is not None:
            continue
        if child.default is not None and (name not in value or not child.is_nullable):
            value[name] = child.new_default()
        elif name in value and not child.is_nullable:
            del value[name]  # a null where none is allowed is as if it were not there
    for name, item in value.items():
        known = node.properties.get(name) or node.additional
        if known is None:
            continue
        if item is None and not known.is_nullable and known.default is not None:
            value[name] = known.new_default()
        _default(value[name], known)


# --- pruning ---------------------------------------------------------------------------------------------------------


def _prune(value: Any, node: _Node | None, path: str, unknown: list[str], *, is_resource: bool) -> None:
    if isinstance(value, list):
        if node is not None and node.items is None and node.preserves_unknown:
            return
        for index, item in enumerate(value):
            _prune(item, node.items if node else None, f"{path}[{index}]", unknown, is_resource=False)
    elif isinstance(value, dict):
        is_resource = is_resource or (node is not None and node.is_embedded)
        for name in list(value):
            below = f"{path}.{name}" if path else name
            if is_resource and name in _META_FIELDS:
                if name == "metadata" and isinstance(value[name], dict):
                    unknown.extend(_unknown_metadata(value[name], below))
                continue
            child = node.properties.get(name) if node else None
            if child is not None:
                _prune(value[name], child, below, unknown, is_resource=False)
            elif node is not None and node.allows_additional:
                if node.additional is not None:
                    _prune(value[name], node.additional, below, unknown, is_resource=False)
                elif not node.preserves_unknown:
                    _prune(value[name], None, below, unknown, is_resource=False)
            elif node is None or not node.preserves_unknown:
                unknown.append(below)
                del value[name]


def _unknown_metadata(metadata: Object, path: str) -> list[str]:
    known = builtin_schemas.type_by_name(_OBJECT_META).fields
    found = [name for name in metadata if name not in known]
    for name in found:
        del metadata[name]
    return [f"{path}.{name}" for name in found]


# --- validation ------------------------------------------------------------------------------------------------------


def _validate(node: _Node, value: Any, path: str, errors: Errors, old: Any) -> None:
    """Appends the errors of `value` unless it equals `old`, its stored counterpart (None: there is none)."""
    if old is not None and old == value:
        return
    for check in node.checks:
        check(value, path, errors)
    if isinstance(value, dict):
        _validate_object(node, value, path, errors, old if isinstance(old, dict) else {})
    elif isinstance(value, list) and node.items is not None:
        old_items = correlated_items(value, old, node.list_map_keys if node.list_type == "map" else ())
        for index, (item, old_item) in enumerate(zip(value, old_items, strict=True)):
            _validate(node.items, item, f"{path}[{index}]", errors, old_item)


def _validate_object(node: _Node, value: Object, path: str, errors: Errors, old: Object) -> None:
    if node.additional is not None:
        for name, item in value.items():
            if name not in node.properties:
                _validate(node.additional, item, f"{path}.{name}" if path else name, errors, old.get(name))
    for name, child in node.properties.items():
        if name in value:
            _validate(child, value[name], f"{path}.{name}" if path else name, errors, old.get(name))
    for name in node.required:
        if name not in value:
            errors.append(required_error(path, name))


def _check_keyed_lists(node: _Node, value: Any, path: str, errors: Errors) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name)
            if child is not None and child.has_keyed_lists:
                _check_keyed_lists(child, item, f"{path}.{name}" if path else name, errors)
            elif child is None and node.additional is not None and node.additional.has_keyed_lists:
                _check_keyed_lists(node.additional, item, f"{path}[{name}]", errors)
    elif isinstance(value, list):
        if node.list_type == "set":
            _check_unique(value, value, path, errors)
        elif node.list_type == "map":
            _check_list_map(node, value, path, errors)
        if node.items is not None and node.items.has_keyed_lists:
            for index, item in enumerate(value):
                _check_keyed_lists(node.items, item, f"{path}[{index}]", errors)


def _check_list_map(node: _Node, items: list[Any], path: str, errors: Errors) -> None:
    for index, item in enumerate(items):
        if item is not None and not isinstance(item, dict):
            detail = "must be an object for an array of list-type map"
            errors.append(field_error(f"{path}[{index}]", INVALID, detail, go_value(item)))
            return
    keys = [{key: item[key] for key in node.list_map_keys if key in item} if item else {} for item in items]
    _check_unique(items, keys, path, errors)


def _check_unique(items: list[Any], keys: list[Any], path: str, errors: Errors) -> None:
    """One error for each key that occurs again, at its second place."""
    seen: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        text = orjson.dumps(key, option=orjson.OPT_SORT_KEYS)
        seen[text] = seen.get(text, 0) + 1
        if seen[text] == 2:
            errors.append(field_error(f"{path}[{index}]", DUPLICATE, value=go_value(key)))


def _check_embedded(node: _Node, value: Any, path: str, errors: Errors) -> None:
    """An embedded resource says what it is."""
    if isinstance(value, dict):
        if node.is_embedded:
            for name in ("apiVersion", "kind"):
                if not value.get(name):
                    errors.append(required_error(path, name))
                elif not isinstance(value[name], str):
                    errors.append(field_error(f"{path}.{name}", INVALID, "must be a string", go_value(value[name])))
        for name, item in value.items():
            child = node.properties.get(name) or node.additional
            if child is not None and child.has_embedded:
                _check_embedded(child, item, f"{path}.{name}" if path else name, errors)
    elif isinstance(value, list) and node.items is not None and node.items.has_embedded:
        for index, item in enumerate(value):
            _check_embedded(node.items, item, f"{path}[{index}]", errors)
