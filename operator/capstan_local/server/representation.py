"""How a client wants objects: as they are, as a Table, or as metadata only (the Accept header)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import yaml

from capstan_local.schema import tables
from capstan_local.server.codec import dumps, list_body, render
from capstan_local.server.collection import Entry
from capstan_local.server.errors import not_acceptable
from capstan_local.server.resources import Resource

Object = dict[str, Any]
Shape = Literal["object", "table", "metadata"]

_META_VERSIONS = ("v1", "v1beta1")


@dataclass(frozen=True, slots=True)
class Representation:
    """One acceptable form of a response. `include_object` says what each Table row carries."""

    shape: Shape = "object"
    version: str = "v1"  # of meta.k8s.io
    yaml: bool = False
    include_object: Literal["Metadata", "Object", "None"] = "Metadata"

    @property
    def content_type(self) -> str:
        return "application/yaml" if self.yaml else "application/json"


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One entry of an Accept header."""

    media_type: str
    parameters: dict[str, str]


def parse_accept(header: str) -> list[MediaRange]:
    """Media ranges, the most wanted first."""
    ranges: list[tuple[float, MediaRange]] = []
    for part in header.split(","):
        media_type, *rest = (piece.strip() for piece in part.split(";"))
        parameters = dict(piece.split("=", 1) for piece in rest if "=" in piece)
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        if media_type and quality > 0:
            ranges.append((quality, MediaRange(media_type.lower(), parameters)))
    ranges.sort(key=lambda item: -item[0])
    return [media_range for _, media_range in ranges]


def negotiate(accept: str, include_object: str = "") -> Representation:
    """The first form asked for that can be served. Raises ApiError 406 when none can (protobuf only)."""
    if not accept or accept in ("*/*", "application/json"):
        return _PLAIN
    for wanted in parse_accept(accept):
        if wanted.media_type in ("*/*", "application/*"):
            return _PLAIN
        if wanted.media_type not in ("application/json", "application/yaml", "application/x-yaml"):
            continue
        as_kind, group, version = (wanted.parameters.get(name, "") for name in ("as", "g", "v"))
        is_yaml = wanted.media_type != "application/json"
        if not as_kind:
            return Representation(yaml=is_yaml)
        if group != "meta.k8s.io" or version not in _META_VERSIONS:
            continue
        if as_kind == "Table":
            carried: Any = include_object if include_object in ("Metadata", "Object", "None") else "Metadata"
            return Representation("table", version, is_yaml, carried)
        if as_kind in ("PartialObjectMetadata", "PartialObjectMetadataList"):
            return Representation("metadata", version, is_yaml)
    raise not_acceptable()


_PLAIN = Representation()


def partial(obj: Object, version: str) -> Object:
    """The object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": obj["metadata"]}


def object_body(resource: Resource, body: bytes, form: Representation) -> bytes:
    """One rendered object in the wanted form."""
    if form.shape == "table":
        obj = orjson.loads(body)
        table = table_of(resource, [obj], form)
        table["metadata"]["resourceVersion"] = obj["metadata"].get("resourceVersion", "")
        body = dumps(table)
    elif form.shape == "metadata":
        body = dumps(partial(orjson.loads(body), form.version))
    return as_yaml(body) if form.yaml else body


def as_yaml(body: bytes) -> bytes:
    return yaml.safe_dump(orjson.loads(body), sort_keys=True).encode()


def table_of(resource: Resource, objects: Iterable[Object], form: Representation) -> Object:
    """A Table with metadata ready for resourceVersion and continue; rows carry what the client asked for."""
    listed = list(objects)
    table = tables.to_table(resource, listed, datetime.now(UTC))
    table["kind"], table["apiVersion"] = "Table", f"meta.k8s.io/{form.version}"
    table.setdefault("metadata", {})
    for row, obj in zip(table["rows"], listed, strict=True):
        if form.include_object == "Object":
            row["object"] = obj
        elif form.include_object == "Metadata":
            row["object"] = partial(obj, form.version)
        else:
            row["object"] = None
    return table


def list_in_form(
    resource: Resource, entries: list[Entry], form: Representation, rv: int, token: str, remaining: int | None
) -> bytes:
    """A list of entries in the wanted form."""
    bodies = [render(resource, entry) for entry in entries]
    if form.shape == "object":
        body = list_body(resource, rv, bodies, token, remaining)
        return as_yaml(body) if form.yaml else body
    metadata: Object = {"resourceVersion": str(rv)}
    if token:
        metadata["continue"] = token
    if remaining:
        metadata["remainingItemCount"] = remaining
    objects = [orjson.loads(body) for body in bodies]
    if form.shape == "table":
        result = {**table_of(resource, objects, form), "metadata": metadata}
    else:
        result = {
            "kind": "PartialObjectMetadataList",
            "apiVersion": f"meta.k8s.io/{form.version}",
            "metadata": metadata,
            "items": [partial(obj, form.version) for obj in objects],
        }
    return as_yaml(dumps(result)) if form.yaml else dumps(result)
