"""JSON patch (RFC 6902), with the leniencies and messages of the Go library that kube-apiserver uses."""

import json
import re
from copy import deepcopy
from typing import Any, NoReturn

_MAX_JSON_PATCH_OPS = 10_000  # kube-apiserver's maxJSONPatchOperations


class PatchError(ValueError):
    """A patch that cannot be applied: `code` is the HTTP status (400, 413 or 422), `message` is for the Status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def apply_json_patch(doc: Any, ops: Any) -> Any:
    """A new document: `doc` with `ops` applied. Raises PatchError (422 when an op fails, 400 when malformed)."""
    if not isinstance(ops, list):
        raise PatchError(400, "error decoding patch: a JSON patch is a list of operations")
    if len(ops) > _MAX_JSON_PATCH_OPS:
        raise PatchError(
            413, f"The allowed maximum operations in a JSON patch is {_MAX_JSON_PATCH_OPS}, got {len(ops)}"
        )
    result = deepcopy(doc)
    for op in ops:
        result = _apply_op(result, op)
    return result


def _apply_op(doc: Any, op: Any) -> Any:
    if not isinstance(op, dict) or not isinstance(op.get("op"), str):
        raise PatchError(400, f"error decoding patch: an operation is an object with op and path, not {json.dumps(op)}")
    name = op["op"]
    path = _pointer(op, "path")
    if name in ("add", "replace", "test") and "value" not in op:
        # As the Go library has it: a missing value is null.
        op = {**op, "value": None}
    if name == "add":
        return _add(doc, path, deepcopy(op["value"]), op["path"])
    if name == "remove":
        return _remove(doc, path, op["path"])
    if name == "replace":
        _get(doc, path, f"replace operation does not apply: doc is missing key: {op['path']}")
        return _set(doc, path, deepcopy(op["value"]))
    if name == "test":
        return _test(doc, path, op)
    if name in ("move", "copy"):
        source = _pointer(op, "from")
        value = deepcopy(_get(doc, source, f"{name} operation does not apply: doc is missing from path: {op['from']}"))
        if name == "move":
            if len(path) > len(source) and path[: len(source)] == source:
                _fail(f"move operation does not apply: {op['from']} cannot be moved into itself")
            doc = _remove(doc, source, op["from"])
        return _add(doc, path, value, op["path"])
    _fail(f"Unexpected kind: {name}")


def _fail(message: str) -> NoReturn:
    raise PatchError(422, f"the server rejected our request due to an error in our request: {message}")


def _pointer(op: dict[str, Any], member: str) -> list[str]:
    text = op.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise PatchError(400, f"error decoding patch: {member} {json.dumps(text)} is not a JSON pointer")
    return [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]


def _index(token: str, length: int, path: str) -> int:
    """The position `token` names in a list of `length` items; one past the end is allowed (the caller checks)."""
    if not re.fullmatch(r"0|-?[1-9]\d*", token):
        _fail(f"invalid array index in path {path}: {token}")
    index = int(token)
    if index < 0:
        index += length  # the Go library counts from the end
    if not 0 <= index <= length:
        _fail(f"index {token} out of range in path {path}: the list has {length} items")
    return index


def _step(container: Any, token: str, missing: str) -> Any:
    if isinstance(container, dict):
        if token not in container:
            _fail(missing)
        return container[token]
    if isinstance(container, list):
        index = _index(token, len(container), token)
        if index == len(container):
            _fail(missing)
        return container[index]
    _fail(missing)


def _get(doc: Any, path: list[str], missing: str) -> Any:
    for token in path:
        doc = _step(doc, token, missing)
    return doc


def _set(doc: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    container = _get(doc, path[:-1], "")
    if isinstance(container, list):
        container[_index(path[-1], len(container), path[-1])] = value
    else:
        container[path[-1]] = value
    return doc


def _add(doc: Any, path: list[str], value: Any, text: str) -> Any:
    if not path:
        return value
    missing = f"add operation does not apply: doc is missing path: {text}"
    container = _get(doc, path[:-1], missing)
    if isinstance(container, dict):
        container[path[-1]] = value
    elif isinstance(container, list):
        at = len(container) if path[-1] == "-" else _index(path[-1], len(container), text)
        container.insert(at, value)
    else:
        _fail(missing)
    return doc


def _remove(doc: Any, path: list[str], text: str) -> Any:
    missing = f"remove operation does not apply: doc is missing path: {text}"
    if not path:
        return None
    container = _get(doc, path[:-1], missing)
    _step(container, path[-1], missing)
    if isinstance(container, dict):
        del container[path[-1]]
    else:
        del container[_index(path[-1], len(container), text)]
    return doc


def _test(doc: Any, path: list[str], op: dict[str, Any]) -> Any:
    expected = op["value"]
    failed = f"testing path {op['path']} failed: test failed"
    try:
        actual = _get(doc, path, failed)
    except PatchError:
        if expected is None:
            return doc  # an absent member tests equal to null
        raise
    if not is_json_equal(actual, expected):
        _fail(failed)
    return doc


def is_json_equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same; unlike Python's ==, true is not 1."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(is_json_equal(left[key], right[key]) for key in left)
        )
    if isinstance(left, list):
        return (
            isinstance(right, list)
            and len(left) == len(right)
            and all(is_json_equal(a, b) for a, b in zip(left, right, strict=True))
        )
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
