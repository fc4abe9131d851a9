"""How large a CustomResourceDefinition may be, and how it stays below that."""

import json
from collections import deque
from typing import Any

Schema = dict[str, Any]

# A client-side apply stores the whole object in one annotation, and 262,144 bytes is what all annotations may have;
# Helm's and Argo CD's take some hundreds.
MAX_CRD_BYTES = 240_000
_ESCAPED = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&"})
"""As Go's encoder of JSON writes these letters."""
_SAID_ONCE_BYTES = 4000
"""Of a group of fields that is described in one place only."""


def applied_bytes(crd: dict[str, Any]) -> int:
    """Of `crd` in the annotation in which kubectl keeps what it applied: compact JSON."""
    return len(json.dumps(crd, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED).encode())


def say_once(spec: Schema) -> None:
    """Large groups of fields that stand in several places of `spec` are described in the one nearest to its root; the
    others name that. `kubectl explain` goes there, too."""
    described: dict[str, str] = {}
    waiting = deque([("spec", spec)])
    while waiting:
        path, node = waiting.popleft()
        content = json.dumps(bare(node), sort_keys=True)
        if len(content) >= _SAID_ONCE_BYTES and content in described:
            description = f"{node['description']} Fields as in {described[content]}."
            node |= without_descriptions(node) | {"description": description}
            continue
        described[content] = path
        waiting += [(f"{path}.{name}", child) for name, child in node.get("properties", {}).items()]
        waiting += [
            (f"{path}[]", node[key]) for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)
        ]


def bare(schema: Schema) -> Schema:
    """What values `schema` takes: without descriptions, and without defaults, which lists have in descriptions."""
    return _without(schema, ("description", "default"))


def without_descriptions(schema: Schema) -> Schema:
    return _without(schema, ("description",))


def _without(schema: Schema, keys: tuple[str, ...]) -> Schema:
    """At any depth."""
    kept = {key: value for key, value in schema.items() if key not in keys}
    if "properties" in kept:
        kept["properties"] = {name: _without(child, keys) for name, child in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _without(kept[key], keys)
    return kept
