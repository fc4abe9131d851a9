"""Schemas of the built-in kinds: which fields there are, which values decode, and the OpenAPI definitions.

The facts come from the installed `kubernetes` package (`builtin_introspection`), read once in a child process and kept
as JSON in a folder the caller names with `use_cache`.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capstan_local.schema.builtin_introspection import KINDS, SCALARS
from capstan_local.schema.merge_facts import (
    ATOMIC_FIELDS,
    ATOMIC_STRUCTS,
    LIST_MAP_KEYS,
    PATCH_MERGE_KEYS,
    RETAIN_KEYS,
    SETS,
)

_READ_SECONDS = 60.0

# Bump when builtin_introspection's output changes, so that an old cache is not read.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class BuiltinType:
    """One struct of the API. `fields` maps a JSON name to its kind of value, as `builtin_introspection` writes it."""

    name: str
    fields: dict[str, str]

    @property
    def short_name(self) -> str:
        """Its Go name: `Container` of io.k8s.api.core.v1.Container."""
        return self.name.rpartition(".")[2]


_cache_folder: Path | None = None


def use_cache(folder: Path) -> None:
    """From now on keep the derived schemas in `folder`, in a file named by the package's version."""
    global _cache_folder
    _cache_folder = folder


def source_version() -> str:
    """What the schemas are derived from: changes when they may."""
    return f"{version('kubernetes')}.{_FORMAT}"


def builtin_type(kind_key: str) -> BuiltinType:
    """The type of `apps/v1/Deployment`. Raises KeyError for kinds that are not built in."""
    return type_by_name(_kinds()[kind_key])


def is_builtin(kind_key: str) -> bool:
    """Whether there is a schema for `kind_key`; cheap, loads nothing."""
    api_version, _, kind = kind_key.rpartition("/")
    return kind.removesuffix("List") in KINDS.get(api_version, "").split()


def type_by_name(name: str) -> BuiltinType:
    """The type of that OpenAPI name (io.k8s.api.core.v1.PodSpec). Raises KeyError when there is none."""
    return _types()[name]


def unknown_fields(kind_key: str, obj: dict[str, Any]) -> list[str]:
    """The complaints of fieldValidation=Strict: `unknown field "spec.foo"`, in document order."""
    return [f'unknown field "{path}"' for path in _walk_unknown(_kinds()[kind_key], obj, "", remove=False)]


def drop_unknown_fields(kind_key: str, obj: dict[str, Any]) -> list[str]:
    """What `unknown_fields` says; the fields are gone from `obj` afterwards, as in a decoded Go struct."""
    return [f'unknown field "{path}"' for path in _walk_unknown(_kinds()[kind_key], obj, "", remove=True)]


def fill_null_items(kind_key: str, obj: dict[str, Any]) -> None:
    """Put in place of a null in a list what decoding into Go makes of it: an empty object, a zero. `obj` has the right
    types (`decoding_error` is None)."""
    _fill_null_items("#" + _kinds()[kind_key], obj)


def decoding_error(kind_key: str, obj: dict[str, Any]) -> str | None:
    """Kubernetes' message for the first value of the wrong type; None when all decode."""
    problem = _struct_mismatch(_kinds()[kind_key], obj, "")
    if problem is None:
        return None
    api_version, _, kind = kind_key.rpartition("/")
    return f'{kind} in version "{api_version.rpartition("/")[2]}" cannot be handled as a {kind}: {problem}'


def open_api_definitions() -> dict[str, Any]:
    """OpenAPI v2 definitions of all built-in types by their Kubernetes name (io.k8s.api.core.v1.Pod). Built anew."""
    raw = _load()
    kinds_of: dict[str, list[dict[str, str]]] = {}
    for kind_key, name in raw["kinds"].items():
        api_version, _, kind = kind_key.rpartition("/")
        group, _, api = api_version.rpartition("/")
        kinds_of.setdefault(name, []).append({"group": group, "kind": kind, "version": api})
    return {name: _definition(name, described, kinds_of.get(name)) for name, described in raw["types"].items()}


# --- loading ---------------------------------------------------------------------------------------------------------


def _load() -> dict[str, Any]:
    path = _cache_folder / f"builtin-schemas-{source_version()}.json" if _cache_folder else None
    if path is not None and path.exists():
        try:
            return dict(json.loads(path.read_bytes()))
        except ValueError:
            path.unlink()  # cut short by a full disk or a killed writer of an older version: derive it again
    command = [sys.executable, "-m", "capstan_local.schema.builtin_introspection"]
    output = subprocess.run(command, check=True, capture_output=True, timeout=_READ_SECONDS).stdout
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(output)
        Path(part.name).rename(path)  # two servers may start at once: each sees a whole file or none
    return dict(json.loads(output))


@cache
def _tables() -> tuple[dict[str, str], dict[str, BuiltinType]]:
    """Kinds and types without descriptions: what requests need, small enough to stay in memory."""
    raw = _load()
    intern = {kind: kind for kind in SCALARS}
    types = {
        name: BuiltinType(
            name, {sys.intern(field): intern.setdefault(kind, kind) for field, (kind, _) in described["fields"].items()}
        )
        for name, described in raw["types"].items()
    }
    return raw["kinds"], types


def _kinds() -> dict[str, str]:
    return _tables()[0]


def _types() -> dict[str, BuiltinType]:
    return _tables()[1]


# --- unknown fields --------------------------------------------------------------------------------------------------


def _walk_unknown(type_name: str, value: dict[str, Any], path: str, *, remove: bool) -> list[str]:
    fields = _types()[type_name].fields
    found: list[str] = []
    for key in list(value):
        kind = fields.get(key)
        if kind is None:
            found.append(f"{path}{key}")
            if remove:
                del value[key]
        elif kind[0] in "#[{":
            found.extend(_walk_unknown_in(kind, value[key], f"{path}{key}", remove=remove))
    return found


def _walk_unknown_in(kind: str, value: Any, path: str, *, remove: bool) -> list[str]:
    if kind[0] == "#":
        return _walk_unknown(kind[1:], value, f"{path}.", remove=remove) if isinstance(value, dict) else []
    if kind[2] not in "#[{":
        return []
    found: list[str] = []
    if kind[0] == "[" and isinstance(value, list):
        for index, item in enumerate(value):
            found.extend(_walk_unknown_in(kind[2:], item, f"{path}[{index}]", remove=remove))
    elif kind[0] == "{" and isinstance(value, dict):
        for key, item in value.items():
            found.extend(_walk_unknown_in(kind[2:], item, f"{path}.{key}", remove=remove))
    return found


# --- nulls in lists --------------------------------------------------------------------------------------------------

_ZEROS: dict[str, Any] = {
    "string": "",
    "bytes": "",
    "integer": 0,
    "number": 0,
    "boolean": False,
    "quantity": "0",
    "intOrString": 0,
}


def _fill_null_items(kind: str, value: Any) -> None:
    if value is None or kind[0] not in "#[{":
        return
    if kind[0] == "#":
        fields = _types()[kind[1:]].fields
        for key, item in value.items():
            _fill_null_items(fields.get(key, "any"), item)
        return
    if kind[0] == "[" and None in value:
        value[:] = [_zero(kind[2:]) if item is None else item for item in value]
    for item in value if kind[0] == "[" else value.values():
        _fill_null_items(kind[2:], item)


def _zero(kind: str) -> Any:
    """None, for what may be null."""
    return {} if kind[0] in "#{" else [] if kind[0] == "[" else _ZEROS.get(kind)


# --- values of the wrong type ----------------------------------------------------------------------------------------

_GO_TYPES = {
    "string": "string",
    "integer": "int64",
    "boolean": "bool",
    "number": "float64",
    "bytes": "[]uint8",
    "time": "string",
    "quantity": "string",
    "intOrString": "string",
    "any": "interface {}",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(([KMGTPE]i)|[numkMGTPE]|[eE][+-]?\d+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]*={0,2}[\r\n]*")
_QUANTITY_RULE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def _struct_mismatch(type_name: str, value: dict[str, Any], path: str) -> str | None:
    declared = _types()[type_name]
    for key, item in value.items():
        kind = declared.fields.get(key)
        if kind is None or item is None:
            continue
        problem = _mismatch(kind, item, declared.short_name, f"{path}{key}")
        if problem is not None:
            return problem
    return None


def _mismatch(kind: str, value: Any, struct: str, path: str) -> str | None:
    if kind[0] == "#":
        if not isinstance(value, dict):
            return _cannot_unmarshal(kind, value, struct, path)
        return _struct_mismatch(kind[1:], value, f"{path}.")
    if kind[0] in "[{":
        if kind[0] == "[" and isinstance(value, list):
            items = value
        elif kind[0] == "{" and isinstance(value, dict):
            items = list(value.values())
        else:
            return _cannot_unmarshal(kind, value, struct, path)
        problems = (_mismatch(kind[2:], item, struct, path) for item in items if item is not None)
        return next((problem for problem in problems if problem is not None), None)
    return _scalar_mismatch(kind, value, struct, path)


def _scalar_mismatch(kind: str, value: Any, struct: str, path: str) -> str | None:
    if kind == "any":
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer" and is_number and (isinstance(value, int) or value.is_integer()):
        return None
    if (kind == "boolean" and isinstance(value, bool)) or (kind == "number" and is_number):
        return None
    if kind in ("intOrString", "quantity") and is_number:
        return None
    if not isinstance(value, str) or kind in ("integer", "boolean", "number"):
        return _cannot_unmarshal(kind, value, struct, path)
    if kind == "time" and value and not _TIME.fullmatch(value):
        text = json.dumps(value)
        return f'parsing time {text} as "2006-01-02T15:04:05Z07:00": cannot parse {text} as "2006"'
    if kind == "quantity" and not _QUANTITY.fullmatch(value):
        return _QUANTITY_RULE
    if kind == "bytes" and (not _BASE64.fullmatch(value) or len(re.sub(r"[\r\n]", "", value)) % 4):
        return "illegal base64 data at input byte " + str(_illegal_base64_at(value))
    return None


def _illegal_base64_at(value: str) -> int:
    wrong = re.search(r"[^A-Za-z0-9+/=\r\n]", value)
    return wrong.start() if wrong else len(value) - len(value) % 4


def _cannot_unmarshal(kind: str, value: Any, struct: str, path: str) -> str:
    names: dict[type, str] = {
        str: "string",
        bool: "bool",
        dict: "object",
        list: "array",
        int: "number",
        float: "number",
    }
    return f"json: cannot unmarshal {names[type(value)]} into Go struct field {struct}.{path} of type {_go_type(kind)}"


def _go_type(kind: str) -> str:
    if kind[0] == "[":
        return "[]" + _go_type(kind[2:])
    if kind[0] == "{":
        return "map[string]" + _go_type(kind[2:])
    if kind[0] == "#":
        return ".".join(kind[1:].split(".")[-2:])
    return _GO_TYPES[kind]


# --- OpenAPI ---------------------------------------------------------------------------------------------------------

_OPEN_API_SCALARS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer", "format": "int64"},
    "boolean": {"type": "boolean"},
    "number": {"type": "number", "format": "double"},
    "time": {"type": "string", "format": "date-time"},
    "bytes": {"type": "string", "format": "byte"},
    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "intOrString": {"type": "string", "format": "int-or-string", "x-kubernetes-int-or-string": True},
    "quantity": {"type": "string"},
}


def _definition(name: str, described: dict[str, Any], kinds: list[dict[str, str]] | None) -> dict[str, Any]:
    short = name.rpartition(".")[2]
    definition: dict[str, Any] = {"type": "object"}
    if described["description"]:
        definition["description"] = described["description"]
    if described["required"]:
        definition["required"] = described["required"]
    definition["properties"] = {
        field: _property(short, field, kind, description) for field, (kind, description) in described["fields"].items()
    }
    if kinds:
        definition["x-kubernetes-group-version-kind"] = kinds
    if short in ATOMIC_STRUCTS:
        definition["x-kubernetes-map-type"] = "atomic"
    return definition


def _property(struct: str, field: str, kind: str, description: str) -> dict[str, Any]:
    schema = _open_api_kind(kind)
    if description:
        schema["description"] = description
    place = (struct, field)
    if place in PATCH_MERGE_KEYS:
        schema["x-kubernetes-patch-merge-key"] = PATCH_MERGE_KEYS[place]
        schema["x-kubernetes-patch-strategy"] = "merge,retainKeys" if place in RETAIN_KEYS else "merge"
    elif place in RETAIN_KEYS:
        schema["x-kubernetes-patch-strategy"] = "retainKeys"
    elif struct == "ObjectMeta" and field == "finalizers":
        schema["x-kubernetes-patch-strategy"] = "merge"
    if place in LIST_MAP_KEYS:
        schema["x-kubernetes-list-type"] = "map"
        schema["x-kubernetes-list-map-keys"] = list(LIST_MAP_KEYS[place])
    elif place in SETS:
        schema["x-kubernetes-list-type"] = "set"
    elif kind.startswith("[]"):
        schema["x-kubernetes-list-type"] = "atomic"
    elif place in ATOMIC_FIELDS:
        schema["x-kubernetes-map-type"] = "atomic"
    return schema


def _open_api_kind(kind: str) -> dict[str, Any]:
    if kind[0] == "[":
        return {"type": "array", "items": _open_api_kind(kind[2:])}
    if kind[0] == "{":
        return {"type": "object", "additionalProperties": _open_api_kind(kind[2:])}
    if kind[0] == "#":
        return {"$ref": f"#/definitions/{kind[1:]}"}
    return dict(_OPEN_API_SCALARS[kind])
