"""Value validation of one schema node: types, bounds, patterns, formats, enums, and the junctors over them.

The checks run in the order, and speak in the words, of k8s.io/kube-openapi's validators.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import orjson
import re2

from capstan_local.schema.field_errors import (
    INVALID,
    NO_PATH,
    NOT_SUPPORTED,
    REQUIRED,
    TOO_LONG,
    TOO_MANY,
    TYPE_INVALID,
    FieldError,
    field_error,
    go_float,
    go_value,
)
from capstan_local.schema.formats import find_checker
from capstan_local.schema.json_patch import is_json_equal

Schema = dict[str, Any]
Errors = list[FieldError]
Check = Callable[[Any, str, Errors], None]
"""Appends to the errors what is wrong with a value at a path."""

_JSON_TYPES: Final[dict[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_VALUE_FORMATS: Final = {"integer": "int64", "number": "float64"}
_INT32: Final = 2**31


def regular_expression(pattern: str) -> Any:
    """A compiled RE2 pattern, which is what Go's regexp is. Raises ValueError with the reason when it is none."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        text = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error.args[0])
        what, _, where = text.rpartition(": ")
        raise ValueError(
            f"error parsing regexp: {re.sub(r'missing (?=[])])', 'missing closing ', what)}: `{where}`"
        ) from None


def type_error(path: str, wanted: str, found: str) -> FieldError:
    """A value of the wrong type or format; `found` is its type, or the string itself when only the format is wrong."""
    detail = f"{path} in body must be of type {wanted}: {go_value(found)}"
    return field_error(path or NO_PATH, TYPE_INVALID, detail, go_value(found))


def value_checks(schema: Schema, nested: Callable[[Schema], Check]) -> list[Check]:
    """The checks of this node alone, in order; `nested` compiles the schemas under allOf, anyOf, oneOf and not."""
    makers = (
        _type_check,
        _junctor_checks(nested),
        _string_check,
        _format_check,
        _number_check,
        _size_check,
        _enum_check,
    )
    return [check for make in makers if (check := make(schema)) is not None]


# --- types -----------------------------------------------------------------------------------------------------------


def _type_check(schema: Schema) -> Check | None:
    types = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (schema.get("type"),)
    if types == (None,):
        return None
    wanted = ",".join(str(name) for name in types)
    nullable = bool(schema.get("nullable"))
    # Formats other than those of strings are no types; a string's format is named when the value is no string.
    named_format = schema.get("format") if types == ("string",) and find_checker(schema.get("format", "")) else None

    def check(value: Any, path: str, errors: Errors) -> None:
        found = _JSON_TYPES[type(value)]
        if found in types:
            return
        if found == "null":
            if not nullable:
                errors.append(type_error(path, wanted, "null"))
        elif _is_convertible(value, types):
            pass
        elif named_format and found != "array":
            errors.append(type_error(path, named_format, _VALUE_FORMATS.get(found, "")))
        else:
            errors.append(type_error(path, wanted, found))

    return check


def _is_convertible(value: Any, types: tuple[Any, ...]) -> bool:
    """An integer is a number, and 3.0 is an integer."""
    if isinstance(value, float):
        return "integer" in types and value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool) and "number" in types


# --- strings ---------------------------------------------------------------------------------------------------------


def _string_check(schema: Schema) -> Check | None:
    longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
    if longest is None and shortest is None and not pattern:
        return None
    expression = regular_expression(pattern) if pattern else None

    def check(value: Any, path: str, errors: Errors) -> None:
        if not isinstance(value, str):
            return
        if longest is not None and len(value) > longest:
            unit = "byte" if longest == 1 else "bytes"
            errors.append(field_error(path, TOO_LONG, f"may not be more than {longest} {unit}"))
        elif shortest is not None and len(value) < shortest:
            detail = f"{path} in body should be at least {shortest} chars long"
            errors.append(field_error(path, INVALID, detail, go_value(value)))
        elif expression is not None and expression.search(value) is None:
            errors.append(field_error(path, INVALID, f"{path} in body should match '{pattern}'", go_value(value)))

    return check


def _format_check(schema: Schema) -> Check | None:
    name = schema.get("format")
    if not name or schema.get("type") not in (None, "string"):
        return None
    has_format = find_checker(name)
    if has_format is None:
        return None

    def check(value: Any, path: str, errors: Errors) -> None:
        if isinstance(value, str) and not has_format(value):
            errors.append(type_error(path, name, value))

    return check


# --- numbers ---------------------------------------------------------------------------------------------------------


def _number_check(schema: Schema) -> Check | None:
    multiple, least, most = schema.get("multipleOf"), schema.get("minimum"), schema.get("maximum")
    is_int32 = schema.get("type") == "integer" and schema.get("format") == "int32"
    if multiple is None and least is None and most is None and not is_int32:
        return None
    below = bool(schema.get("exclusiveMaximum"))
    above = bool(schema.get("exclusiveMinimum"))

    def check(value: Any, path: str, errors: Errors) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return

        def fail(rule: str, bound: float) -> None:
            text = str(int(bound)) if isinstance(value, int) else go_float(float(bound))
            errors.append(field_error(path, INVALID, f"{path} in body should be {rule} {text}", go_value(value)))

        if is_int32 and not -_INT32 <= value < _INT32:
            detail = f"Checked value must be of type integer with format int32 in {path}"
            errors.append(field_error(NO_PATH, INVALID, detail, '""'))
        if multiple is not None and not _is_multiple(value, multiple):
            fail("a multiple of", multiple)
        if least is not None and (value <= least if above else value < least):
            fail("greater than" if above else "greater than or equal to", least)
        if most is not None and (value >= most if below else value > most):
            fail("less than" if below else "less than or equal to", most)

    return check


def _is_multiple(value: float, factor: float) -> bool:
    if isinstance(value, int) and isinstance(factor, int):
        return value % factor == 0
    return (value / factor).is_integer()


# --- sizes and enums -------------------------------------------------------------------------------------------------


def _size_check(schema: Schema) -> Check | None:
    fewest_items, most_items = schema.get("minItems"), schema.get("maxItems")
    fewest_fields, most_fields = schema.get("minProperties"), schema.get("maxProperties")
    is_unique = bool(schema.get("uniqueItems"))
    if (fewest_items, most_items, fewest_fields, most_fields, is_unique) == (None, None, None, None, False):
        return None

    def check(value: Any, path: str, errors: Errors) -> None:
        if isinstance(value, list):
            _check_size(len(value), fewest_items, most_items, "items", path, errors)
            if is_unique and any(is_json_equal(a, b) for i, a in enumerate(value) for b in value[:i]):
                errors.append(field_error(path, INVALID, f"{path} in body shouldn't contain duplicates", '""'))
        elif isinstance(value, dict):
            _check_size(len(value), fewest_fields, most_fields, "properties", path, errors)

    return check


def _check_size(size: int, fewest: int | None, most: int | None, noun: str, path: str, errors: Errors) -> None:
    if fewest is not None and size < fewest:
        errors.append(field_error(path, INVALID, f"{path} in body should have at least {fewest} {noun}", str(size)))
    if most is not None and size > most:
        unit = "item" if most == 1 else "items"
        errors.append(field_error(path, TOO_MANY, f"must have at most {most} {unit}", str(size)))


def _enum_check(schema: Schema) -> Check | None:
    allowed = schema.get("enum")
    if not allowed:
        return None
    shown = ", ".join(go_value(item if isinstance(item, str) else go_value(item)) for item in allowed)
    simple = frozenset(item for item in allowed if isinstance(item, str))

    def check(value: Any, path: str, errors: Errors) -> None:
        if isinstance(value, str) and value in simple:
            return
        if not any(is_json_equal(value, item) for item in allowed):
            errors.append(field_error(path, NOT_SUPPORTED, f"supported values: {shown}", go_value(value)))

    return check


# --- junctors --------------------------------------------------------------------------------------------------------


def _junctor_checks(nested: Callable[[Schema], Check]) -> Callable[[Schema], Check | None]:
    def make(schema: Schema) -> Check | None:
        checks = [
            junctor([nested(part) for part in schema[name]])
            for name, junctor in (("anyOf", _any_of), ("oneOf", _one_of), ("allOf", _all_of))
            if schema.get(name)
        ]
        if schema.get("not"):
            checks.append(_not(nested(schema["not"])))
        if not checks:
            return None

        def check(value: Any, path: str, errors: Errors) -> None:
            if value is None:
                return
            for each in checks:
                each(value, path, errors)

        return check

    return make


def _errors_of(check: Check, value: Any, path: str) -> Errors:
    errors: Errors = []
    check(value, path, errors)
    return errors


def _of_no_field(detail: str) -> FieldError:
    return field_error(NO_PATH, INVALID, detail, '""')


def _any_of(parts: list[Check]) -> Check:
    def check(value: Any, path: str, errors: Errors) -> None:
        first: Errors | None = None
        for part in parts:
            failures = _errors_of(part, value, path)
            if not failures:
                return
            first = first or failures
        errors.append(_of_no_field(f'"{path}" must validate at least one schema (anyOf)'))
        errors.extend(first or [])

    return check


def _one_of(parts: list[Check]) -> Check:
    def check(value: Any, path: str, errors: Errors) -> None:
        results = [_errors_of(part, value, path) for part in parts]
        valid = sum(not failures for failures in results)
        if valid == 1:
            return
        found = "Found none valid" if not valid else f"Found {valid} valid alternatives"
        errors.append(_of_no_field(f'"{path}" must validate one and only one schema (oneOf). {found}'))
        if not valid:
            errors.extend(results[0])

    return check


def _all_of(parts: list[Check]) -> Check:
    def check(value: Any, path: str, errors: Errors) -> None:
        results = [_errors_of(part, value, path) for part in parts]
        for failures in results:
            errors.extend(failures)
        if any(results):
            none = ". None validated" if all(results) else ""
            errors.append(_of_no_field(f'"{path}" must validate all the schemas (allOf){none}'))

    return check


def _not(part: Check) -> Check:
    def check(value: Any, path: str, errors: Errors) -> None:
        if not _errors_of(part, value, path):
            errors.append(_of_no_field(f'"{path}" must not validate the schema (not)'))

    return check


def required_error(path: str, name: str) -> FieldError:
    """Field `name` of the object at `path` is missing."""
    return field_error(f"{path}.{name}" if path else name, REQUIRED)


def correlated_items(items: list[Any], old: Any, keys: tuple[str, ...]) -> list[Any]:
    """For each item its counterpart in the old list: only items with keys have one."""
    if not keys or not isinstance(old, list):
        return [None] * len(items)
    by_key = {_item_key(item, keys): item for item in old}
    return [by_key.get(_item_key(item, keys)) for item in items]


def _item_key(item: Any, keys: tuple[str, ...]) -> bytes:
    return orjson.dumps([item.get(key) for key in keys] if isinstance(item, dict) else item)
