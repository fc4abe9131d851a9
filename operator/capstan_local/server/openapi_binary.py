"""OpenAPI v2 as protobuf (gnostic's openapi_v2.Document), the only form of it that kubectl and Helm ask for.

What they look for is encoded: the definitions, and of the paths the operations with their kind and query parameters.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

Object = dict[str, Any]

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
# Older clients write the media type with an at sign, which is not allowed in one: Go refuses it in an answer.
MEDIA_TYPES = (MEDIA_TYPE, MEDIA_TYPE.replace("v2.v1.0", "v2@v1.0"))

# Field numbers of openapi_v2.proto.
_OPERATIONS = {"get": 2, "put": 3, "post": 4, "delete": 5, "options": 6, "head": 7, "patch": 8}
_SCHEMA_STRINGS = {"$ref": 1, "format": 2, "title": 3, "description": 4, "pattern": 13}
_SCHEMA_NUMBERS = {"multipleOf": 6, "maximum": 7, "minimum": 9}
_SCHEMA_INTEGERS = {
    "exclusiveMaximum": 8,
    "exclusiveMinimum": 10,
    "maxLength": 11,
    "minLength": 12,
    "maxItems": 14,
    "minItems": 15,
    "uniqueItems": 16,
    "maxProperties": 17,
    "minProperties": 18,
}


def encode(document: Object) -> bytes:
    """A v2 document in its binary form."""
    info = document.get("info") or {}
    encoded_info = _text(1, info.get("title", "")) + _text(2, info.get("version", ""))
    paths = b"".join(_named(2, path, _path_item(item)) for path, item in (document.get("paths") or {}).items())
    definitions = b"".join(_named(1, name, _schema(schema)) for name, schema in document["definitions"].items())
    parts = (_text(1, document["swagger"]), _block(2, encoded_info), _block(8, paths), _block(9, definitions))
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _block(number, text.encode()) if text else b""


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _named(number: int, name: str, value: bytes) -> bytes:
    """One entry of an ordered map."""
    return _block(number, _text(1, name) + _block(2, value))


def _any(value: Any) -> bytes:
    """gnostic keeps values of any type as YAML; JSON is YAML."""
    return _text(2, orjson.dumps(value).decode())


def _extensions(number: int, holder: Object) -> Iterator[bytes]:
    for name, value in holder.items():
        if name.startswith("x-"):
            yield _named(number, name, _any(value))


def _path_item(item: Object) -> bytes:
    parts = [_block(_OPERATIONS[name], _operation(value)) for name, value in item.items() if name in _OPERATIONS]
    parts += (_block(9, parameter) for parameter in _query_parameters(item.get("parameters") or ()))
    return b"".join(parts)


def _operation(operation: Object) -> bytes:
    parts = [_text(3, operation.get("description", "")), _text(5, operation.get("operationId", ""))]
    parts += (_block(8, parameter) for parameter in _query_parameters(operation.get("parameters") or ()))
    parts += _extensions(13, operation)
    return b"".join(parts)


def _query_parameters(parameters: Iterable[Object]) -> Iterator[bytes]:
    for parameter in parameters:
        if parameter.get("in") == "query":
            query = _text(2, "query") + _text(4, parameter["name"]) + _text(6, parameter.get("type", "string"))
            # ParametersItem.parameter.non_body_parameter.query_parameter_sub_schema
            yield _block(1, _block(2, _block(3, query)))


def _schema(schema: Object) -> bytes:
    parts: list[bytes] = []
    for name, value in schema.items():
        if name in _SCHEMA_STRINGS:
            parts.append(_text(_SCHEMA_STRINGS[name], value))
        elif name in _SCHEMA_NUMBERS:
            parts.append(_varint(_SCHEMA_NUMBERS[name] << 3 | 1) + struct.pack("<d", value))
        elif name in _SCHEMA_INTEGERS:
            parts.append(_integer(_SCHEMA_INTEGERS[name], int(value)))
        elif name == "default":
            parts.append(_block(5, _any(value)))
        elif name == "required":
            parts += (_text(19, field) for field in value)
        elif name == "enum":
            parts += (_block(20, _any(item)) for item in value)
        elif name == "additionalProperties":
            allowed = _integer(2, value) if isinstance(value, bool) else _block(1, _schema(value))
            parts.append(_block(21, allowed))
        elif name == "type":
            kinds = [value] if isinstance(value, str) else value
            parts.append(_block(22, b"".join(_text(1, kind) for kind in kinds)))
        elif name == "items":
            listed = value if isinstance(value, list) else [value]
            parts.append(_block(23, b"".join(_block(1, _schema(item)) for item in listed)))
        elif name == "allOf":
            parts += (_block(24, _schema(item)) for item in value)
        elif name == "properties":
            parts.append(_block(25, b"".join(_named(1, field, _schema(item)) for field, item in value.items())))
    parts += _extensions(31, schema)
    return b"".join(parts)
