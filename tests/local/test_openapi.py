# ruff: noqa: E501 - a message or a row is one line
"""The built-in schemas and the OpenAPI documents made of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstan_local.schema import builtin_schemas
from capstan_local.schema.openapi import BuiltinResource, v2_document, v3_document, v3_index

Object = dict[str, Any]

POD = BuiltinResource("", "v1", "Pod", "pods", True, ("status", "log", "exec", "eviction"))
NODE = BuiltinResource("", "v1", "Node", "nodes", False, ("status",))
DEPLOYMENT = BuiltinResource("apps", "v1", "Deployment", "deployments", True, ("status", "scale"))
BUILTIN = [POD, NODE, DEPLOYMENT]
SPEC = {
    "type": "object",
    "properties": {
        "size": {"x-kubernetes-int-or-string": True},
        "maybe": {"type": "string", "nullable": True},
        "one": {"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}]},
    },
}
CRD = {
    "spec": {
        "group": "x.dev",
        "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {"type": "object", "description": "A thing.", "properties": {"spec": SPEC}}
                },
            },
            {"name": "v0", "served": False},
        ],
    }
}


@pytest.fixture(scope="module", autouse=True)
def cached_schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Derives the built-in schemas once for all tests here."""
    before = builtin_schemas._cache_folder
    builtin_schemas.use_cache(tmp_path_factory.mktemp("schemas"))
    yield
    builtin_schemas._cache_folder = before


def references(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        if isinstance(document.get("$ref"), str):
            yield document["$ref"]
        for value in document.values():
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


# --- built-in schemas ------------------------------------------------------------------------------------------------


def test_unknown_fields_of_a_built_in_kind_are_named_with_their_paths() -> None:
    pod = {
        "metadata": {"name": "p", "label": {}, "labels": {"any": "x"}},
        "spec": {"containers": [{"name": "c"}, {"name": "d", "imag": "i"}], "nodeSelector": {"x": "y"}},
        "stats": {},
    }
    unknown = ['unknown field "metadata.label"', 'unknown field "spec.containers[1].imag"', 'unknown field "stats"']
    assert builtin_schemas.unknown_fields("v1/Pod", pod) == unknown
    assert "stats" in pod
    assert builtin_schemas.drop_unknown_fields("v1/Pod", pod) == unknown
    assert pod == {
        "metadata": {"name": "p", "labels": {"any": "x"}},
        "spec": {"containers": [{"name": "c"}, {"name": "d"}], "nodeSelector": {"x": "y"}},
    }


FIELD = 'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal'


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"terminationGracePeriodSeconds": "x"}, f"{FIELD} string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64"),
        ({"containers": {}}, f"{FIELD} object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ({"containers": [{"name": 1}]}, f"{FIELD} number into Go struct field Container.spec.containers.name of type string"),
        ({"nodeSelector": {"a": True}}, f"{FIELD} bool into Go struct field PodSpec.spec.nodeSelector of type string"),
        ({"containers": [{"resources": {"limits": {"cpu": "much"}}}]}, "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        ({"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1.5Gi"}}, "livenessProbe": {"httpGet": {"port": 80}}}]}, None),
        ({"containers": [{"livenessProbe": {"httpGet": {"port": "http"}}}], "hostNetwork": None}, None),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_do_not_decode(spec: Object, expected: str | None) -> None:
    assert builtin_schemas.decoding_error("v1/Pod", {"spec": spec}) == expected


@pytest.mark.parametrize(
    ("data", "problem"),
    [("YQ==", None), ("a", "illegal base64 data at input byte 0"), ("a!", "illegal base64 data at input byte 1")],
)
def test_secret_data_is_base64(data: str, problem: str | None) -> None:
    error = builtin_schemas.decoding_error("v1/Secret", {"data": {"k": data}})
    assert error == (problem and f'Secret in version "v1" cannot be handled as a Secret: {problem}')


def test_the_schemas_are_read_from_the_cache_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_schemas, "_cache_folder", None)
    builtin_schemas.use_cache(tmp_path)
    first = builtin_schemas.open_api_definitions()
    [cached] = tmp_path.iterdir()
    assert builtin_schemas.source_version() in cached.name
    monkeypatch.setattr(builtin_schemas.subprocess, "run", None)  # a second derivation would fail
    assert builtin_schemas.open_api_definitions() == first


def test_a_cache_that_was_cut_short_is_derived_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_schemas, "_cache_folder", None)
    builtin_schemas.use_cache(tmp_path)
    cached = tmp_path / f"builtin-schemas-{builtin_schemas.source_version()}.json"
    cached.write_text('{"kinds": {')
    assert "io.k8s.api.core.v1.Pod" in builtin_schemas.open_api_definitions()
    assert json.loads(cached.read_text())["kinds"]["v1/Pod"] == "io.k8s.api.core.v1.Pod"


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_v2_document_is_closed_and_says_how_lists_merge() -> None:
    document = v2_document(BUILTIN, [CRD])
    names = {f"#/definitions/{name}" for name in document["definitions"]}
    assert set(references(document)) <= names
    containers = document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert {key: value for key, value in containers.items() if key.startswith("x-")} == {
        "x-kubernetes-patch-merge-key": "name",
        "x-kubernetes-patch-strategy": "merge",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    thing = document["definitions"]["dev.x.v1.Thing"]
    assert thing["x-kubernetes-group-version-kind"] == [{"group": "x.dev", "kind": "Thing", "version": "v1"}]
    assert thing["properties"]["spec"]["properties"] == {
        "size": {"x-kubernetes-int-or-string": True},
        "maybe": {},
        "one": {"type": "object", "properties": {"a": {"type": "string"}}},
    }


@pytest.mark.parametrize("group_version", ["v1", "apps/v1", "x.dev/v1"])
def test_a_v3_document_is_closed_and_holds_its_group_alone(group_version: str) -> None:
    document = v3_document(group_version, BUILTIN, [CRD])
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= names
    prefix = f"/apis/{group_version}/" if "/" in group_version else f"/api/{group_version}/"
    assert document["paths"]
    assert [path for path in document["paths"] if not path.startswith(prefix)] == []


def test_a_custom_schema_keeps_its_words_in_v3() -> None:
    schemas = v3_document("x.dev/v1", BUILTIN, [CRD])["components"]["schemas"]
    assert schemas["dev.x.v1.Thing"]["properties"]["spec"] == SPEC
    assert schemas["dev.x.v1.Thing"]["properties"]["metadata"] == {
        "description": "Standard object's metadata.",
        "allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}],
    }


@pytest.mark.parametrize(
    ("group_version", "path", "kind", "takes_strategic"),
    [
        ("v1", "/api/v1/namespaces/{namespace}/pods/{name}", "Pod", True),
        ("v1", "/api/v1/nodes/{name}", "Node", True),
        ("apps/v1", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}", "Deployment", True),
        ("x.dev/v1", "/apis/x.dev/v1/namespaces/{namespace}/things/{name}", "Thing", False),
    ],
)
def test_kubectl_finds_the_patch_of_a_kind_with_its_parameters(
    group_version: str, path: str, kind: str, takes_strategic: bool
) -> None:
    patch = v3_document(group_version, BUILTIN, [CRD])["paths"][path]["patch"]
    assert patch["x-kubernetes-action"] == "patch"
    assert patch["x-kubernetes-group-version-kind"]["kind"] == kind
    assert {"dryRun", "fieldManager", "fieldValidation", "force"} <= {item["name"] for item in patch["parameters"]}
    types = patch["requestBody"]["content"]
    assert ("application/strategic-merge-patch+json" in types) == takes_strategic
    assert {"application/merge-patch+json", "application/apply-patch+yaml"} <= set(types)


def test_operation_ids_are_unique() -> None:
    paths = v2_document(BUILTIN, [CRD])["paths"]
    ids = [
        operation["operationId"]
        for item in paths.values()
        for operation in item.values()
        if isinstance(operation, dict)
    ]
    assert len(ids) == len(set(ids))


def test_the_index_names_every_group_and_changes_with_the_schemas() -> None:
    index = v3_index(BUILTIN, [CRD])["paths"]
    assert list(index) == ["api/v1", "apis/apps/v1", "apis/x.dev/v1"]
    changed = json.loads(json.dumps(CRD))
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "Another thing."
    after = v3_index(BUILTIN, [changed])["paths"]
    assert [name for name in index if index[name] != after[name]] == ["apis/x.dev/v1"]


def test_building_is_deterministic() -> None:
    first, second = (json.dumps(v3_document("v1", BUILTIN, [])) for _ in range(2))
    assert first == second
