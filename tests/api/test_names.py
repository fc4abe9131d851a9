"""Names of fields, as those who write manifests meet them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

BOOLEANS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false"})
"""Words that YAML 1.1, which kubectl reads, takes for a boolean, in any case: https://yaml.org/type/bool.html."""


def named(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every property at any depth."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", name
        yield from named(inner, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from named(inner, f"{path}[]")


@pytest.mark.parametrize("plural", ["trainingjobs", "inferenceservices", "benchmarks"])
def test_no_field_of_a_spec_can_be_read_as_a_boolean(plural: str) -> None:
    crd = yaml.load(Path(f"crds/{plural}.yaml").read_text(), yaml.CSafeLoader)
    fields = list(named(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    assert len(fields) > 100
    assert [path for path, name in fields if name.lower() in BOOLEANS] == []
