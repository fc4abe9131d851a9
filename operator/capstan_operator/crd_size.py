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
_ELEMENTS = ("items", "additionalProperties")


def applied_bytes(crd: dict[str, Any]) -> int:
    """Of `crd` in the annotation in which kubectl keeps what it applied: compact JSON."""
    return len(json.dumps(crd, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED).encode())


def say_once(spec: Schema) -> None:
    """Large groups of fields that stand in several places of `spec`, with equal words, are described in the one nearest
    to its root; the others name that."""
    described: dict[str, str] = {}
    waiting = deque([("spec", spec)])
    while waiting:
        path, node = waiting.popleft()
        content = json.dumps({key: node[key] for key in node if key not in ("description", "default")}, sort_keys=True)
        if len(content) >= _SAID_ONCE_BYTES and content in described:
            description = f"{node['description']} Fields as in {described[content]}."
            node |= without_descriptions(node) | {"description": description}
            continue
        described[content] = path
        waiting += [(f"{path}.{name}", child) for name, child in node.get("properties", {}).items()]
        waiting += [(f"{path}[]", node[key]) for key in _ELEMENTS if isinstance(node.get(key), dict)]


def without_descriptions(schema: Schema) -> Schema:
    """At any depth."""
    kept = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in kept:
        kept["properties"] = {name: without_descriptions(child) for name, child in kept["properties"].items()}
    return kept | {key: without_descriptions(kept[key]) for key in _ELEMENTS if isinstance(kept.get(key), dict)}
