"""Objects to bytes and back: what is stored, and what each version and client gets to see.

A stored object begins with its kind and apiVersion, so that list items (which carry neither for built-in kinds, as in
kube-apiserver) and other versions are slices of the stored bytes.
"""

from typing import Any

import orjson

from capstan_local.server.collection import Entry
from capstan_local.server.event_versions import core_event_to_v1, v1_event_to_core
from capstan_local.server.resources import Resource
from capstan_local.server.selectors import selectable_values

Object = dict[str, Any]


def dumps(value: Any) -> bytes:
    return orjson.dumps(value)


def head(kind: str, api_version: str) -> bytes:
    """The first bytes of every stored object of this kind."""
    return b'{"kind":"%s","apiVersion":"%s",' % (kind.encode(), api_version.encode())


def make_entry(resource: Resource, obj: Object, rv: int) -> Entry:
    """The stored form of `obj` at resource version `rv`, which is written into the object."""
    metadata = obj["metadata"]
    metadata["resourceVersion"] = str(rv)
    ordered = {"kind": resource.kind, "apiVersion": resource.stored_api_version, "metadata": metadata}
    for field, value in obj.items():
        if field not in ordered:
            ordered[field] = value
    return index_entry(resource, ordered, rv, orjson.dumps(ordered))


def index_entry(resource: Resource, stored: Object, rv: int, body: bytes) -> Entry:
    """The Entry of a stored object whose serialised form is `body`."""
    metadata = stored["metadata"]
    return Entry(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        rv=rv,
        body=body,
        labels=metadata.get("labels") or {},
        fields=selectable_values(resource, stored),
        owners=tuple(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
        deleting="deletionTimestamp" in metadata,
    )


def to_stored(resource: Resource, obj: Object) -> Object:
    """What a client sent in `resource`'s version, in the version that is stored."""
    if resource.is_event and resource.group:
        return v1_event_to_core(obj)
    obj["apiVersion"] = resource.stored_api_version
    return obj


def to_version(resource: Resource, stored: Object) -> Object:
    """A stored object (not shared with anybody) in `resource`'s version, with its current schema applied."""
    if resource.is_event and resource.group:
        return core_event_to_v1(stored)
    stored["apiVersion"] = resource.api_version
    if resource.custom:
        stored, _ = resource.custom.structural.prune(stored)
        stored = resource.custom.structural.default(stored)
    return stored


def render(resource: Resource, entry: Entry) -> bytes:
    """The object as clients of `resource`'s version get it; the stored bytes themselves whenever they can be used."""
    if resource.stored_as or (resource.custom and _is_stale(resource, entry)):
        key = (resource.api_version, resource.custom.schema_rv if resource.custom else 0)
        cached = entry.views.get(key) if entry.views else None
        if cached is None:
            cached = orjson.dumps(to_version(resource, entry.load()))
            entry.views = {key: cached}
        return cached
    if resource.stored_version and resource.stored_version != resource.version:
        old = head(resource.kind, resource.stored_api_version)
        return head(resource.kind, resource.api_version) + entry.body[len(old) :]
    return entry.body


def _is_stale(resource: Resource, entry: Entry) -> bool:
    """True when `entry` was written under an older schema, or another version's: defaults and pruning may differ."""
    custom = resource.custom
    if custom is None:
        return False
    return entry.rv < custom.schema_rv or bool(resource.stored_version and resource.stored_version != resource.version)


def list_body(resource: Resource, rv: int, bodies: list[bytes], continue_token: str, remaining: int | None) -> bytes:
    """A List of rendered objects."""
    metadata: dict[str, Any] = {"resourceVersion": str(rv)}
    if continue_token:
        metadata["continue"] = continue_token
    if remaining:
        metadata["remainingItemCount"] = remaining
    start = head(resource.list_name, resource.api_version) + b'"metadata":' + orjson.dumps(metadata) + b',"items":['
    if not resource.custom and not resource.stored_as:
        # Items of built-in lists carry neither kind nor apiVersion.
        cut = len(head(resource.kind, resource.api_version))
        parts = [memoryview(body)[cut:] for body in bodies]
        return start + (b"{" + b",{".join(parts) if parts else b"") + b"]}"
    return start + b",".join(bodies) + b"]}"
