"""Decoding of the protobuf bodies that Go clients (kubectl create, Helm, controllers) send for built-in kinds.

Answers are always JSON, which all of them accept. Zero values that Go's JSON would leave out are left out here too.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from capstan_local.server.errors import bad_request, unsupported_media_type

Object = dict[str, Any]

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_FIELDS = Path(__file__).with_name("protobuf_fields.txt")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_DEPTH = 100  # JSONSchemaProps and the like nest; a body that nests deeper is an attack


class _Field(NamedTuple):
    name: str  # "^": inlined
    shape: str  # "", "*" repeated, "%" map
    kind: str
    keeps_zero: bool


class _Broken(ValueError):
    """The bytes are not a protobuf message."""


def decode(body: bytes) -> Object:
    """The object in a Kubernetes protobuf envelope. Raises ApiError 415 for an unknown kind, 400 for broken bytes."""
    if not body.startswith(_MAGIC):
        raise bad_request("the body does not begin as a Kubernetes protobuf message")
    try:
        type_meta, raw = b"", b""
        for number, value in _fields_of(body[len(_MAGIC) :]):
            if number == 1:
                type_meta = _bytes(value)
            elif number == 2:
                raw = _bytes(value)
        named = {number: _bytes(value).decode() for number, value in _fields_of(type_meta)}
        api_version, kind = named.get(1, ""), named.get(2, "")
        message = _message_name(api_version, kind)
        if message not in _tables():
            raise unsupported_media_type(
                f"{MEDIA_TYPE} ({api_version} {kind})", ("application/json", "application/yaml")
            )
        return {"kind": kind, "apiVersion": api_version, **_message(message, raw, 0)}
    except (_Broken, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise bad_request(f"the body is not a valid protobuf message: {error}") from None


def _message_name(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":
        return "meta.v1.DeleteOptions"
    group, _, version = api_version.rpartition("/")
    return f"{group.partition('.')[0] or 'core'}.{version}.{kind}"


@cache
def _tables() -> dict[str, dict[int, _Field]]:
    tables: dict[str, dict[int, _Field]] = {}
    for line in _FIELDS.read_text().splitlines():
        if not line.startswith("#"):
            message, *parts = line.split(" ")
            triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            tables[message] = {int(number): _parse_field(name, text) for number, name, text in triples}
    return tables


def _parse_field(name: str, text: str) -> _Field:
    shape = text[0] if text[0] in "*%" else ""
    kind = text[len(shape) :]
    return _Field(name, shape, kind.removesuffix("!"), kind.endswith("!"))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _Broken("an integer has more than 64 bits")


def _fields_of(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in order; length-delimited values as bytes, all others as integers."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise _Broken("a field is longer than the message")
            value, at = data[at : at + length], at + length
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            if width > len(data) - at:
                raise _Broken("a field is longer than the message")
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise _Broken(f"wire type {wire} is not used by Kubernetes")
        yield tag >> 3, value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Broken("a string or message is expected where a number is")
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _Broken("a number is expected where a string is")
    return value - (1 << 64) if value >= 1 << 63 else value


def _message(name: str, data: bytes, depth: int) -> Object:
    if depth > _MOST_DEPTH:
        raise _Broken("messages are nested too deeply")
    table = _tables()[name]
    result: Object = {}
    for number, raw in _fields_of(data):
        field = table.get(number)
        if field is None:
            continue  # a field younger than the table
        if field.shape == "%":
            entry = dict(_fields_of(_bytes(raw)))
            key = _bytes(entry.get(1, b"")).decode()
            result.setdefault(field.name, {})[key] = _value(field.kind, entry.get(2, b""), depth)
        elif field.shape == "*":
            result.setdefault(field.name, []).append(_value(field.kind, raw, depth))
        else:
            value = _value(field.kind, raw, depth)
            if field.name == "^":
                result.update(value)
            elif field.keeps_zero or value not in ("", 0, None, {}):
                result[field.name] = value
    return result


def _value(kind: str, raw: int | bytes, depth: int) -> Any:
    match kind:
        case "s":
            return _bytes(raw).decode()
        case "i":
            return _integer(raw)
        case "b":
            return bool(_integer(raw))
        case "y":
            return base64.b64encode(_bytes(raw)).decode()
        case "T" | "U":
            return _time(_bytes(raw), micro=kind == "U")
        case "Q":
            return _bytes(dict(_fields_of(_bytes(raw))).get(1, b"")).decode()
        case "I":
            parts = dict(_fields_of(_bytes(raw)))
            return _bytes(parts.get(3, b"")).decode() if parts.get(1) else _integer(parts.get(2, 0))
        case "R" | "F":
            return _embedded(_bytes(raw))
        case _:
            return _message(kind, _bytes(raw), depth + 1)


def _time(data: bytes, *, micro: bool) -> str | None:
    """RFC 3339; None for Go's zero time, which is sent as no fields or as year 1."""
    parts = dict(_fields_of(data))
    seconds = _integer(parts.get(1, 0))
    if not parts or seconds < -62_135_596_800 + 1:
        return None
    moment = _EPOCH + timedelta(seconds=seconds, microseconds=_integer(parts.get(2, 0)) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _embedded(data: bytes) -> Any:
    raw = _bytes(dict(_fields_of(data)).get(1, b""))
    try:
        return orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        raise _Broken("an embedded object is not JSON") from None
