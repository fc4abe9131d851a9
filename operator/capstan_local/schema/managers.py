"""The entries of an object's managedFields: who manages it, and which fields each of them owns."""

from dataclasses import dataclass
from typing import Any

import orjson

from capstan_local.schema import field_sets
from capstan_local.schema.field_sets import FieldSet, difference, union

Object = dict[str, Any]

_ANCIENT = "ancient-changes"
_MAX_UPDATE_MANAGERS = 10


@dataclass(frozen=True, slots=True)
class ManagerKey:
    """What tells managers apart. An applier is one manager whatever version it applies."""

    manager: str
    operation: str
    api_version: str
    subresource: str

    def describe(self) -> str:
        text = orjson.dumps(self.manager).decode()
        if self.subresource:
            text += f" with subresource {orjson.dumps(self.subresource).decode()}"
        return text + (f" using {self.api_version}" if self.operation == "Update" else "")


@dataclass(slots=True)
class ManagerEntry:
    """What one manager owns, and when it last wrote. `fields` are in order, as they are stored."""

    api_version: str
    time: str | None
    fields: FieldSet


class Managers(dict[ManagerKey, ManagerEntry]):
    """The entries of one object's managedFields."""

    def drop_empty(self) -> None:
        for key in [key for key, entry in self.items() if not entry.fields]:
            del self[key]

    def take_from_others(self, owner: ManagerKey | None, changes: field_sets.Changes) -> None:
        """What changed is no longer the others'."""
        if not self:
            return
        gone = union(changes.written, changes.removed)
        for key, entry in self.items():
            if key != owner:
                entry.fields = difference(entry.fields, gone)
        self.drop_empty()

    def cap(self) -> None:
        """Merges the oldest of more than ten updaters into one entry per API version: no list may grow for ever."""
        updaters = sorted(
            (key for key in self if key.operation == "Update"), key=lambda key: (self[key].time or "", key.manager)
        )
        excess = len(updaters) - _MAX_UPDATE_MANAGERS
        first_of_version: dict[str, ManagerKey] = {}
        for key in updaters:
            if excess <= 0:
                return
            first = first_of_version.setdefault(key.api_version, key)
            if first == key:
                continue
            bucket = ManagerKey(_ANCIENT, "Update", key.api_version, "")
            if bucket not in self:
                self[bucket] = self.pop(first)
            oldest = self.pop(key)
            self[bucket] = ManagerEntry(key.api_version, oldest.time, union(self[bucket].fields, oldest.fields))
            excess -= 1

    def encode(self) -> list[Object]:
        entries = sorted(
            self.items(),
            key=lambda item: (
                item[0].operation,
                item[1].time or "",
                item[0].manager,
                item[1].api_version,
                item[0].subresource,
            ),
        )
        return [_encode(key, entry) for key, entry in entries]


def _encode(key: ManagerKey, entry: ManagerEntry) -> Object:
    encoded: Object = {
        "manager": key.manager,
        "operation": key.operation,
        "apiVersion": entry.api_version,
        "time": entry.time,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields,
        "subresource": key.subresource,
    }
    return {name: value for name, value in encoded.items() if value or name == "fieldsV1"}


def decode(obj: Object | None) -> Managers:
    """The managers of `obj`; none when its managedFields are missing or not of a form that can be read."""
    managers = Managers()
    entries = ((obj or {}).get("metadata") or {}).get("managedFields") or []
    for entry in entries:
        is_readable = isinstance(entry, dict) and entry.get("fieldsType") == "FieldsV1" and entry.get("apiVersion")
        if not is_readable or entry.get("operation") not in ("Apply", "Update"):
            return Managers()
        operation, api_version = entry["operation"], entry["apiVersion"]
        key = manager_key(entry.get("manager", ""), operation, api_version, entry.get("subresource"))
        managers[key] = ManagerEntry(api_version, entry.get("time"), entry.get("fieldsV1") or {})
    return managers


def manager_key(manager: str, operation: str, api_version: str, subresource: str | None) -> ManagerKey:
    return ManagerKey(manager, operation, "" if operation == "Apply" else api_version, subresource or "")
