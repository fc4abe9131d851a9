"""Field errors of a 422 in Kubernetes' words, and Go's way of writing values in them."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import orjson

INVALID: Final = "FieldValueInvalid"
TYPE_INVALID: Final = "FieldValueTypeInvalid"
REQUIRED: Final = "FieldValueRequired"
NOT_SUPPORTED: Final = "FieldValueNotSupported"
DUPLICATE: Final = "FieldValueDuplicate"
FORBIDDEN: Final = "FieldValueForbidden"
TOO_LONG: Final = "FieldValueTooLong"
TOO_MANY: Final = "FieldValueTooMany"

NO_PATH: Final = "<nil>"
"""The path of an error that belongs to no field."""

_TITLES: Final = {
    INVALID: "Invalid value",
    TYPE_INVALID: "Invalid value",
    REQUIRED: "Required value",
    NOT_SUPPORTED: "Unsupported value",
    DUPLICATE: "Duplicate value",
    FORBIDDEN: "Forbidden",
    TOO_LONG: "Too long",
    TOO_MANY: "Too many",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One cause of a 422: `path` (spec.workers.min), `reason` (FieldValueInvalid, ...) and Kubernetes' own words."""

    path: str
    reason: str
    message: str  # the whole line, path included

    @property
    def body(self) -> str:
        """The message without the path, as it stands in a Status cause."""
        return self.message.removeprefix(f"{self.path}: ")


def field_error(path: str, reason: str, detail: str = "", value: str | None = None) -> FieldError:
    """An error about `path`; `value` is the offending value as `go_value` writes it, None to leave it out."""
    parts = [path, _TITLES[reason], value, detail]
    return FieldError(path, reason, ": ".join(part for part in parts if part))


def go_value(value: Any) -> str:
    """`value` as a field error shows it: strings quoted, numbers and booleans bare, the rest as JSON."""
    if isinstance(value, str):
        return go_quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, int):
        return str(value)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def go_quote(text: str) -> str:
    """`text` as strconv.Quote writes it."""
    escapes = {
        '"': '\\"',
        "\\": "\\\\",
        "\n": "\\n",
        "\t": "\\t",
        "\r": "\\r",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\v": "\\v",
    }
    return '"' + "".join(escapes.get(char) or _go_char(char) for char in text) + '"'


def _go_char(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def go_float(number: float) -> str:
    """`number` as %v writes it: the shortest digits, with an exponent below 1e-4 and from 1e+06.

    >>> go_float(2.0), go_float(0.5), go_float(1e6), go_float(1.5e-7)
    ('2', '0.5', '1e+06', '1.5e-07')
    """
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{number} is not finite, which JSON cannot hold")
    power = len(digits) + exponent - 1
    if number == 0 or -4 <= power < 6:
        return f"{Decimal(repr(number)).normalize():f}"
    text = "".join(map(str, digits))
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
