"""What the schemas fill in can be no difference to what is in git."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan_local.schema.structural import compile_schema
from capstan_operator.crdgen import all_crds
from tests.support.control_planes import ControlPlane
from tests.support.gitops import ClientSide, Document, Repository, three_way
from tests.support.real_cluster import real_cluster

Schema = dict[str, Any]
SCHEMAS = {crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in all_crds()}
SPECS = {kind: schema["properties"]["spec"] for kind, schema in SCHEMAS.items()}


def completed_elements(schema: Schema, path: str, is_in_list: bool = False) -> Iterator[str]:
    """Paths of fields that the API server fills in inside elements of lists."""
    if is_in_list and "default" in schema:
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from completed_elements(field, f"{path}.{name}", is_in_list)
    if isinstance(values := schema.get("additionalProperties"), dict):
        yield from completed_elements(values, f"{path}.*", is_in_list)
    if "items" in schema:
        yield from completed_elements(schema["items"], f"{path}[]", True)


@pytest.mark.parametrize("kind", SPECS)
def test_no_default_lies_inside_an_element_of_a_list(kind: str) -> None:
    """Clients compare a list of a custom resource as one value: an element that was completed differs for ever."""
    assert list(completed_elements(SPECS[kind], "spec")) == []


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """What a schema without its CEL rules accepts; of what is optional, any part."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "object" if "properties" in schema:
            fields = {name: values(field) for name, field in schema["properties"].items()}
            required = {name: fields.pop(name) for name in schema.get("required", [])}
            return st.fixed_dictionaries(required, optional=fields)
        case "object":
            names = st.from_regex(r"[a-z]{3,8}", fullmatch=True)
            inner = schema.get("additionalProperties")
            return st.dictionaries(names, values(inner) if inner else st.text("ab"), max_size=2)
        case "array":
            least = schema.get("minItems", 0)
            most = min(schema.get("maxItems", least + 2), least + 2)
            keys = schema.get("x-kubernetes-list-map-keys")
            unique = (lambda one: tuple(one[key] for key in keys)) if keys else None
            return st.lists(values(schema["items"]), min_size=least, max_size=most, unique_by=unique)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True).filter(lambda text: _is_of_length(text, schema))
        case "string":
            least = schema.get("minLength", 0)
            return st.text("abc", min_size=least, max_size=min(schema.get("maxLength", least + 5), least + 5))
        case "boolean":
            return st.booleans()
        case "integer" | "number" as kind:
            step = 1 if kind == "integer" else 1e-3
            least = schema.get("minimum", 0) + (step if schema.get("exclusiveMinimum") else 0)
            most = min(schema.get("maximum", least + 100), least + 100)
            most -= step if schema.get("exclusiveMaximum") else 0
            return st.integers(least, most) if kind == "integer" else st.floats(least, most)
    raise AssertionError(f"no values for {schema}")


def _is_of_length(text: str, schema: Schema) -> bool:
    is_plain = text.isascii() and text.isprintable()
    return is_plain and schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 100)


def manifests(kind: str) -> st.SearchStrategy[Document]:
    """In git."""
    names = st.from_regex(r"[a-z]{12}", fullmatch=True)
    return st.builds(
        lambda name, spec: {
            "apiVersion": "capstan.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        },
        names,
        values(SPECS[kind]),
    )


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


@pytest.mark.parametrize("kind", SPECS)
@settings(max_examples=30, suppress_health_check=SLOW)
@given(data=st.data())
def test_what_is_filled_in_is_no_difference_to_any_spec(kind: str, data: st.DataObject) -> None:
    schema = compile_schema(SCHEMAS[kind])
    document = data.draw(manifests(kind))
    live, unknown = schema.prune(schema.default(copy.deepcopy(document)))
    assert (three_way(document, document, live), unknown) == ({}, [])


@settings(max_examples=1, suppress_health_check=[*SLOW, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_spec_that_a_real_server_takes_is_unchanged_when_it_is_applied_again(
    real_control_plane: ControlPlane, data: st.DataObject
) -> None:
    """That server is too old for CEL, so that all drawn specs are taken."""
    unique = {(one["kind"], one["metadata"]["name"]): one for kind in SPECS for one in data.draw(ten(kind))}

    async def apply_twice() -> tuple[int, list[str], list[str]]:
        async with real_cluster(real_control_plane) as cluster:
            repository = Repository(ClientSide(cluster), list(unique.values()))
            return len(await repository.sync()), await repository.sync(), await repository.differences()

    assert asyncio.run(apply_twice()) == (len(unique), [], [])


def ten(kind: str) -> st.SearchStrategy[list[Document]]:
    return st.lists(manifests(kind), min_size=10, max_size=10)
