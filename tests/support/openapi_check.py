"""Objects against the OpenAPI document that a server publishes: unknown fields, wrong types, what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tests.apiserver.client import Api

Json = dict[str, Any]

_KINDS = "x-kubernetes-group-version-kind"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


class Definitions:
    """Schemas of a server's kinds, by their names in its document."""

    def __init__(self, schemas: dict[str, Json]) -> None:
        self._schemas = schemas
        self._by_kind = {
            (kind["group"], kind["version"], kind["kind"]): name
            for name, schema in schemas.items()
            for kind in schema.get(_KINDS, ())
        }

    @classmethod
    async def of(cls, api: Api, documents: Iterable[Json]) -> Definitions:
        """What is needed for these objects, from /openapi/v3 where the server has it, else from /openapi/v2."""
        index = await api.get("/openapi/v3")
        if index.status != 200:
            # A real server of 1.20 does not say that it is JSON.
            said = (await api.get("/openapi/v2")).expect(200)
            return cls((json.loads(said) if isinstance(said, str) else said)["definitions"])
        schemas: dict[str, Json] = {}
        for version in {document["apiVersion"] for document in documents}:
            path = f"/openapi/v3/apis/{version}" if "/" in version else f"/openapi/v3/api/{version}"
            schemas |= (await api.get(path)).expect(200)["components"]["schemas"]
        return cls(schemas)

    def problems(self, document: Json) -> list[str]:
        """One line `path: what is wrong` each; none for a kind whose schema holds anything."""
        group, _, version = document["apiVersion"].rpartition("/")
        name = self._by_kind.get((group, version, document["kind"]))
        if name is None:
            return [f"{document['apiVersion']} {document['kind']}: the server has no such kind"]
        return list(self._walk({"$ref": name}, document, ""))

    def _walk(self, schema: Json, value: Any, path: str) -> Iterator[str]:
        schema = self._resolve(schema)
        if value is None or schema.get("x-kubernetes-preserve-unknown-fields"):
            return  # null is absent to an API server
        if schema.get("format") == "int-or-string" or "oneOf" in schema:
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                yield f"{path}: {value!r} is neither number nor string"
            return
        kind = schema.get("type", "object" if "properties" in schema else None)
        if kind is None:
            return
        if not isinstance(value, _TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {kind}"
        elif kind == "object":
            yield from self._fields(schema, value, path)
        elif kind == "array":
            for index, item in enumerate(value):
                yield from self._walk(schema.get("items", {}), item, f"{path}[{index}]")
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{path}: {value!r} is none of {schema['enum']}"

    def _fields(self, schema: Json, value: Json, path: str) -> Iterator[str]:
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for missing in sorted(set(schema.get("required", ())) - set(value)):
            yield f"{path}.{missing}: is required"
        for name, item in value.items():
            if name in known:
                yield from self._walk(known[name], item, f"{path}.{name}")
            elif isinstance(others, dict):
                yield from self._walk(others, item, f"{path}.{name}")
            elif known:  # an object without properties holds anything
                yield f"{path}.{name}: unknown field"

    def _resolve(self, schema: Json) -> Json:
        """What a reference leads to. v3 wraps it into allOf where something is said beside it."""
        while (inner := schema.get("$ref") or next(iter(schema.get("allOf", ())), {}).get("$ref")) is not None:
            schema = self._schemas[inner.rpartition("/")[2]]
        return schema
