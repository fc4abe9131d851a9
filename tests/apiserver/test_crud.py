"""Create, read, update, delete: status codes and the bodies that come with them."""

import re

from tests.apiserver.client import Api, failure, stable
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget


async def test_a_created_object_comes_back_whole(api: Api, configmaps: str, namespace: str) -> None:
    created = (await api.post(configmaps, configmap("a", {"x": "1"}))).expect(201)
    assert stable(created) == configmap("a", {"x": "1"})
    assert created["metadata"]["namespace"] == namespace
    assert (await api.get(f"{configmaps}/a")).expect(200) == created


async def test_kind_and_version_may_be_left_out_of_a_body(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, {"metadata": {"name": "bare"}})).expect(201)
    assert (created["kind"], created["apiVersion"]) == ("ConfigMap", "v1")


async def test_a_body_may_be_yaml(api: Api, configmaps: str) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yam\ndata:\n  x: '1'\n"
    created = (await api.post(configmaps, text, content_type="application/yaml")).expect(201)
    assert stable(created) == configmap("yam", {"x": "1"})


async def test_an_absent_object_is_404(api: Api, configmaps: str) -> None:
    expected = failure(404, "NotFound", 'configmaps "nope" not found', name="nope", kind="configmaps")
    for method in ("GET", "DELETE"):
        assert (await api.call(method, f"{configmaps}/nope")).expect(404) == expected
    assert (await api.patch(f"{configmaps}/nope", {"data": {}})).expect(404) == expected


async def test_putting_an_absent_object_creates_only_kinds_that_allow_it(api: Api, namespace: str, pods: str) -> None:
    expected = failure(404, "NotFound", 'pods "nope" not found', name="nope", kind="pods")
    assert (await api.put(f"{pods}/nope", pod("nope"))).expect(404) == expected
    lease = {"metadata": {"name": "made"}, "spec": {"holderIdentity": "me"}}
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    created = (await api.put(f"{leases}/made", lease)).expect(201)
    assert created["spec"] == {"holderIdentity": "me"}


async def test_an_absent_custom_object_names_its_group(api: Api, widgets: str) -> None:
    details = {"name": "nope", "group": "battery.example.com", "kind": "widgets"}
    expected = failure(404, "NotFound", 'widgets.battery.example.com "nope" not found', **details)
    assert (await api.get(f"{widgets}/nope")).expect(404) == expected


async def test_an_unknown_path_is_404(api: Api, namespace: str) -> None:
    message = "the server could not find the requested resource"
    answer = await api.get(f"/api/v1/namespaces/{namespace}/gadgets")
    assert answer.expect(404) == {**failure(404, "NotFound", message), "details": {}}
    assert (await api.get("/apis/nothing.example.com/v1/things")).status == 404
    assert (await api.get("/nonsense")).status == 404


async def test_creating_twice_is_409_already_exists(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("twice"))).expect(201)
    message = 'configmaps "twice" already exists'
    expected = failure(409, "AlreadyExists", message, name="twice", kind="configmaps")
    assert (await api.post(configmaps, configmap("twice"))).expect(409) == expected


async def test_an_update_replaces_everything_the_client_may_write(api: Api, configmaps: str) -> None:
    before = (await api.post(configmaps, configmap("u", {"x": "1"}, labels={"a": "b"}))).expect(201)
    after = (await api.put(f"{configmaps}/u", configmap("u", {"y": "2"}))).expect(200)
    assert stable(after) == configmap("u", {"y": "2"})
    for kept in ("uid", "creationTimestamp"):
        assert after["metadata"][kept] == before["metadata"][kept]
    assert after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]


async def test_deleting_answers_with_a_status_that_names_the_object(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("d"))).expect(201)
    assert (await api.delete(f"{configmaps}/d")).expect(200) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": "d", "kind": "configmaps", "uid": created["metadata"]["uid"]},
    }
    (await api.get(f"{configmaps}/d")).expect(404)


async def test_deleting_a_custom_object_answers_with_a_status(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("d"))).expect(201)
    details = {"name": "d", "group": "battery.example.com", "kind": "widgets", "uid": created["metadata"]["uid"]}
    assert (await api.delete(f"{widgets}/d")).expect(200)["details"] == details


async def test_deleting_a_collection_deletes_what_the_selector_picks(api: Api, configmaps: str) -> None:
    for name in ("a", "b", "c"):
        labels = {"doomed": "no" if name == "c" else "yes"}
        (await api.post(configmaps, configmap(name, labels=labels))).expect(201)
    deleted = (await api.delete(configmaps, labelSelector="doomed=yes")).expect(200)
    assert deleted["kind"] == "ConfigMapList"
    assert sorted(item["metadata"]["name"] for item in deleted["items"]) == ["a", "b"]
    left = (await api.get(configmaps, labelSelector="doomed")).expect(200)
    assert [item["metadata"]["name"] for item in left["items"]] == ["c"]


async def test_a_body_that_is_no_json_is_400(api: Api, configmaps: str) -> None:
    body = (await api.post(configmaps, "{nonsense")).expect(400)
    assert (body["kind"], body["status"], body["reason"], body["code"]) == ("Status", "Failure", "BadRequest", 400)


async def test_a_field_of_the_wrong_type_is_400(api: Api, configmaps: str) -> None:
    body = (await api.post(configmaps, {"metadata": {"name": "x"}, "data": {"n": 1}})).expect(400)
    assert body["reason"] == "BadRequest"
    assert re.search(r"ConfigMap.*cannot (be handled|unmarshal)|unmarshal", body["message"]), body["message"]


async def test_a_body_of_another_kind_is_400(api: Api, configmaps: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}
    body = (await api.post(configmaps, secret)).expect(400)
    assert body["reason"] == "BadRequest"
    assert "Secret" in body["message"]
    assert "ConfigMap" in body["message"]


async def test_a_body_that_names_another_object_is_400(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("one"))).expect(201)
    message = "the name of the object (two) does not match the name on the URL (one)"
    assert (await api.put(f"{configmaps}/one", configmap("two"))).expect(400) == failure(400, "BadRequest", message)


async def test_a_body_that_names_another_namespace_is_400(api: Api, configmaps: str) -> None:
    body = (await api.post(configmaps, configmap("x", namespace="elsewhere"))).expect(400)
    message = "the namespace of the provided object does not match the namespace sent on the request"
    assert body == failure(400, "BadRequest", message)


async def test_creating_in_an_absent_namespace_is_404(api: Api) -> None:
    answer = await api.post("/api/v1/namespaces/absent/configmaps", configmap("x"))
    expected = failure(404, "NotFound", 'namespaces "absent" not found', name="absent", kind="namespaces")
    assert answer.expect(404) == expected


async def test_listing_an_absent_namespace_is_an_empty_list(api: Api) -> None:
    listing = (await api.get("/api/v1/namespaces/absent/configmaps")).expect(200)
    assert (listing["kind"], listing["apiVersion"], listing["items"]) == ("ConfigMapList", "v1", [])
    assert int(listing["metadata"]["resourceVersion"]) > 0


async def test_an_unknown_content_type_is_415(api: Api, configmaps: str) -> None:
    body = (await api.post(configmaps, "x", content_type="text/csv")).expect(415)
    assert (body["reason"], body["code"]) == ("UnsupportedMediaType", 415)
    (await api.post(configmaps, configmap("m"))).expect(201)
    body = (await api.patch(f"{configmaps}/m", {"data": {}}, content_type="application/json")).expect(415)
    assert (body["reason"], body["code"]) == ("UnsupportedMediaType", 415)


async def test_what_cannot_be_accepted_is_406(api: Api, configmaps: str) -> None:
    body = (await api.get(configmaps, accept="text/csv")).expect(406)
    assert (body["reason"], body["code"]) == ("NotAcceptable", 406)


async def test_a_method_that_a_resource_lacks_is_405(api: Api, configmaps: str) -> None:
    body = (await api.call("POST", f"{configmaps}/x", configmap("x"))).expect(405)
    assert body["reason"] == "MethodNotAllowed"


async def test_answers_may_be_asked_for_as_yaml(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("y", {"x": "1"}))).expect(201)
    answer = await api.get(f"{configmaps}/y", accept="application/yaml")
    assert answer.headers["Content-Type"] == "application/yaml"
    assert "\nkind: ConfigMap\n" in answer.expect(200)


async def test_a_dry_run_answers_as_if_and_stores_nothing(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("dry", {"x": "1"}), dryRun="All")).expect(201)
    assert stable(created) == configmap("dry", {"x": "1"})
    assert created["metadata"]["uid"]
    (await api.get(f"{configmaps}/dry")).expect(404)

    stored = (await api.post(configmaps, configmap("wet", {"x": "1"}))).expect(201)
    replaced = (await api.put(f"{configmaps}/wet", configmap("wet", {"x": "2"}), dryRun="All")).expect(200)
    assert replaced["data"] == {"x": "2"}
    patched = (await api.patch(f"{configmaps}/wet", {"data": {"y": "3"}}, dryRun="All")).expect(200)
    assert patched["data"] == {"x": "1", "y": "3"}
    (await api.delete(f"{configmaps}/wet", dryRun="All")).expect(200)
    assert (await api.get(f"{configmaps}/wet")).expect(200) == stored


async def test_a_dry_run_refuses_what_would_be_refused(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("Not_A_Name"), dryRun="All")).expect(422)
    body = (await api.post(configmaps, configmap("ok"), dryRun="Some")).expect(422)
    assert body["reason"] == "Invalid"
