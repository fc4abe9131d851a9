"""Sets of fields of an object, in the form in which `managedFields` stores them (fieldsV1).

A set is a dict: each key is one step of a path (`f:NAME` a field, `k:{JSON}` the list item with these key fields,
`v:JSON` this member of a set), its value the set below. A step is a member itself when its value is empty or has ".".
Steps are sorted, as kube-apiserver stores them.
All functions are pure; the dicts they return may share parts with their arguments and must not be changed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from capstan_local.schema.type_schema import TypeSchema

FieldSet = dict[str, Any]
_SELF = "."
_LEAF: FieldSet = {}


# --- algebra ---------------------------------------------------------------------------------------------------------


def union(left: FieldSet, right: FieldSet) -> FieldSet:
    """Members of either."""
    if not left or not right:
        return left or right
    result = dict(left)
    for step, below in right.items():
        if step not in result:
            result[step] = below
        elif step != _SELF:
            is_member = _is_member(result[step]) or _is_member(below)
            result[step] = _join(is_member, union(_children(result[step]), _children(below)))
    return result if len(result) == len(left) else dict(sorted(result.items()))


def difference(left: FieldSet, right: FieldSet) -> FieldSet:
    """Members of `left` that are no members of `right`."""
    if not right or not left:
        return left
    result = {}
    for step, below in left.items():
        if step == _SELF:
            continue
        other = right.get(step)
        if other is None:
            result[step] = below
            continue
        is_member = _is_member(below) and not _is_member(other)
        children = difference(_children(below), _children(other))
        if is_member or children:
            result[step] = _join(is_member, children)
    return result


def intersection(left: FieldSet, right: FieldSet) -> FieldSet:
    """Members of both."""
    result = {}
    for step, below in left.items():
        other = right.get(step)
        if other is None or step == _SELF:
            continue
        is_member = _is_member(below) and _is_member(other)
        children = intersection(_children(below), _children(other))
        if is_member or children:
            result[step] = _join(is_member, children)
    return result


def _is_member(below: FieldSet) -> bool:
    return not below or _SELF in below


def _children(below: FieldSet) -> FieldSet:
    if _SELF not in below:
        return below
    return {step: child for step, child in below.items() if step != _SELF}


def _join(is_member: bool, children: FieldSet) -> FieldSet:
    return {_SELF: _LEAF, **children} if is_member and children else children


def with_named_fields(fields: FieldSet, schema: TypeSchema) -> FieldSet:
    """`fields` plus the declared struct fields on the way to its members."""
    result = {}
    for step, below in fields.items():
        child_schema = _descend(schema, step)
        children = with_named_fields(_children(below), child_schema)
        is_named = step.startswith("f:") and schema.declares(step[2:])
        result[step] = below if step == _SELF else _join(_is_member(below) or is_named, children)
    return result


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """Every member as Kubernetes prints a path: `.spec.containers[name="a"].image`."""
    for step, below in fields.items():
        if step == _SELF:
            continue
        path = prefix + _step_text(step)
        if _is_member(below):
            yield path
        yield from paths(_children(below), path)


def _step_text(step: str) -> str:
    kind, _, text = step.partition(":")
    if kind == "f":
        return f".{text}"
    if kind == "k":
        keys = orjson.loads(text)
        return "[" + ",".join(f"{key}={orjson.dumps(value).decode()}" for key, value in sorted(keys.items())) + "]"
    return f"[={text}]" if kind == "v" else f"[{text}]"


def _descend(schema: TypeSchema, step: str) -> TypeSchema:
    return schema.field(step[2:]) if step.startswith("f:") else schema.item


# --- from objects ----------------------------------------------------------------------------------------------------


def item_step(item: Any, schema: TypeSchema) -> str:
    """The step to `item` of a set or list_map. Raises ValueError when the item has none of the key fields."""
    if schema.shape == "set":
        return "v:" + orjson.dumps(item).decode()
    if not isinstance(item, dict):
        raise ValueError("associative list with keys may not have non-map elements")
    keys = {
        key: item[key] if key in item else schema.key_defaults[key]
        for key in schema.keys
        if key in item or key in schema.key_defaults
    }
    if not keys:
        raise ValueError(
            f"associative list with keys has an element that omits all key fields {list(schema.keys)} "
            "(and doesn't have default values for any key fields)"
        )
    return "k:" + orjson.dumps(keys).decode()


def is_keyed(schema: TypeSchema, value: Any) -> bool:
    """Whether `value` is a list whose items have steps of their own."""
    return schema.shape in ("set", "list_map") and isinstance(value, list)


def is_granular(schema: TypeSchema, value: Any) -> bool:
    """Whether `value` is a map whose fields have steps of their own."""
    return isinstance(value, dict) and schema.shape in ("struct", "map", "deduced")


def of_value(value: Any, schema: TypeSchema) -> FieldSet:
    """What an applied configuration claims: leaves, list items, map keys, and maps that are given as empty."""
    if is_granular(schema, value):
        result = {}
        for key in sorted(value):
            child, child_schema = value[key], schema.field(key)
            below = of_value(child, child_schema)
            is_member = child is None or child == {} or not schema.declares(key) or _is_leaf(child, child_schema)
            if is_member or below:
                result[f"f:{key}"] = _join(is_member, below)
        return result
    if is_keyed(schema, value):
        items = {item_step(item, schema): _join(True, of_value(item, schema.item)) for item in value}
        return dict(sorted(items.items()))
    return _LEAF


def _is_leaf(value: Any, schema: TypeSchema) -> bool:
    return not is_granular(schema, value) and not is_keyed(schema, value)


def everything(value: Any, schema: TypeSchema) -> FieldSet:
    """What appears when `value` appears: every path in it, containers included. Empty for a leaf."""
    if not value:
        return _LEAF
    if is_granular(schema, value):
        below = {_SELF: _LEAF}
        for key in sorted(value):
            below[f"f:{key}"] = everything(value[key], schema.field(key))
        return below
    if is_keyed(schema, value):
        items = {item_step(item, schema): everything(item, schema.item) for item in value}
        return {_SELF: _LEAF, **dict(sorted(items.items()))}
    return _LEAF


class Changes(NamedTuple):
    """How one object differs from another, as three sets without common members."""

    added: FieldSet
    modified: FieldSet
    removed: FieldSet

    @property
    def written(self) -> FieldSet:
        """What the newer object brought: added or modified."""
        return union(self.added, self.modified)


def compare(old: Any, new: Any, schema: TypeSchema) -> Changes:
    """The changes from `old` to `new`, both of the type `schema`."""
    changes = Changes({}, {}, {})
    _compare(old, new, schema, changes)
    return changes


def _compare(old: Any, new: Any, schema: TypeSchema, changes: Changes) -> bool:
    """Fills `changes` with what differs below; True when the value differs as a whole, as a leaf does."""
    if is_granular(schema, new if old is None else old) and is_granular(schema, old if new is None else new):
        old_items, new_items = old or {}, new or {}
        if not old_items and not new_items:
            return bool(old != new)
        _compare_items(
            {f"f:{key}": child for key, child in old_items.items()},
            {f"f:{key}": child for key, child in new_items.items()},
            schema,
            changes,
        )
        return False
    if is_keyed(schema, new if old is None else old) and is_keyed(schema, old if new is None else new):
        old_list, new_list = old or [], new or []
        if not old_list and not new_list:
            return bool(old != new)
        _compare_items(
            {item_step(item, schema): item for item in old_list},
            {item_step(item, schema): item for item in new_list},
            schema,
            changes,
        )
        return False
    return bool(old != new)


def _compare_items(old: dict[str, Any], new: dict[str, Any], schema: TypeSchema, changes: Changes) -> None:
    for step in sorted(new):
        child = new[step]
        if step not in old:
            changes.added[step] = everything(child, _descend(schema, step))
            continue
        before = old[step]
        if before is child or before == child:
            continue
        below = Changes({}, {}, {})
        if _compare(before, child, _descend(schema, step), below):
            changes.modified[step] = _LEAF
            continue
        for into, part in zip(changes, below, strict=True):
            if part:
                into[step] = part
    for step in sorted(old.keys() - new.keys()):
        changes.removed[step] = everything(old[step], _descend(schema, step))


def without(value: Any, fields: FieldSet, schema: TypeSchema) -> Any:
    """`value` without the members of `fields`; a container that this empties goes too (None at the top)."""
    if is_granular(schema, value):
        kept = {}
        for key, child in value.items():
            below = fields.get(f"f:{key}")
            if below is None:
                kept[key] = child
            elif not _is_member(below):
                remaining = without(child, below, schema.field(key))
                if remaining is not None:
                    kept[key] = remaining
        return kept or None
    if is_keyed(schema, value):
        kept_items = []
        for item in value:
            below = fields.get(item_step(item, schema))
            if below is None:
                kept_items.append(item)
            elif not _is_member(below):
                remaining = without(item, below, schema.item)
                if remaining is not None:
                    kept_items.append(remaining)
        return kept_items or None
    return value
