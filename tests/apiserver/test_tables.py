"""Tables: what `kubectl get` shows is made by the server."""

import json
import re

from tests.apiserver.client import Api, Json
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def columns(table: Json, priority: int | None = None) -> list[str]:
    return [item["name"] for item in table["columnDefinitions"] if priority in (None, item["priority"])]


async def test_a_custom_kind_shows_its_printer_columns(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w", size=3, color="green"))).expect(201)
    table = (await api.get(widgets, accept=TABLE)).expect(200)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert columns(table) == ["Name", "Size", "Color", "Level", "Age"]
    assert columns(table, priority=1) == ["Level"]
    size = next(item for item in table["columnDefinitions"] if item["name"] == "Size")
    assert size == {"name": "Size", "type": "integer", "format": "", "description": "How big it is.", "priority": 0}
    (row,) = table["rows"]
    assert row["cells"][:4] == ["w", 3, "green", 3]
    assert re.fullmatch(r"\d+s", row["cells"][4])
    assert (row["object"]["kind"], row["object"]["metadata"]["name"]) == ("PartialObjectMetadata", "w")
    assert int(table["metadata"]["resourceVersion"]) > 0


async def test_a_missing_value_is_an_empty_cell(api: Api, widgets: str) -> None:
    bare = widget("w")
    (await api.post(widgets, bare)).expect(201)
    (await api.patch(f"{widgets}/w", {"spec": {"nested": {"on": True}}})).expect(200)
    table = (await api.get(f"{widgets}/w", accept=TABLE)).expect(200)
    assert [row["cells"][0] for row in table["rows"]] == ["w"]


async def test_a_table_can_carry_whole_objects_or_none(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    table = (await api.get(widgets, accept=TABLE, includeObject="Object")).expect(200)
    assert table["rows"][0]["object"] == created
    table = (await api.get(widgets, accept=TABLE, includeObject="None")).expect(200)
    assert table["rows"][0]["object"] is None


async def test_pods_show_ready_status_and_restarts(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p"))).expect(201)
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    container = {"name": "main", "ready": True, "restartCount": 2, "image": "i", "imageID": "x", "state": state}
    status = {"phase": "Running", "podIP": "127.0.0.9", "containerStatuses": [container]}
    (await api.patch(f"{pods}/p/status", {"status": status})).expect(200)
    table = (await api.get(pods, accept=TABLE)).expect(200)
    assert columns(table, priority=0) == ["Name", "Ready", "Status", "Restarts", "Age"]
    assert columns(table, priority=1) == ["IP", "Node", "Nominated Node", "Readiness Gates"]
    cells = table["rows"][0]["cells"]
    assert cells[:3] == ["p", "1/1", "Running"]
    assert str(cells[3]).startswith("2")
    assert cells[5:] == ["127.0.0.9", "<none>", "<none>", "<none>"]


async def test_a_pod_that_fails_shows_why(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p", restartPolicy="Never"))).expect(201)
    state = {"terminated": {"exitCode": 3, "reason": "Error"}}
    container = {"name": "main", "ready": False, "restartCount": 0, "image": "i", "imageID": "", "state": state}
    status = {"phase": "Failed", "containerStatuses": [container]}
    (await api.patch(f"{pods}/p/status", {"status": status})).expect(200)
    table = (await api.get(f"{pods}/p", accept=TABLE)).expect(200)
    assert table["rows"][0]["cells"][:3] == ["p", "0/1", "Error"]
    assert {"name": "Status", "type": "string", "format": ""}.items() <= table["columnDefinitions"][2].items()


async def test_a_pod_being_deleted_shows_terminating(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p", nodeName="absent-node"))).expect(201)
    (await api.delete(f"{pods}/p")).expect(200)
    table = (await api.get(f"{pods}/p", accept=TABLE)).expect(200)
    assert table["rows"][0]["cells"][2] == "Terminating"
    (await api.delete(f"{pods}/p", gracePeriodSeconds=0)).expect(200)


async def test_core_kinds_have_columns_of_their_own(api: Api, namespace: str, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c", {"a": "1", "b": "2"}, labels={"mine": "yes"}))).expect(201)
    table = (await api.get(configmaps, accept=TABLE, labelSelector="mine")).expect(200)
    assert (columns(table), table["rows"][0]["cells"][:2]) == (["Name", "Data", "Age"], ["c", 2])

    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    (await api.post(secrets, {"metadata": {"name": "s"}, "stringData": {"k": "v"}})).expect(201)
    table = (await api.get(f"{secrets}/s", accept=TABLE)).expect(200)
    assert (columns(table), table["rows"][0]["cells"][:3]) == (["Name", "Type", "Data", "Age"], ["s", "Opaque", 1])

    table = (await api.get(f"/api/v1/namespaces/{namespace}", accept=TABLE)).expect(200)
    assert columns(table) == ["Name", "Status", "Age"]
    assert table["rows"][0]["cells"][:2] == [namespace, "Active"]

    services = f"/api/v1/namespaces/{namespace}/services"
    service = {"metadata": {"name": "s"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}
    (await api.post(services, service)).expect(201)
    table = (await api.get(f"{services}/s", accept=TABLE)).expect(200)
    assert columns(table, 0) == ["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"]
    assert table["rows"][0]["cells"][:5] == ["s", "ClusterIP", "None", "<none>", "80/TCP"]


async def test_a_watch_can_be_a_stream_of_tables(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    version = created["metadata"]["resourceVersion"]
    url = f"{api.url}{widgets}?watch=true&resourceVersion={version}"
    async with api.session.get(url, headers={"Authorization": f"Bearer {api.token}", "Accept": TABLE}) as response:
        (await api.patch(f"{widgets}/w", {"spec": {"size": 4}})).expect(200)
        (await api.patch(f"{widgets}/w", {"spec": {"size": 5}})).expect(200)
        first, second = [json.loads(await response.content.readline()) for _ in range(2)]
    assert (first["type"], first["object"]["kind"]) == ("MODIFIED", "Table")
    assert columns(first["object"]) == ["Name", "Size", "Color", "Level", "Age"]
    assert first["object"]["rows"][0]["cells"][:2] == ["w", 4]
    # Only the first table of a stream says what the columns are.
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][:2] == ["w", 5]


async def test_metadata_alone_can_be_asked_for(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"
    partial = (await api.get(f"{widgets}/w", accept=accept)).expect(200)
    assert partial == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": created["metadata"],
    }
    accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
    listing = (await api.get(widgets, accept=accept)).expect(200)
    assert listing["kind"] == "PartialObjectMetadataList"
    assert [set(item) for item in listing["items"]] in ([{"metadata"}], [{"kind", "apiVersion", "metadata"}])
