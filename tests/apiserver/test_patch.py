"""Merge, JSON and strategic-merge patches."""

import pytest

from tests.apiserver.client import JSON_PATCH, MERGE, STRATEGIC, Api, failure
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget


def container(name: str, **fields: object) -> dict:
    return {"name": name, "image": f"example.com/{name}:1", **fields}


async def test_a_merge_patch_sets_removes_and_leaves(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("m", {"a": "1", "b": "2"}, labels={"x": "1", "y": "2"}))).expect(201)
    patch = {"data": {"a": "9", "b": None, "c": "3"}, "metadata": {"labels": {"x": None}}}
    patched = (await api.patch(f"{configmaps}/m", patch, MERGE)).expect(200)
    assert patched["data"] == {"a": "9", "c": "3"}
    assert patched["metadata"]["labels"] == {"y": "2"}


async def test_a_merge_patch_replaces_lists_whole(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w", items=[{"name": "a"}, {"name": "b"}]))).expect(201)
    patched = (await api.patch(f"{widgets}/w", {"spec": {"items": [{"name": "c", "weight": 2}]}}, MERGE)).expect(200)
    assert patched["spec"]["items"] == [{"name": "c", "weight": 2}]


async def test_a_json_patch_runs_its_operations_in_order(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w", steps=["a", "b"], limits={"x/y": 1, "t~z": 2}))).expect(201)
    patch = [
        {"op": "add", "path": "/spec/steps/1", "value": "mid"},
        {"op": "add", "path": "/spec/steps/-", "value": "end"},
        {"op": "remove", "path": "/spec/steps/0"},
        {"op": "replace", "path": "/spec/limits/x~1y", "value": 7},
        {"op": "move", "from": "/spec/limits/t~0z", "path": "/spec/limits/moved"},
        {"op": "copy", "from": "/spec/limits/moved", "path": "/spec/limits/copied"},
    ]
    patched = (await api.patch(f"{widgets}/w", patch, JSON_PATCH)).expect(200)
    assert patched["spec"]["steps"] == ["mid", "b", "end"]
    assert patched["spec"]["limits"] == {"x/y": 7, "moved": 2, "copied": 2}


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ([{"op": "remove", "path": "/data/absent"}], 422),
        ([{"op": "test", "path": "/data/k", "value": "other"}], 422),
        ([{"op": "replace", "path": "/nothing/here", "value": 1}], 422),
        ({"data": {}}, 400),
        ("[{]", 400),
    ],
)
async def test_a_json_patch_that_cannot_run_changes_nothing(
    api: Api, configmaps: str, patch: object, status: int
) -> None:
    created = (await api.post(configmaps, configmap("m"))).expect(201)
    body = (await api.patch(f"{configmaps}/m", patch, JSON_PATCH)).expect(status)
    assert body["reason"] == {422: "Invalid", 400: "BadRequest"}[status]
    assert (await api.get(f"{configmaps}/m")).expect(200) == created


async def test_a_strategic_patch_merges_containers_by_name(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p", containers=[container("a"), container("b")]))).expect(201)
    patch = {"spec": {"containers": [{"name": "b", "image": "example.com/b:2"}]}}
    patched = (await api.patch(f"{pods}/p", patch, STRATEGIC)).expect(200)
    assert {item["name"]: item["image"] for item in patched["spec"]["containers"]} == {
        "a": "example.com/a:1",
        "b": "example.com/b:2",
    }


async def test_a_strategic_patch_merges_nested_lists(api: Api, namespace: str) -> None:
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    template = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [container("main", env=env), container("side")]},
    }
    selector = {"matchLabels": {"app": "x"}}
    body = {"metadata": {"name": "d"}, "spec": {"replicas": 0, "selector": selector, "template": template}}
    (await api.post(deployments, body)).expect(201)
    patch = {
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "main", "env": [{"name": "B", "value": "9"}, {"name": "C", "value": "3"}]},
                        {"name": "side", "$patch": "delete"},
                    ],
                    "$setElementOrder/containers": [{"name": "main"}],
                }
            }
        }
    }
    patched = (await api.patch(f"{deployments}/d", patch, STRATEGIC)).expect(200)
    (main,) = patched["spec"]["template"]["spec"]["containers"]
    assert {item["name"]: item["value"] for item in main["env"]} == {"A": "1", "B": "9", "C": "3"}


async def test_strategic_directives_replace_and_delete_from_primitives(api: Api, configmaps: str) -> None:
    metadata = {"labels": {"a": "1", "b": "2"}, "finalizers": ["example.com/one", "example.com/two"]}
    (await api.post(configmaps, configmap("m", {"x": "1", "y": "2"}, **metadata))).expect(201)
    patch = {
        "data": {"$patch": "replace", "z": "3"},
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/one"]},
    }
    patched = (await api.patch(f"{configmaps}/m", patch, STRATEGIC)).expect(200)
    assert patched["data"] == {"z": "3"}
    assert patched["metadata"]["finalizers"] == ["example.com/two"]
    assert patched["metadata"]["labels"] == {"a": "1", "b": "2"}


async def test_a_strategic_patch_merges_owner_references_by_uid(api: Api, configmaps: str) -> None:
    def owner(uid: str, name: str) -> dict:
        return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}

    (await api.post(configmaps, configmap("m", finalizers=["example.com/hold"]))).expect(201)
    for uid in ("u-1", "u-2"):
        patch = {"metadata": {"ownerReferences": [owner(uid, f"node-{uid}")]}}
        patched = (await api.patch(f"{configmaps}/m", patch, STRATEGIC)).expect(200)
    assert {item["uid"] for item in patched["metadata"]["ownerReferences"]} == {"u-1", "u-2"}
    patch = {"metadata": {"ownerReferences": [{"uid": "u-1", "$patch": "delete"}]}}
    patched = (await api.patch(f"{configmaps}/m", patch, STRATEGIC)).expect(200)
    assert [item["uid"] for item in patched["metadata"]["ownerReferences"]] == ["u-2"]


async def test_custom_kinds_take_no_strategic_patch(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w"))).expect(201)
    body = (await api.patch(f"{widgets}/w", {"spec": {"size": 2}}, STRATEGIC)).expect(415)
    assert body["reason"] == "UnsupportedMediaType"
    assert body["message"] == (
        "the body of the request was in an unknown format - accepted media types include: "
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    )


async def test_a_patch_cannot_rename(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("m"))).expect(201)
    body = (await api.patch(f"{configmaps}/m", {"metadata": {"name": "other"}})).expect(400)
    message = "the name of the object (other) does not match the name on the URL (m)"
    assert body == failure(400, "BadRequest", message)


async def test_the_result_of_a_patch_is_validated(api: Api, configmaps: str, widgets: str) -> None:
    (await api.post(configmaps, configmap("m"))).expect(201)
    (await api.patch(f"{configmaps}/m", {"metadata": {"labels": {"a": "not a value"}}})).expect(422)
    (await api.post(widgets, widget("w"))).expect(201)
    body = (await api.patch(f"{widgets}/w", {"spec": {"size": 99}})).expect(422)
    assert body["details"]["causes"][0]["field"] == "spec.size"
    assert (await api.get(f"{widgets}/w")).expect(200)["spec"]["size"] == 1


async def test_most_of_a_pod_is_fixed(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p"))).expect(201)
    body = (await api.patch(f"{pods}/p", {"spec": {"restartPolicy": "Never"}}, STRATEGIC)).expect(422)
    assert body["reason"] == "Invalid"
    assert 'Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than ' in body["message"]


async def test_status_is_reached_only_through_its_subresource(api: Api, widgets: str, pods: str) -> None:
    created = (await api.post(widgets, widget("w") | {"status": {"phase": "Early"}})).expect(201)
    assert "status" not in created
    patched = (await api.patch(f"{widgets}/w", {"status": {"phase": "No"}})).expect(200)
    assert "status" not in patched
    patched = (await api.patch(f"{widgets}/w/status", {"status": {"phase": "Yes"}, "spec": {"size": 9}})).expect(200)
    assert (patched["status"], patched["spec"]["size"]) == ({"phase": "Yes"}, 1)

    (await api.post(pods, pod("p"))).expect(201)
    condition = {"type": "Ready", "status": "True"}
    patch = {"status": {"phase": "Running", "conditions": [condition]}}
    assert (await api.patch(f"{pods}/p", patch, STRATEGIC)).expect(200)["status"]["phase"] == "Pending"
    running = (await api.patch(f"{pods}/p/status", patch, STRATEGIC)).expect(200)
    assert running["status"]["phase"] == "Running"
    other = {"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}
    both = (await api.patch(f"{pods}/p/status", other, STRATEGIC)).expect(200)
    assert {item["type"] for item in both["status"]["conditions"]} == {"Ready", "Initialized"}
