"""Who owns which field: server-side apply, and the managedFields that every other write records.

The rules are those of structured-merge-diff and of kube-apiserver's field manager; objects of other API versions of the
same kind are compared as they are, since no conversion exists here.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from capstan_local.schema import field_sets
from capstan_local.schema.apply_merge import merge
from capstan_local.schema.field_sets import (
    FieldSet,
    compare,
    difference,
    intersection,
    of_value,
    union,
    with_named_fields,
    without,
)
from capstan_local.schema.managers import ManagerEntry, ManagerKey, Managers, decode, manager_key
from capstan_local.schema.type_schema import TypeSchema

Object = dict[str, Any]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
BEFORE_FIRST_APPLY = "before-first-apply"

# Fields no manager owns: identity and what only the server writes.
_UNOWNED: FieldSet = {
    "f:apiVersion": {},
    "f:kind": {},
    "f:metadata": {
        ".": {},
        **{
            f"f:{name}": {}
            for name in (
                "name",
                "namespace",
                "creationTimestamp",
                "selfLink",
                "uid",
                "clusterName",
                "generation",
                "managedFields",
                "resourceVersion",
            )
        },
    },
}


class ApplyConflict(Exception):
    """Fields that other managers own: `causes` are (manager, field_path, message) in Kubernetes' words (HTTP 409)."""

    def __init__(self, causes: list[tuple[str, str, str]]) -> None:
        super().__init__(causes)
        self.causes = causes

    @property
    def message(self) -> str:
        """The Status message: `Apply failed with 1 conflict: conflict with "kubectl": .spec.replicas`."""
        if len(self.causes) == 1:
            [(_, path, message)] = self.causes
            return f"Apply failed with 1 conflict: {message}: {path}"
        lines = [f"Apply failed with {len(self.causes)} conflicts:"]
        by_manager: dict[str, list[str]] = {}
        for _, path, message in self.causes:
            by_manager.setdefault(message.replace("conflict with", "conflicts with", 1), []).append(path)
        texts = [
            f"{message}:\n" + "\n".join(f"- {path}" for path in paths) for message, paths in sorted(by_manager.items())
        ]
        return " ".join([lines[0], "\n".join(texts)])


# --- updates ---------------------------------------------------------------------------------------------------------


def record_update(
    old: Object | None,
    new: Object,
    *,
    manager: str,
    operation: str = "Update",
    subresource: str | None,
    api_version: str,
    schema: TypeSchema,
    now: str,
) -> Object:
    """`new` with metadata.managedFields as after a create (`old` None), replace or patch by `manager`.

    A client may write managedFields itself; [] or [{}] clears them, and an object without any gets none from an update.
    Where nothing changed, entries and times stay as they are. `new` itself is not changed. Call it with the client's
    object after defaulting and before the server fills in what is its own (status, cluster IPs).
    """
    managers = _managers_to_update(old, new, subresource)
    if managers or old is None:
        live = old if old is not None else _empty_like(new, schema)
        changes = compare(_bare(live), _bare(new), schema)
        managers.take_from_others(None, changes)
        written = difference(changes.written, _UNOWNED)
        if written:
            key = manager_key(manager, operation, api_version, subresource)
            before = managers[key].fields if key in managers else {}
            managers[key] = ManagerEntry(api_version, now, union(before, written))
        managers.cap()
    return _with_managers(new, managers)


def _managers_to_update(old: Object | None, new: Object, subresource: str | None) -> Managers:
    given = (new.get("metadata") or {}).get("managedFields")
    if subresource or given is None:
        return decode(old)
    if given in ([], [{}]):
        return Managers()
    return decode(new) or decode(old)


def _empty_like(obj: Object, schema: TypeSchema) -> Object:
    return {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind"), **schema.skeleton}


def _bare(obj: Object) -> Object:
    """`obj` without its managedFields, which manage everything but themselves."""
    metadata = obj.get("metadata")
    if not metadata or "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}}


def _with_managers(obj: Object, managers: Managers) -> Object:
    result = _bare(obj)
    if not managers:
        return result
    return {**result, "metadata": {**result.get("metadata", {}), "managedFields": managers.encode()}}


# --- server-side apply -----------------------------------------------------------------------------------------------


def server_side_apply(
    live: Object | None,
    applied: Object,
    *,
    manager: str,
    force: bool,
    subresource: str | None,
    api_version: str,
    schema: TypeSchema,
    now: str,
) -> Object:
    """The object after `manager` applied `applied` on `live` (None: create). Raises ApplyConflict unless `force`.

    Fields that the manager applied before, applies no more, and nobody else owns are removed. The caller takes away
    beforehand what the endpoint ignores (status, or all but status), and defaults the result. Raises ValueError for
    an applied list that cannot be merged (an item without its keys, or twice the same).
    """
    applied = _bare(applied)
    key = manager_key(manager, "Apply", api_version, subresource)
    request = _Apply(applied, key, api_version, schema, now)
    base = live if live is not None else _empty_like(applied, schema)
    try:
        result = request.run(base, is_create=live is None, force=force)
    except ApplyConflict as conflict:
        # kubectl's own change from client-side to server-side apply must not conflict with its former self.
        if manager != "kubectl" or live is None:
            raise
        remaining = _unexplained(conflict, live, api_version, schema)
        if remaining:
            raise ApplyConflict(remaining) from None
        result = request.run(base, is_create=False, force=True)
    annotations = (result.get("metadata") or {}).get("annotations") or {}
    if manager == "kubectl" and annotations.get(LAST_APPLIED):
        annotations = {**annotations, LAST_APPLIED: _last_applied_text(applied)}
        result = {**result, "metadata": {**result["metadata"], "annotations": annotations}}
    return result


@dataclass(frozen=True, slots=True)
class _Apply:
    applied: Object
    key: ManagerKey
    api_version: str
    schema: TypeSchema
    now: str

    def run(self, live: Object, *, is_create: bool, force: bool) -> Object:
        managers = decode(live)
        bare = _bare(live)
        if not managers and not is_create:
            changes = compare(_empty_like(bare, self.schema), bare, self.schema)
            key = manager_key(BEFORE_FIRST_APPLY, "Update", self.api_version, "")
            managers[key] = ManagerEntry(self.api_version, self.now, difference(changes.written, _UNOWNED))
        mine = of_value(self.applied, self.schema)
        before = managers.pop(self.key, None)
        merged = merge({} if is_create else bare, self.applied, self.schema)
        if before is not None and before.fields:
            pruned = self._prune(merged, before.fields, union(mine, _owned(managers)))
            merged = merge(pruned, self.applied, self.schema)  # containers that are applied as empty are there
        changes = compare(bare, merged, self.schema)
        if not force:
            _refuse_conflicts(managers, changes)
        managers.take_from_others(None, changes)
        owned = difference(mine, _UNOWNED)
        if owned:
            is_same = merged == bare and before is not None and before.fields == owned
            managers[self.key] = ManagerEntry(self.api_version, before.time if is_same and before else self.now, owned)
        return _with_managers(merged, managers)

    def _prune(self, merged: Object, last: FieldSet, managed: FieldSet) -> Object:
        """`merged` without what this manager applied last time and nobody owns now."""
        last = with_named_fields(last, self.schema)
        pruned = without(merged, last, self.schema) or {}
        all_fields = with_named_fields(of_value(merged, self.schema), self.schema)
        kept = with_named_fields(of_value(pruned, self.schema), self.schema)
        owned = with_named_fields(managed, self.schema)
        pruned = without(merged, difference(all_fields, union(kept, owned)), self.schema) or {}
        kept = with_named_fields(of_value(pruned, self.schema), self.schema)
        gone = intersection(difference(all_fields, kept), last)
        return dict(without(merged, gone, self.schema) or {})


def _owned(managers: Managers) -> FieldSet:
    owned: FieldSet = {}
    for entry in managers.values():
        owned = union(owned, entry.fields)
    return owned


def _refuse_conflicts(managers: Managers, changes: field_sets.Changes) -> None:
    written = changes.written
    causes = [
        (key.manager, path, f"conflict with {key.describe()}")
        for key, entry in sorted(managers.items(), key=lambda item: item[0].describe())
        for path in field_sets.paths(intersection(entry.fields, written))
    ]
    if causes:
        raise ApplyConflict(causes)


def _unexplained(
    conflict: ApplyConflict, live: Object, api_version: str, schema: TypeSchema
) -> list[tuple[str, str, str]]:
    """The conflicts that are not about fields which client-side apply set and which are still as it set them."""
    text = ((live.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        last = orjson.loads(text or "null")
    except ValueError:
        return conflict.causes  # an annotation somebody else wrote explains nothing
    if not isinstance(last, dict) or last.get("apiVersion") != api_version:
        return conflict.causes
    changes = compare(last, _bare(live), schema)
    still_ours = difference(of_value(last, schema), union(changes.written, changes.removed))
    explained = set(field_sets.paths(still_ours))
    return [cause for cause in conflict.causes if cause[1] not in explained]


def _last_applied_text(applied: Object) -> str:
    metadata = dict(applied.get("metadata") or {})
    if "annotations" in metadata:
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != LAST_APPLIED}
    return orjson.dumps({**applied, "metadata": metadata}, option=orjson.OPT_SORT_KEYS).decode() + "\n"
