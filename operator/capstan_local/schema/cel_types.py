"""The CEL types of a structural schema, so that a rule is checked against the schema when a CRD is installed.

CEL knows structs as protobuf messages; every object with properties becomes one, in a descriptor pool of its own.
Values are plain maps and lists all the same: the checked rule is evaluated on JSON.
"""

import re
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, struct_pb2, timestamp_pb2

_PACKAGE: Final = "schema"
_Field = descriptor_pb2.FieldDescriptorProto
_DYN: Final = ".google.protobuf.Value"

_SCALARS: Final = {
    "integer": (_Field.TYPE_INT64, cel.Type.INT),
    "number": (_Field.TYPE_DOUBLE, cel.Type.DOUBLE),
    "boolean": (_Field.TYPE_BOOL, cel.Type.BOOL),
    "string": (_Field.TYPE_STRING, cel.Type.STRING),
}
_TIMES: Final = {
    "date-time": (".google.protobuf.Timestamp", cel.Type.TIMESTAMP),
    "datetime": (".google.protobuf.Timestamp", cel.Type.TIMESTAMP),
    "date": (".google.protobuf.Timestamp", cel.Type.TIMESTAMP),
    "duration": (".google.protobuf.Duration", cel.Type.DURATION),
}

# Words that an identifier in CEL may not be; such a property is written __NAME__.
_RESERVED: Final = frozenset(
    {
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    }
)
_ESCAPES: Final = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}


def escaped(name: str) -> str | None:
    """How a rule writes property `name` (`a-b` is `a__dash__b`, `in` is `__in__`); None when no rule can."""
    if name in _RESERVED:
        return f"__{name}__"
    text = re.sub(r"__|[.\-/]", lambda match: _ESCAPES[match[0]], name)
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) else None


class SchemaTypes:
    """The types of one schema and everything in it."""

    def __init__(self, schema: dict[str, Any], *, is_resource: bool) -> None:
        self._file = descriptor_pb2.FileDescriptorProto(name="schema.proto", package=_PACKAGE, syntax="proto2")
        self._file.dependency.extend(module.DESCRIPTOR.name for module in (struct_pb2, timestamp_pb2, duration_pb2))
        self.self_type = self._cel_type(schema, is_resource=is_resource)
        self.pool = descriptor_pool.DescriptorPool()
        for module in (struct_pb2, timestamp_pb2, duration_pb2):
            self.pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self.pool.Add(self._file)

    def _cel_type(self, schema: dict[str, Any], *, is_resource: bool = False) -> cel.Type:
        kind = schema.get("type")
        if schema.get("x-kubernetes-int-or-string"):
            return cel.Type.DYN
        if kind == "array":
            return cel.Type.List(self._cel_type(schema.get("items") or {}))
        if kind == "object":
            additional = schema.get("additionalProperties")
            if isinstance(additional, dict):
                return cel.Type.Map(cel.Type.STRING, self._cel_type(additional))
            return cel.Type(self._message(schema, is_resource=is_resource).lstrip("."))
        if kind == "string" and schema.get("format") in _TIMES:
            return _TIMES[schema["format"]][1]
        if kind == "string" and schema.get("format") == "byte":
            return cel.Type.BYTES
        return _SCALARS[kind][1] if kind in _SCALARS else cel.Type.DYN

    def _message(self, schema: dict[str, Any], *, is_resource: bool = False) -> str:
        """The full name of a new message with the properties of `schema`."""
        message = self._file.message_type.add(name=f"Object{len(self._file.message_type)}")
        name = f".{_PACKAGE}.{message.name}"
        properties = dict(schema.get("properties") or {})
        if is_resource or schema.get("x-kubernetes-embedded-resource"):
            text = {"type": "string"}
            named = {"type": "object", "properties": {"name": text, "generateName": text}}
            properties |= {"apiVersion": text, "kind": text, "metadata": named}
        for number, (key, child) in enumerate(properties.items(), start=1):
            field_name = escaped(key)
            if field_name is not None and _is_visible(child):
                self._add_field(message, name, field_name, number, child)
        return name

    def _add_field(self, message: Any, message_name: str, name: str, number: int, schema: dict[str, Any]) -> None:
        field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        kind = schema.get("type")
        if kind == "array":
            field.label = _Field.LABEL_REPEATED
            self._set_type(field, schema.get("items") or {})
        elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            field.label = _Field.LABEL_REPEATED
            entry_name = _map_entry_name(name)
            if any(entry.name == entry_name for entry in message.nested_type):  # maps a_b and aB in one object
                field.label = _Field.LABEL_OPTIONAL
                field.type, field.type_name = _Field.TYPE_MESSAGE, _DYN
                return
            field.type, field.type_name = _Field.TYPE_MESSAGE, f"{message_name}.{entry_name}"
            entry = message.nested_type.add(name=entry_name)
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
            value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
            self._set_type(value, schema["additionalProperties"])
        else:
            self._set_type(field, schema)

    def _set_type(self, field: Any, schema: dict[str, Any]) -> None:
        """What protobuf cannot nest (lists of lists, maps of maps) has a dynamic type."""
        kind = schema.get("type")
        if schema.get("x-kubernetes-int-or-string"):
            field.type, field.type_name = _Field.TYPE_MESSAGE, _DYN
        elif kind == "object" and not isinstance(schema.get("additionalProperties"), dict):
            field.type, field.type_name = _Field.TYPE_MESSAGE, self._message(schema)
        elif kind == "string" and schema.get("format") in _TIMES:
            field.type, field.type_name = _Field.TYPE_MESSAGE, _TIMES[schema["format"]][0]
        elif kind == "string" and schema.get("format") == "byte":
            field.type = _Field.TYPE_BYTES
        elif kind in _SCALARS:
            field.type = _SCALARS[kind][0]
        else:
            field.type, field.type_name = _Field.TYPE_MESSAGE, _DYN


def _map_entry_name(field_name: str) -> str:
    """The name that protobuf demands for the entries of map `field_name`."""
    return "".join(word[:1].upper() + word[1:] for word in field_name.split("_")) + "Entry"


def _is_visible(schema: dict[str, Any]) -> bool:
    """Whether rules see a property: not where the schema says nothing about what is in it."""
    if schema.get("x-kubernetes-int-or-string"):
        return True
    if schema.get("type") == "array":
        return _is_visible(schema.get("items") or {})
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        return _is_visible(additional)
    return bool(schema.get("type"))
