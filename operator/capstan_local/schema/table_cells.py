"""Columns of kubectl's tables, and what fills their cells, whatever the kind."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from capstan_local.schema.durations import age
from capstan_local.schema.jsonpath import find

Object = dict[str, Any]
Cell = Callable[[Object, datetime], Any]

NONE: Final = "<none>"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its definition, and how an object fills it. `priority` > 0 shows with `-o wide` only."""

    name: str
    cell: Cell
    kind: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""

    def definition(self) -> Object:
        """Its entry in columnDefinitions."""
        return {
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description or self.name,
            "priority": self.priority,
        }


def at(path: str, default: Any = "") -> Cell:
    def cell(obj: Object, now: datetime) -> Any:
        found = find(path, obj)
        return found[0] if found and found[0] is not None else default

    return cell


def wide(name: str, cell: Cell) -> Column:
    return Column(name, cell, priority=1)


def count(path: str) -> Cell:
    return lambda obj, now: len((find(path, obj) or [None])[0] or ())


def joined(values: Iterable[Any], default: str = NONE) -> str:
    return ",".join(str(value) for value in values) or default


def all_at(path: str, default: str = NONE) -> Cell:
    return lambda obj, now: joined(find(path, obj), default)


def age_at(path: str) -> Cell:
    return lambda obj, now: age((find(path, obj) or [None])[0], now)


def labels_text(labels: Any) -> str:
    return joined(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def selector(obj: Object, now: datetime) -> str:
    """A label selector as `kubectl get -l` would take it."""
    selector = obj.get("spec", {}).get("selector") or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or []:
        values = f"({','.join(sorted(rule.get('values') or []))})"
        forms = {"In": f"{rule['key']} in {values}", "NotIn": f"{rule['key']} notin {values}", "Exists": rule["key"]}
        parts.append(forms.get(rule["operator"], f"!{rule['key']}"))
    return joined(parts)
