"""Discovery, OpenAPI, health, version."""

import json

import pytest

from tests.apiserver.client import Api, Json, eventually

AGGREGATED = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json"


CORE_RESOURCES = {
    "bindings",
    "configmaps",
    "endpoints",
    "events",
    "namespaces",
    "namespaces/finalize",
    "namespaces/status",
    "nodes",
    "nodes/status",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "pods/binding",
    "pods/eviction",
    "pods/exec",
    "pods/log",
    "pods/status",
    "secrets",
    "serviceaccounts",
    "services",
    "services/status",
}


def by_name(listing: Json) -> dict[str, Json]:
    return {item["name"]: item for item in listing["resources"]}


async def test_the_core_versions(api: Api) -> None:
    versions = (await api.get("/api")).expect(200)
    assert (versions["kind"], versions["versions"]) == ("APIVersions", ["v1"])
    assert versions["serverAddressByClientCIDRs"][0]["clientCIDR"] == "0.0.0.0/0"


async def test_the_core_resources(api: Api) -> None:
    listing = (await api.get("/api/v1")).expect(200)
    assert (listing["kind"], listing["groupVersion"]) == ("APIResourceList", "v1")
    resources = by_name(listing)
    pods = resources["pods"]
    assert (pods["kind"], pods["namespaced"], pods["shortNames"], pods["categories"]) == ("Pod", True, ["po"], ["all"])
    assert set(pods["verbs"]) == {
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    }  # fmt: skip
    assert resources["namespaces"]["namespaced"] is False
    assert set(resources["pods/status"]["verbs"]) == {"get", "patch", "update"}
    assert set(by_name(listing)) >= CORE_RESOURCES


async def test_the_groups(api: Api) -> None:
    groups = (await api.get("/apis")).expect(200)
    assert groups["kind"] == "APIGroupList"
    versions = {group["name"]: [version["groupVersion"] for version in group["versions"]] for group in groups["groups"]}
    for expected in (
        "apps/v1",
        "batch/v1",
        "coordination.k8s.io/v1",
        "rbac.authorization.k8s.io/v1",
        "apiextensions.k8s.io/v1",
    ):
        assert expected in versions[expected.split("/")[0]]
    apps = next(group for group in groups["groups"] if group["name"] == "apps")
    assert apps["preferredVersion"] == {"groupVersion": "apps/v1", "version": "v1"}
    assert (await api.get("/apis/apps")).expect(200)["preferredVersion"] == apps["preferredVersion"]


async def test_a_custom_group(api: Api, widgets: str) -> None:
    del widgets

    async def resources() -> Json | None:
        answer = await api.get("/apis/battery.example.com/v1")
        return by_name(answer.body) if answer.status == 200 and "widgets" in by_name(answer.body) else None

    found = await eventually(resources, "widgets are discovered")
    widget = found["widgets"]
    assert {name: widget[name] for name in ("singularName", "namespaced", "kind", "shortNames", "categories")} == {
        "singularName": "widget",
        "namespaced": True,
        "kind": "Widget",
        "shortNames": ["wt"],
        "categories": ["battery"],
    }
    assert found["widgets/status"]["verbs"] == ["get", "patch", "update"]
    scale = found["widgets/scale"]
    assert (scale["group"], scale["version"], scale["kind"]) == ("autoscaling", "v1", "Scale")

    async def is_listed() -> bool:
        groups = (await api.get("/apis")).expect(200)["groups"]
        return "battery.example.com" in {group["name"] for group in groups}

    await eventually(is_listed, "the group is listed")


async def test_an_unknown_group_is_404(api: Api) -> None:
    (await api.get("/apis/absent.example.com")).expect(404)
    (await api.get("/apis/absent.example.com/v1")).expect(404)
    (await api.get("/apis/apps/v9")).expect(404)


@pytest.mark.current_kubernetes_only("aggregated discovery")
async def test_discovery_in_one_request(api: Api, widgets: str) -> None:
    del widgets
    core = (await api.get("/api", accept=AGGREGATED)).expect(200)
    assert (core["kind"], core["apiVersion"]) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io/v2")
    (group,) = core["items"]
    assert "name" not in group["metadata"]
    resources = {item["resource"]: item for item in group["versions"][0]["resources"]}
    pods = resources["pods"]
    assert (pods["scope"], pods["responseKind"]["kind"], pods["shortNames"]) == ("Namespaced", "Pod", ["po"])
    assert "log" in {item["subresource"] for item in pods["subresources"]}

    async def custom() -> Json | None:
        groups = (await api.get("/apis", accept=AGGREGATED)).expect(200)
        found = {item["metadata"]["name"]: item for item in groups["items"]}.get("battery.example.com")
        names = {item["resource"] for item in found["versions"][0]["resources"]} if found else set()
        return found if "widgets" in names else None

    found = await eventually(custom, "widgets are in aggregated discovery")
    version = found["versions"][0]
    assert (version["version"], version["freshness"]) == ("v1", "Current")
    widget = next(item for item in version["resources"] if item["resource"] == "widgets")
    assert widget["responseKind"] == {"group": "battery.example.com", "version": "v1", "kind": "Widget"}
    assert {item["subresource"] for item in widget["subresources"]} == {"status", "scale"}


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
async def test_health_is_plain_ok(api: Api, path: str) -> None:
    assert (await api.get(path)).expect(200) == "ok"


async def test_version_names_a_kubernetes(api: Api) -> None:
    version = (await api.get("/version")).expect(200)
    assert {"major", "minor", "gitVersion", "gitCommit", "goVersion", "platform"} <= set(version)
    assert version["gitVersion"].startswith(f"v{version['major']}.{version['minor'].rstrip('+')}.")


async def test_openapi_v2_describes_core_and_custom_kinds(api: Api, widgets: str) -> None:
    del widgets

    async def definitions() -> Json | None:
        text = (await api.get("/openapi/v2")).expect(200)
        document = json.loads(text) if isinstance(text, str) else text
        assert document["swagger"] == "2.0"
        found = document["definitions"]
        return found if "com.example.battery.v1.Widget" in found else None

    found = await eventually(definitions, "Widget is in OpenAPI v2")
    widget = found["com.example.battery.v1.Widget"]
    assert widget["x-kubernetes-group-version-kind"] == [
        {"group": "battery.example.com", "kind": "Widget", "version": "v1"}
    ]
    spec = widget["properties"]["spec"]
    assert spec["description"] == "What the widget should be."
    assert spec["properties"]["size"]["description"] == "How big it is."
    assert spec["properties"]["size"]["type"] == "integer"
    assert spec["required"] == ["size"]
    pod = found["io.k8s.api.core.v1.Pod"]
    assert pod["properties"]["spec"]["$ref"] == "#/definitions/io.k8s.api.core.v1.PodSpec"
    containers = found["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["items"] == {"$ref": "#/definitions/io.k8s.api.core.v1.Container"}


async def test_openapi_v2_comes_in_the_binary_form_that_kubectl_reads(api: Api) -> None:
    answer = await api.session.get(
        f"{api.url}/openapi/v2",
        headers={
            "Authorization": f"Bearer {api.token}",
            "Accept": "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        },
    )
    async with answer:
        content = await answer.read()
    assert answer.status == 200
    assert content.startswith(b"\n\x032.0"), "field 1 of the document is the Swagger version"


@pytest.mark.current_kubernetes_only("OpenAPI v3")
async def test_openapi_v3_is_indexed_by_group_version(api: Api, widgets: str) -> None:
    del widgets

    async def index() -> Json | None:
        paths = (await api.get("/openapi/v3")).expect(200)["paths"]
        return paths if "apis/battery.example.com/v1" in paths else None

    paths = await eventually(index, "the custom group is in OpenAPI v3")
    assert {"api/v1", "apis/apps/v1", "apis/battery.example.com/v1"} <= set(paths)
    relative = paths["apis/battery.example.com/v1"]["serverRelativeURL"]
    assert relative.startswith("/openapi/v3/apis/battery.example.com/v1?hash=")
    document = (await api.get("/openapi/v3/apis/battery.example.com/v1")).expect(200)
    assert document["openapi"].startswith("3.0")
    schema = document["components"]["schemas"]["com.example.battery.v1.Widget"]
    assert schema["properties"]["spec"]["properties"]["size"]["maximum"] == 10
    path = "/apis/battery.example.com/v1/namespaces/{namespace}/widgets/{name}"
    parameters = {item["name"] for item in document["paths"][path]["patch"]["parameters"]}
    assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= parameters
