"""Kubernetes' strategic merge patch over plain JSON, for the types that occur in a pod."""

from typing import Any

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "claims": "name",
    "schedulingGates": "name",
}
"""Lists of a pod that merge item by item, and the field that tells items apart (x-kubernetes-patch-merge-key); other
lists are replaced."""

REPLACED_WHOLE = frozenset({"volumes"})
"""Lists whose items are unions: half of an old source under a new one would be two sources (patchStrategy
retainKeys)."""


class MergeError(ValueError):
    """The patch cannot be merged. The text starts with the path of the field at fault."""


def strategic_merge(base: Any, patch: Any, path: str) -> Any:
    """`base` with `patch` merged in; neither is changed, the result may share parts with both.

    Objects merge key by key, null removes a key, lists named in MERGE_KEYS merge item by item. `$patch: replace` is
    obeyed in objects and lists, `$patch: delete` in items of lists. Raises MergeError for any other key that begins
    with `$`, and for a wrong type.
    """
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return _checked_leaf(base, patch, path)
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = dict(base)
    for key, value in patch.items():
        where = f"{path}.{key}"
        if key.startswith("$"):
            raise MergeError(f"{where}: {value!r} is not supported; use $patch: replace or $patch: delete")
        if value is None:
            merged.pop(key, None)
        elif key in MERGE_KEYS:
            merged[key] = _merge_lists(merged.get(key, []), value, key, where)
        elif key in merged:
            merged[key] = strategic_merge(merged[key], value, where)
        else:
            merged[key] = strategic_merge({}, value, where) if isinstance(value, dict) else value
    return merged


def _checked_leaf(base: Any, patch: Any, path: str) -> Any:
    for kind, name in ((dict, "an object"), (list, "a list")):
        if isinstance(base, kind) and not isinstance(patch, kind):
            raise MergeError(f"{path}: {patch!r} is not {name}; write {name}")
    return patch


def _merge_lists(base: list[Any], patch: Any, field: str, path: str) -> list[Any]:
    if not isinstance(patch, list):
        raise MergeError(f"{path}: {patch!r} is not a list; write a list of objects")
    key = MERGE_KEYS[field]
    merged = {item[key]: item for item in base}
    for index, item in enumerate(patch):
        where = f"{path}[{index}]"
        if not isinstance(item, dict):
            raise MergeError(f"{where}: {item!r} is not an object; write an object with {key}")
        if item == {"$patch": "replace"}:
            merged = {}
            continue
        if key not in item:
            raise MergeError(f"{where}: has no {key}, by which items are matched; add {key}")
        name = item[key]
        if not isinstance(name, str | int):
            raise MergeError(f"{where}.{key}: {name!r} is not a name; write text or a number")
        if item.get("$patch") == "delete":
            merged.pop(name, None)
        elif field in REPLACED_WHOLE:
            merged[name] = item
        else:
            merged[name] = strategic_merge(merged.get(name, {}), item, where)
    return list(merged.values())
