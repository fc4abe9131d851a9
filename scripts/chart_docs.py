"""Writes the chart's values.schema.json and README.md from values.yaml: `python scripts/chart_docs.py [--check] CHART`.

Every value has its description in the comment above it. Its type is that of its default, and a sentence
`One of: A, B.` lists all that is allowed. Labels, annotations and selectors are maps of strings, lists are of objects
that have a `name` if their description ends in `list of {name…}`; any other empty map may hold anything. Groups are
required: a group with nothing below it, which YAML reads as null, would take all its defaults away.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_LINE = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z][A-Za-z0-9]*):(?P<rest>.*)$")
_MAP_OF_STRINGS = re.compile(r"(labels|annotations|nodeSelector)$", re.IGNORECASE)
_IMAGE = r"^[A-Za-z0-9._/:@-]*$"
_PATTERNS = {
    ("operator", "image", "repository"): r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$",
    ("operator", "image", "tag"): r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$",
    ("operator", "image", "digest"): r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})?$",
    ("operator", "watchNamespace"): r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
    **{("images", name): _IMAGE for name in ("flax", "deepspeed", "serve", "bench")},
}
"""What strings that the API server or a node would refuse only later must match."""
_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Value:
    """One entry of values.yaml."""

    path: tuple[str, ...]
    description: str
    """Empty: it only groups others."""
    default: Any


def read_values(text: str) -> list[Value]:
    """All entries, in order. Raises ValueError for a value that nobody describes."""
    document = yaml.safe_load(text)
    found: list[Value] = []
    for path, description in _entries(text):
        default = document
        for name in path:
            default = default[name]
        is_group = isinstance(default, dict) and bool(default) and path != ("operator", "resources")
        if not is_group and not description:
            raise ValueError(f"{'.'.join(path)}: has no description; write a comment above it")
        found.append(Value(path, description, default))
    return found


def _entries(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, description) of each key that has a line of its own."""
    path: list[str] = []
    comment: list[str] = []
    opaque: int | None = None
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif match := _LINE.match(line):
            depth = len(match["indent"]) // 2
            if opaque is not None and depth > opaque:
                continue
            opaque = depth if match["name"] == "resources" else None
            path = [*path[:depth], match["name"]]
            yield tuple(path), " ".join(comment)
            comment = []
        else:
            comment = []


def schema(values: list[Value]) -> dict[str, Any]:
    """The JSON schema by which Helm checks values: an unknown name is an error."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": {"type": "object"}},
    }
    for value in values:
        parent = root
        for name in value.path[:-1]:
            parent = parent["properties"][name]
        parent.setdefault("properties", {})[value.path[-1]] = _of(value)
    root["required"] = [name for name, entry in root["properties"].items() if "properties" in entry]
    return root


def _of(value: Value) -> dict[str, Any]:
    node: dict[str, Any] = {"type": _TYPES[type(value.default)]}
    if value.description:
        node["description"] = value.description
    if isinstance(value.default, dict) and value.default and value.path[-1] != "resources":
        node["additionalProperties"] = False
    if value.path[-1] == "resources":
        node["propertyNames"] = {"enum": ["requests", "limits", "claims"]}
    if pattern := _PATTERNS.get(value.path):
        node["pattern"] = pattern
    if value.default == {} and _MAP_OF_STRINGS.search(value.path[-1]):
        # An API server refuses a number there with an error that names no value.
        node["additionalProperties"] = {"type": "string"}
    if node["type"] == "array":
        node["items"] = {"type": "object"} | ({"required": ["name"]} if "list of {name" in value.description else {})
    if choices := re.search(r"One of: ([^.]+)\.", value.description):
        node["enum"] = choices[1].split(", ")
    if node["type"] == "integer":
        node["minimum"] = 0
    return node


def readme(chart: dict[str, Any], values: list[Value]) -> str:
    """The chart's page."""
    rows = [
        f"| `{'.'.join(value.path)}` | `{json.dumps(value.default)}` | {value.description.replace('|', '/')} |"
        for value in values
        if not isinstance(value.default, dict) or not value.default or value.path[-1] == "resources"
    ]
    return "\n".join(
        [
            "<!-- Generated by `make generate` from values.yaml; changes here are overwritten. -->",
            f"# Helm chart {chart['name']} {chart['version']}",
            "",
            f"{chart['description']}.",
            "",
            "```sh",
            "helm install capstan charts/capstan --namespace capstan-system --create-namespace",
            "```",
            "",
            "The CustomResourceDefinitions are upgraded with the chart, and stay, as all jobs do, when it is removed.",
            "Helm refuses those that another release left or that were applied by other means: `--take-ownership`",
            "(Helm 3.17 or newer) hands them over, `--set crds.enabled=false` leaves them alone.",
            "",
            "| value | default | what it is |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Writes the files and returns 0; with --check compares and returns 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chart", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is out of date")
    options = parser.parse_args()
    values = read_values((options.chart / "values.yaml").read_text())
    about = yaml.safe_load((options.chart / "Chart.yaml").read_text())
    texts = {
        "values.schema.json": json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
        "README.md": readme(about, values),
    }
    outdated = False
    for name, text in texts.items():
        path = options.chart / name
        if not options.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path} is out of date; run `make generate`", file=sys.stderr)
            outdated = True
    return int(outdated)


if __name__ == "__main__":
    raise SystemExit(main())
