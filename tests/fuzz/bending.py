"""Well-formed data made a little wrong. All chance comes from the Random that is given: a test can shrink it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.target import Form

_MOST_DEPTH = 1500
"""Deeper than any parser in Python can follow."""
_DEEP_LIST, _DEEP_OBJECT, _LONG, _NUMBER = "@deep-list@", "@deep-object@", "@long@", "@number@"
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 1e308, -1e-320,
    float("nan"), float("inf"), "", " ", "\0", "\n", "0", "-1", "1e400", "NaN", "true", "null", "a" * 300, "é", "🜁",
    "\ud800", "../../x", "/", "%2e%2e/", "$(X)", "=1+1", "1970-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "0001-01-01",
    "1..2", "1e999999999", "blake3:" + "0" * 64, [], {}, [[]], [None], {"": None}, {"a": {"b": []}},
    _DEEP_LIST, _DEEP_OBJECT, _LONG, _NUMBER,
)  # fmt: skip
_LARGE: dict[str, str] = {
    _DEEP_LIST: "[" * _MOST_DEPTH + "]" * _MOST_DEPTH,
    _DEEP_OBJECT: '{"a":' * _MOST_DEPTH + "1" + "}" * _MOST_DEPTH,
    _LONG: json.dumps("x" * 5000),
    _NUMBER: "9" * 5000,
}
_SPLICES = (
    b"", b"\0", b"\n", b"\r\n", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"-", b".",
    b"9" * 20, b"9" * 5000, b"1e999", b"NaN", b"\xff" * 8, b"\xff\xff\xff\x7f", b"(" * 500, b"[" * 1500, b"<", b"%",
    b"&a [*a,*a]", b"!!python/name:os.system", b"../",
)  # fmt: skip


def bend(data: bytes, form: Form, chance: Random) -> bytes:
    """`data` with one to three things wrong with it."""
    for _ in range(chance.randint(1, 3)):
        data = _WAYS[form](data, chance) if chance.random() < 0.8 else _bend_bytes(data, chance)
    return data


def _bend_json(data: bytes, chance: Random) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _bend_bytes(data, chance)
    holders = [holder for holder in _holders(document) if holder]
    if not holders:
        return _written(chance.choice(_ODD))
    holder = chance.choice(holders)
    key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    match chance.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 1:
            holder[chance.choice(("", "x", "__proto__", "a" * 300, "\ud800", f"{key} "))] = holder[key]
        case 2:
            holder[key] = chance.choice([[holder[key]], {"value": holder[key]}, json.dumps(holder[key])])
        case _:
            holder[key] = chance.choice(_ODD)
    return _written(document)


def _holders(document: Any) -> list[Any]:
    """The document's objects and lists, itself included."""
    found, left = [], [document]
    while left:
        one = left.pop()
        if isinstance(one, dict | list):
            found.append(one)
            left += one.values() if isinstance(one, dict) else one
    return found


def _written(document: Any) -> bytes:
    text = json.dumps(document)
    for name, large in _LARGE.items():
        text = text.replace(f'"{name}"', large)
    return text.encode()


def _bend_lines(data: bytes, chance: Random) -> bytes:
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            words = lines[at].split(b" ")
            words[chance.randrange(len(words))] = chance.choice(_SPLICES)
            lines[at] = b" ".join(words)
        case _:
            lines[at] = _bend_bytes(lines[at], chance)
    return b"\n".join(lines)


def _bend_bytes(data: bytes, chance: Random) -> bytes:
    first, last = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
    last = min(last, first + 16)
    match chance.randrange(4):
        case 0:
            return data[:first]
        case 1:
            return data[:first] + data[last:]
        case 2 if data and first < len(data):
            return data[:first] + bytes([data[first] ^ 1 << chance.randrange(8)]) + data[first + 1 :]
        case _:
            return data[:first] + chance.choice(_SPLICES) + data[last:]


_WAYS: dict[Form, Callable[[bytes, Random], bytes]] = {"json": _bend_json, "lines": _bend_lines, "bytes": _bend_bytes}


def any_bent(seeds: Sequence[bytes], form: Form, chance: Random) -> bytes:
    return bend(chance.choice(seeds), form, chance)
