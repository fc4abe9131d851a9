"""Where the CEL rules of a schema stand, and their evaluation over an object."""

from dataclasses import dataclass
from typing import Any

from capstan_local.schema import cel
from capstan_local.schema.field_errors import (
    DUPLICATE,
    FORBIDDEN,
    INVALID,
    NO_PATH,
    REQUIRED,
    FieldError,
    field_error,
    go_value,
)
from capstan_local.schema.structural_values import correlated_items

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RuleNode:
    """A part of a schema with rules in it or below it; parts without are not in the tree."""

    rules: tuple[cel.Rule, ...]
    convert: Any  # None, or what makes of the JSON value the one that rules see
    properties: dict[str, "RuleNode"]
    additional: "RuleNode | None"
    items: "RuleNode | None"
    list_map_keys: tuple[str, ...]
    is_atomic_map: bool

    def evaluate(self, value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        """Appends an error for each rule that does not hold. Rules see no nulls; transition rules need an `old`."""
        if value is None:
            return
        if self.rules:
            self._evaluate_here(value, old, path, errors)
        if isinstance(value, dict):
            self._evaluate_object(value, old if isinstance(old, dict) and not self.is_atomic_map else {}, path, errors)
        elif isinstance(value, list) and self.items is not None:
            old_items = correlated_items(value, old, self.list_map_keys)
            for index, item in enumerate(value):
                self.items.evaluate(item, old_items[index], f"{path}[{index}]", errors)

    def _evaluate_here(self, value: Any, old: Any, path: str, errors: list[FieldError]) -> None:
        is_unchanged = old is not None and old == value
        variables: dict[str, Any] | None = None
        for rule in self.rules:
            if rule.uses_old_self:
                if old is None and not rule.has_optional_old_self:
                    continue
            elif is_unchanged:
                continue
            if variables is None:
                variables = self._variables(value, old)
            failure = rule.failure(variables)
            if failure is not None:
                errors.append(_rule_error(f"{path}{rule.field_path}".removeprefix("."), rule.reason, failure, value))

    def _variables(self, value: Any, old: Any) -> dict[str, Any]:
        seen, seen_old = (value, old) if self.convert is None else (self.convert(value), self.convert(old))
        return {"self": seen, "oldSelf": seen_old, "presentOldSelf": seen_old, "hasOldSelf": old is not None}

    def _evaluate_object(self, value: dict[str, Any], old: dict[str, Any], path: str, errors: list[FieldError]) -> None:
        for name, child in self.properties.items():
            if name in value:
                child.evaluate(value[name], old.get(name), f"{path}.{name}" if path else name, errors)
        if self.additional is not None:
            for name, item in value.items():
                self.additional.evaluate(item, old.get(name), f"{path}[{name}]", errors)


def _rule_error(path: str, reason: str, failure: str, value: Any) -> FieldError:
    path = path or NO_PATH
    shown = None if isinstance(value, dict | list) else go_value(value)
    if reason == DUPLICATE:
        return field_error(path, DUPLICATE, value=shown)
    if reason in (REQUIRED, FORBIDDEN):
        return field_error(path, reason, failure)
    return field_error(path, INVALID, failure, shown)


def compile_rule_tree(schema: Schema, *, is_resource: bool = False) -> RuleNode | None:
    """The rules in `schema`, compiled; None without any. Raises cel.RuleError for the first that does not compile."""
    properties = {
        name: node
        for name, child in (schema.get("properties") or {}).items()
        if (node := compile_rule_tree(child)) is not None
    }
    additional = schema.get("additionalProperties")
    items = schema.get("items")
    node = RuleNode(
        rules=tuple(cel.compile_rules(schema, is_resource=is_resource)),
        convert=cel.converter(schema) if schema.get("x-kubernetes-validations") else None,
        properties=properties,
        additional=compile_rule_tree(additional) if isinstance(additional, dict) else None,
        items=compile_rule_tree(items) if isinstance(items, dict) else None,
        list_map_keys=tuple(schema.get("x-kubernetes-list-map-keys") or ()),
        is_atomic_map=schema.get("x-kubernetes-map-type") == "atomic",
    )
    has_rules = node.rules or node.properties or node.additional or node.items
    return node if has_rules else None
