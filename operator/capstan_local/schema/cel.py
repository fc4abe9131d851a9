"""x-kubernetes-validations: rules in CEL, compiled when a CRD is installed, evaluated on every write.

Each rule is compiled twice: once against the types of the schema, which finds unknown fields and wrong operands as
kube-apiserver does, and once without types, to be evaluated on plain JSON values.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final

from cel_expr_python import cel
from cel_expr_python.ext import ext_encoders, ext_math, ext_optional, ext_strings
from google.protobuf import duration_pb2, timestamp_pb2

from capstan_local.schema.cel_functions import FUNCTIONS
from capstan_local.schema.cel_types import SchemaTypes, escaped

Schema = dict[str, Any]

_EXTENSIONS: Final = (
    ext_strings.ExtStrings(),
    ext_optional.ExtOptional(),
    ext_math.ExtMath(),
    ext_encoders.ExtEncoders(),
    cel.CelExtension("kubernetes", FUNCTIONS),  # last: it adds overloads to functions of the others
)
_MORE_EXTENSIONS: Final = "name: rules\nextensions:\n- name: sets\n- name: two-var-comprehensions\n- name: bindings\n"

# With optionalOldSelf, oldSelf is an optional. Such values cannot be passed in, so it is bound inside.
_OPTIONAL_OLD: Final = "cel.bind(oldSelf, hasOldSelf ? optional.of(presentOldSelf) : optional.none(), {rule})"

_STRING_LITERAL: Final = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_OLD_SELF: Final = re.compile(r"\boldSelf\b")


class RuleError(ValueError):
    """A rule that does not compile. `field` is `rule` or `messageExpression`; the text says why, as CEL does."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule."""

    text: str
    message: str
    reason: str  # FieldValueInvalid, FieldValueRequired, FieldValueForbidden or FieldValueDuplicate
    field_path: str  # "" or ".spec.x", relative to where the rule stands
    uses_old_self: bool
    has_optional_old_self: bool
    program: cel.Expression
    message_program: cel.Expression | None

    def failure(self, variables: Mapping[str, Any]) -> str | None:
        """None when the rule holds, else what to say. A rule whose evaluation fails does not hold."""
        verdict = self.program.eval(data=variables).plain_value()
        if verdict is True:
            return None
        if verdict is not False:
            return self._evaluation_error(str(verdict))
        if self.message_program is not None:
            message = self.message_program.eval(data=variables)
            text = message.plain_value()
            if message.type() == cel.Type.STRING and text.strip() and "\n" not in text:
                return str(text.strip())
        return self.message or f"failed rule: {self.text}"

    def _evaluation_error(self, text: str) -> str:
        cause = _in_kubernetes_words(text)
        described = self.message or self.text
        if cause == "no such overload":
            return (
                f"'{cause}': call arguments did not match a supported operator, function or macro signature for rule: "
                f"{described}"
            )
        return f"{cause} evaluating rule: {described}"


def compile_rules(schema: Schema, *, is_resource: bool) -> list[Rule]:
    """The rules that stand at this node of a schema, in order. Raises RuleError for the first that does not compile."""
    rules = schema.get("x-kubernetes-validations") or []
    if not rules:
        return []
    types = SchemaTypes(schema, is_resource=is_resource)
    typed = _environment(types.self_type, types.pool)
    return [_compile(rule, typed) for rule in rules]


def uses_old_self(text: str) -> bool:
    """Whether a rule mentions oldSelf outside of string literals."""
    return _OLD_SELF.search(_STRING_LITERAL.sub("''", text)) is not None


def _compile(rule: Schema, typed: cel.Env) -> Rule:
    text = rule["rule"].strip()
    is_optional = bool(rule.get("optionalOldSelf"))
    expression = rule.get("messageExpression", "").strip()
    return Rule(
        text=text,
        message=rule.get("message", "").strip(),
        reason=rule.get("reason") or "FieldValueInvalid",
        field_path=rule.get("fieldPath", "").strip(),
        uses_old_self=uses_old_self(text),
        has_optional_old_self=is_optional,
        program=_program(text, typed, "rule", cel.Type.BOOL, is_optional=is_optional),
        message_program=_program(expression, typed, "messageExpression", cel.Type.STRING, is_optional=is_optional)
        if expression
        else None,
    )


def _program(text: str, typed: cel.Env, field: str, result: cel.Type, *, is_optional: bool) -> cel.Expression:
    if is_optional:
        text = _OPTIONAL_OLD.format(rule=text)
    try:
        checked = typed.compile(text)
    except RuntimeError as error:
        prefix = "compilation failed: " if field == "rule" else "messageExpression compilation failed: "
        raise RuleError(field, prefix + _without_status(str(error))) from None
    if checked.return_type() not in (result, cel.Type.DYN):
        wanted = (
            "cel expression must evaluate to a bool"
            if field == "rule"
            else "messageExpression must evaluate to a string"
        )
        raise RuleError(field, wanted)
    return _untyped_environment().compile(text)


def _environment(self_type: cel.Type, pool: Any = None) -> cel.Env:
    variables = {"self": self_type, "oldSelf": self_type, "presentOldSelf": self_type, "hasOldSelf": cel.Type.BOOL}
    config = cel.NewEnvConfigFromYaml(_MORE_EXTENSIONS)
    return cel.NewEnv(pool, config=config, variables=variables, extensions=_EXTENSIONS)


@cache
def _untyped_environment() -> cel.Env:
    return _environment(cel.Type.DYN)


# --- values ----------------------------------------------------------------------------------------------------------


def converter(schema: Schema) -> Callable[[Any], Any] | None:
    """What turns a JSON value of `schema` into the value rules see; None when they see it as it is.

    Numbers are doubles even without a fraction, dates and durations have types of their own, bytes are decoded, and
    property names are escaped.
    """
    kind = schema.get("type")
    if kind == "number":
        return lambda value: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if kind == "string":
        return _STRING_CONVERTERS.get(schema.get("format", ""))
    if kind == "array":
        item = converter(schema.get("items") or {})
        return None if item is None else lambda value: _map_list(value, item)
    if kind == "object":
        return _object_converter(schema)
    return None


def _object_converter(schema: Schema) -> Callable[[Any], Any] | None:
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        each = converter(additional)
        return None if each is None else lambda value: _map_values(value, each)
    changed: dict[str, tuple[str, Callable[[Any], Any] | None]] = {}
    for name, child in (schema.get("properties") or {}).items():
        as_written, convert = escaped(name), converter(child)
        if convert is not None or as_written != name:
            changed[name] = (as_written or name, convert)
    return (lambda value: _map_fields(value, changed)) if changed else None


def _map_list(value: Any, convert: Callable[[Any], Any]) -> Any:
    return [convert(item) for item in value] if isinstance(value, list) else value


def _map_values(value: Any, convert: Callable[[Any], Any]) -> Any:
    return {key: convert(item) for key, item in value.items()} if isinstance(value, dict) else value


def _map_fields(value: Any, changed: dict[str, tuple[str, Callable[[Any], Any] | None]]) -> Any:
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        name, convert = changed.get(key, (key, None))
        result[name] = convert(item) if convert is not None else item
    return result


_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_NANOS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def _as_time(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return stamp


def _as_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    nanos = sum(int(Decimal(amount) * _NANOS[unit]) for amount, unit in _DURATION_PART.findall(value.replace(" ", "")))
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(-nanos if value.startswith("-") else nanos)
    return duration


def _as_bytes(value: Any) -> Any:
    return base64.b64decode(value) if isinstance(value, str) else value


_STRING_CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "date-time": _as_time,
    "datetime": _as_time,
    "date": _as_time,
    "duration": _as_duration,
    "byte": _as_bytes,
}


# --- words -----------------------------------------------------------------------------------------------------------

_STATUS: Final = re.compile(r"^[A-Z_]+: (?=.)")
_WORDS: Final = (
    (re.compile(r'^Key not found in map : "?(.*?)"?$'), r"no such key: \1"),
    (re.compile(r"^No matching overloads found.*"), "no such overload"),
    (re.compile(r"^Applying SELECT to non-message type.*"), "no such overload"),
    (re.compile(r"^divide by zero.*"), "division by zero"),
    (re.compile(r"^modulus by zero.*"), "modulus by zero"),
    (re.compile(r"^Index error: index=(-?\d+).*"), r"index out of bounds: \1"),
)


def _without_status(text: str) -> str:
    return re.sub(r" not found in struct 'schema[.]\w+'| \[[A-Z_]+\]$", "", _STATUS.sub("", text))


def _in_kubernetes_words(text: str) -> str:
    """What cel-go says where cel-cpp says `text`."""
    text = _without_status(text)
    for pattern, words in _WORDS:
        if pattern.match(text):
            return pattern.sub(words, text)
    return text
