"""meta.k8s.io/v1 Tables: what `kubectl get` prints."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal, Protocol

import orjson

from capstan_local.schema import jsonpath
from capstan_local.schema.durations import age
from capstan_local.schema.table_columns import AGE, NAME, Column, find_columns

Object = dict[str, Any]


class PrintedResource(Protocol):
    """What a table needs to know of a resource. `printer_columns` are a CRD version's; None for built-in kinds."""

    @property
    def group(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def printer_columns(self) -> list[dict[str, Any]] | None: ...


IncludeObject = Literal["Metadata", "Object", "None"]


def to_table(
    resource: PrintedResource, objects: Iterable[Object], now: datetime, *, include_object: IncludeObject = "Metadata"
) -> Object:
    """A Table of `objects`. The caller sets metadata.resourceVersion, continue and remainingItemCount.

    `include_object` is the request's parameter of that name: what of each object goes with its row.
    """
    columns = _columns(resource)
    rows = [
        {"cells": [column.cell(obj, now) for column in columns], **_attached(obj, include_object)} for obj in objects
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [column.definition() for column in columns],
        "rows": rows,
    }


def _attached(obj: Object, include_object: IncludeObject) -> Object:
    if include_object == "None":
        return {}
    if include_object == "Object":
        return {"object": obj}
    kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {"object": {**kind, "metadata": obj["metadata"]}}


def _columns(resource: PrintedResource) -> tuple[Column, ...]:
    if resource.printer_columns is None:
        return find_columns(resource.group, resource.kind)
    custom = tuple(_custom_column(column) for column in resource.printer_columns)
    return (NAME, *(custom or (AGE,)))


def _custom_column(column: dict[str, Any]) -> Column:
    path, kind = column["jsonPath"], column["type"]

    def cell(obj: Object, now: datetime) -> Any:
        found = jsonpath.find(path, obj)
        return _CELLS[kind](found[0], now) if found and found[0] is not None else None

    return Column(
        name=column["name"],
        cell=cell,
        kind=kind,
        format=column.get("format", ""),
        priority=column.get("priority", 0),
        description=column.get("description") or f"Custom resource definition column (in JSONPath format): {path}",
    )


def _as_integer(value: Any, now: datetime) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _as_number(value: Any, now: datetime) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _as_boolean(value: Any, now: datetime) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_string(value: Any, now: datetime) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _as_date(value: Any, now: datetime) -> str:
    return age(value, now) if isinstance(value, str) else "<invalid>"


_CELLS: Final = {
    "integer": _as_integer,
    "number": _as_number,
    "boolean": _as_boolean,
    "string": _as_string,
    "date": _as_date,
}
