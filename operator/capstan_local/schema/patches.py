"""The three patch formats of the Kubernetes API as pure functions. None of them changes its arguments.

A strategic merge patch is a merge patch that knows which lists are keyed by a field of their items. Its directives:
`$patch: delete|replace|merge` in a map or a list item, `$retainKeys`, `$setElementOrder/FIELD`,
`$deleteFromPrimitiveList/FIELD`.
"""

from copy import deepcopy
from typing import Any

from capstan_local.schema import builtin_schemas
from capstan_local.schema.json_patch import PatchError, apply_json_patch
from capstan_local.schema.merge_facts import MERGED_SCALAR_LISTS, PATCH_MERGE_KEYS, REPLACED_STRUCTS

__all__ = ["PatchError", "apply_json_patch", "apply_merge_patch", "apply_strategic_merge_patch"]

Map = dict[str, Any]

_PATCH = "$patch"
_RETAIN_KEYS = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE_SCALARS = "$deleteFromPrimitiveList/"


def apply_merge_patch(doc: Any, patch: Any) -> Any:
    """A new document: `doc` with the RFC 7386 `patch` applied."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(doc) if isinstance(doc, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), value)
    return result


def apply_strategic_merge_patch(doc: Map, patch: Map, kind_key: str) -> Map:
    """A new document: `doc` of built-in kind `kind_key` (v1/Pod, apps/v1/Deployment) with `patch` applied.

    Raises PatchError (400) for a patch that breaks the rules of its directives.
    """
    if not isinstance(patch, dict):
        raise PatchError(400, "error decoding patch: a strategic merge patch is an object")
    return _merge_map(doc, patch, "#" + builtin_schemas.builtin_type(kind_key).name)


def _merge_map(original: Map, patch: Map, kind: str) -> Map:
    directive = patch.get(_PATCH)
    if directive == "replace":
        return {key: deepcopy(value) for key, value in patch.items() if key != _PATCH}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise PatchError(400, f"unknown patch type: {directive}; use delete, replace or merge")
    result = _retained(original, patch)
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN_KEYS) or key.startswith(_ORDER):
            continue
        if key.startswith(_DELETE_SCALARS):
            _delete_scalars(result, key.removeprefix(_DELETE_SCALARS), value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(result.get(key), value, _place(kind, key), _field_kind(kind, key))
    for key, order in patch.items():
        if key.startswith(_ORDER):
            field = key.removeprefix(_ORDER)
            _set_element_order(result, original.get(field), patch.get(field), field, order, _place(kind, field))
    return result


def _retained(original: Map, patch: Map) -> Map:
    """`original` without the fields that a `$retainKeys` in `patch` leaves out."""
    if _RETAIN_KEYS not in patch:
        return dict(original)
    keep = patch[_RETAIN_KEYS]
    patched = [key for key, value in patch.items() if value is not None and not key.startswith("$")]
    if not isinstance(keep, list) or not set(patched) <= set(keep):
        raise PatchError(400, "invalid patch format of retainKeys")
    return {key: value for key, value in original.items() if key in keep}


def _merge_value(original: Any, patch: Any, place: tuple[str, str] | None, kind: str) -> Any:
    if place in REPLACED_STRUCTS:
        return _without_directives(patch)
    if isinstance(patch, dict):
        return _merge_map(original if isinstance(original, dict) else {}, patch, kind)
    if not isinstance(patch, list):
        return patch
    if place in MERGED_SCALAR_LISTS:
        kept = original if isinstance(original, list) else []
        return kept + [item for item in dict.fromkeys(patch) if item not in kept]
    if place in PATCH_MERGE_KEYS:
        return _merge_keyed_list(
            original if isinstance(original, list) else [], patch, PATCH_MERGE_KEYS[place], kind[2:]
        )
    return [_without_directives(item) for item in patch if not (isinstance(item, dict) and _PATCH in item)]


def _merge_keyed_list(original: list[Map], patch: list[Map], key: str, item_kind: str) -> list[Map]:
    if any(item == {_PATCH: "replace"} for item in patch):
        return [deepcopy(item) for item in patch if item != {_PATCH: "replace"}]
    result = list(original)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PatchError(400, f"map: {item} does not contain declared merge key: {key}")
        at = next((i for i, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None)
        if item.get(_PATCH) == "delete":
            result = [old for old in result if old.get(key) != item[key]]
        elif at is None:
            result.append(_merge_map({}, item, item_kind))
        else:
            result[at] = _merge_map(result[at], item, item_kind)
    return result


def _delete_scalars(result: Map, field: str, values: Any) -> None:
    if not isinstance(values, list):
        raise PatchError(400, "invalid patch format of primitive list")
    if isinstance(result.get(field), list):
        result[field] = [item for item in result[field] if item not in values]


def _set_element_order(
    result: Map, live: Any, patch: Any, field: str, order: Any, place: tuple[str, str] | None
) -> None:
    """Puts the items of `result[field]` that `order` names into that order, the others where they stood before."""
    if not isinstance(order, list):
        raise PatchError(400, "invalid patch format of setElementOrder list")
    merged = result.get(field)
    if not isinstance(merged, list):
        return
    key = PATCH_MERGE_KEYS.get(place) if place else None
    wanted = [_identity(item, key) for item in order]
    patched = [_identity(item, key) for item in patch or [] if not (isinstance(item, dict) and _PATCH in item)]
    rest = iter(wanted)
    if not all(any(name == candidate for candidate in rest) for name in patched):
        raise PatchError(
            400, f"The order in patch list:\n{patch}\n doesn't match {_ORDER.removesuffix('/')} list:\n{order}\n"
        )
    named = {name: item for item in merged if (name := _identity(item, key)) in wanted}
    others = [item for item in merged if _identity(item, key) not in named]
    ours = [named[name] for name in dict.fromkeys(wanted) if name in named]
    live_order = [_identity(item, key) for item in live] if isinstance(live, list) else []
    result[field] = _interleave(ours, others, live_order, key)


def _interleave(ours: list[Any], others: list[Any], live_order: list[Any], key: str | None) -> list[Any]:
    """`ours` and `others`, each in its order; an item of the others goes first only where it did in the live list."""

    def position(item: Any) -> int | None:
        name = _identity(item, key)
        return live_order.index(name) if name in live_order else None

    result = []
    left, right = 0, 0
    while left < len(ours) and right < len(others):
        ours_at, others_at = position(ours[left]), position(others[right])
        if ours_at is not None and others_at is not None and others_at < ours_at:
            result.append(others[right])
            right += 1
        else:
            result.append(ours[left])
            left += 1
    return result + ours[left:] + others[right:]


def _identity(item: Any, key: str | None) -> Any:
    if key is None:
        return item
    if not isinstance(item, dict) or key not in item:
        raise PatchError(400, f"map: {item} does not contain declared merge key: {key}")
    return item[key]


def _without_directives(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if not (isinstance(item, dict) and _PATCH in item)
        }
    if isinstance(value, list):
        return [_without_directives(item) for item in value if not (isinstance(item, dict) and _PATCH in item)]
    return value


def _place(kind: str, field: str) -> tuple[str, str] | None:
    return (builtin_schemas.type_by_name(kind[1:]).short_name, field) if kind.startswith("#") else None


def _field_kind(kind: str, field: str) -> str:
    """The kind of value of `field` in a value of `kind`; `any` below what the schema describes."""
    if kind.startswith("#"):
        return builtin_schemas.type_by_name(kind[1:]).fields.get(field, "any")
    return kind[2:] if kind.startswith("{}") else "any"
