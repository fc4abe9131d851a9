"""Server-side apply: who owns which field, what a conflict says, and what letting go removes."""

import pytest

from tests.apiserver.client import MERGE, Api, Json, stable
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget


def owned(item: Json, manager: str) -> Json:
    """The fields of one manager, without the time of its entry."""
    (entry,) = (entry for entry in item["metadata"]["managedFields"] if entry["manager"] == manager)
    return {name: value for name, value in entry.items() if name != "time"}


def managers(item: Json) -> set[tuple[str, str]]:
    return {(entry["manager"], entry["operation"]) for entry in item["metadata"]["managedFields"]}


async def test_applying_creates_then_updates(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    created = (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(201)
    assert stable(created) == configmap("a", {"x": "1"})
    assert owned(created, "me") == {
        "manager": "me",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:x": {}}},
    }
    again = (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(200)
    assert again == created, "applying the same again writes nothing"
    changed = (await api.apply(path, configmap("a", {"x": "2"}), "me")).expect(200)
    assert changed["data"] == {"x": "2"}
    assert changed["metadata"]["uid"] == created["metadata"]["uid"]


async def test_a_field_that_its_only_owner_leaves_out_is_removed(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1", "y": "2"}, labels={"l": "1"}), "me")).expect(201)
    (await api.patch(path, {"data": {"z": "theirs"}}, MERGE, fieldManager="other")).expect(200)
    applied = (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(200)
    assert applied["data"] == {"x": "1", "z": "theirs"}
    assert "labels" not in applied["metadata"]
    assert owned(applied, "me")["fieldsV1"] == {"f:data": {"f:x": {}}}


async def test_a_field_with_two_owners_stays_until_both_let_go(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"shared": "1", "one": "1"}), "one")).expect(201)
    (await api.apply(path, configmap("a", {"shared": "1"}), "two")).expect(200)
    after = (await api.apply(path, configmap("a", {"one": "1"}), "one")).expect(200)
    assert after["data"] == {"one": "1", "shared": "1"}
    after = (await api.apply(path, configmap("a", {"two": "2"}), "two")).expect(200)
    assert after["data"] == {"one": "1", "two": "2"}


async def test_a_conflict_names_the_owner_and_the_field(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1"}), "first")).expect(201)
    refusal = (await api.apply(path, configmap("a", {"x": "2"}), "second")).expect(409)
    assert refusal == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'Apply failed with 1 conflict: conflict with "first": .data.x',
        "reason": "Conflict",
        "details": {
            "causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "first"', "field": ".data.x"}]
        },
        "code": 409,
    }
    assert (await api.get(path)).expect(200)["data"] == {"x": "1"}


async def test_several_conflicts_come_in_one_answer(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1", "y": "1"}), "first")).expect(201)
    body = (await api.apply(path, configmap("a", {"x": "2", "y": "2"}), "second")).expect(409)
    assert body["message"] == 'Apply failed with 2 conflicts: conflicts with "first":\n- .data.x\n- .data.y'
    assert [cause["field"] for cause in body["details"]["causes"]] == [".data.x", ".data.y"]


async def test_a_conflict_with_an_update_names_the_version_too(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(201)
    (await api.patch(path, {"data": {"x": "2"}}, MERGE, fieldManager="editor")).expect(200)
    body = (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(409)
    assert body["message"].startswith('Apply failed with 1 conflict: conflict with "editor" using v1')
    assert body["message"].endswith(": .data.x")


async def test_force_takes_the_field_from_its_owner(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1", "y": "1"}), "first")).expect(201)
    forced = (await api.apply(path, configmap("a", {"x": "2"}), "second", force="true")).expect(200)
    assert forced["data"] == {"x": "2", "y": "1"}
    assert owned(forced, "second")["fieldsV1"] == {"f:data": {"f:x": {}}}
    assert owned(forced, "first")["fieldsV1"] == {"f:data": {"f:y": {}}}


async def test_the_same_value_is_shared_without_conflict(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1"}), "first")).expect(201)
    shared = (await api.apply(path, configmap("a", {"x": "1"}), "second")).expect(200)
    assert managers(shared) == {("first", "Apply"), ("second", "Apply")}


async def test_an_update_takes_what_it_changes(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    applied = (await api.apply(path, configmap("a", {"x": "1", "y": "1"}), "me")).expect(201)
    applied["data"]["x"] = "2"
    updated = (await api.put(path, applied, fieldManager="editor")).expect(200)
    assert owned(updated, "me")["fieldsV1"] == {"f:data": {"f:y": {}}}
    assert owned(updated, "editor") == {
        "manager": "editor",
        "operation": "Update",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:x": {}}},
    }


async def test_a_plain_create_is_owned_by_its_creator(api: Api, configmaps: str) -> None:
    body = configmap("a", {"x": "1"}, labels={"l": "1"}, annotations={"n": "1"}, finalizers=["example.com/f"])
    created = (await api.post(configmaps, body, fieldManager="maker")).expect(201)
    assert owned(created, "maker") == {
        "manager": "maker",
        "operation": "Update",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:data": {".": {}, "f:x": {}},
            "f:metadata": {
                "f:annotations": {".": {}, "f:n": {}},
                "f:finalizers": {".": {}, 'v:"example.com/f"': {}},
                "f:labels": {".": {}, "f:l": {}},
            },
        },
    }


async def test_without_a_name_the_manager_is_the_user_agent(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("a"))).expect(201)
    (entry,) = created["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("Python", "Update")


async def test_lists_with_keys_are_merged_by_key(api: Api, pods: str) -> None:
    def with_containers(*names: str) -> Json:
        return pod("p", containers=[{"name": name, "image": "example.com/app:1"} for name in names])

    created = (await api.apply(f"{pods}/p", with_containers("a", "b"), "me")).expect(201)
    fields = owned(created, "me")["fieldsV1"]["f:spec"]
    entry = {".": {}, "f:image": {}, "f:name": {}}
    assert fields == {
        "f:containers": {'k:{"name":"a"}': entry, 'k:{"name":"b"}': entry},
        "f:schedulerName": {},
    }


async def test_lists_with_keys_of_custom_kinds_too(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    (await api.apply(path, widget("w", items=[{"name": "a", "value": "1"}]), "one")).expect(201)
    both = (await api.apply(path, widget("w", items=[{"name": "b", "value": "2"}]), "two")).expect(200)
    assert [(item["name"], item["value"]) for item in both["spec"]["items"]] == [("a", "1"), ("b", "2")]
    left = (await api.apply(path, widget("w", items=[]), "one")).expect(200)
    assert [item["name"] for item in left["spec"]["items"]] == ["b"]


async def test_sets_are_merged_and_plain_lists_are_atomic(api: Api, widgets: str) -> None:
    path = f"{widgets}/w"
    (await api.apply(path, widget("w", tags=["a", "b"], steps=["x"]), "one")).expect(201)
    both = (await api.apply(path, widget("w", tags=["c"]), "two")).expect(200)
    assert (both["spec"]["tags"], both["spec"]["steps"]) == (["a", "b", "c"], ["x"])
    refusal = (await api.apply(path, widget("w", steps=["y"]), "two")).expect(409)
    assert refusal["details"]["causes"][0]["field"] == ".spec.steps"
    fewer = (await api.apply(path, widget("w", tags=["b"], steps=["x"]), "one")).expect(200)
    assert fewer["spec"]["tags"] == ["b", "c"]


async def test_defaults_are_filled_in_but_not_owned_by_the_applier(api: Api, widgets: str) -> None:
    created = (await api.apply(f"{widgets}/w", widget("w"), "me")).expect(201)
    assert created["spec"] == {"size": 1, "color": "red", "replicas": 1, "nested": {"level": 3}}
    assert owned(created, "me")["fieldsV1"] == {"f:spec": {"f:size": {}}}


async def test_status_is_applied_through_its_subresource(api: Api, widgets: str) -> None:
    (await api.apply(f"{widgets}/w", widget("w"), "me")).expect(201)
    status = {"apiVersion": "battery.example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}
    applied = await api.apply(f"{widgets}/w/status", status | {"status": {"phase": "Ready"}}, "controller")
    assert applied.expect(200)["status"] == {"phase": "Ready"}
    assert owned(applied.body, "controller")["fieldsV1"]["f:status"] == {"f:phase": {}}
    spec_again = (await api.apply(f"{widgets}/w", widget("w", size=2), "me")).expect(200)
    assert spec_again["status"] == {"phase": "Ready"}


async def test_a_dry_run_of_apply_changes_nothing(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    (await api.apply(path, configmap("a", {"x": "1"}), "me", dryRun="All")).expect(201)
    (await api.get(path)).expect(404)
    created = (await api.apply(path, configmap("a", {"x": "1"}), "me")).expect(201)
    dry = (await api.apply(path, configmap("a", {"x": "2"}), "me", dryRun="All")).expect(200)
    assert dry["data"] == {"x": "2"}
    assert (await api.get(path)).expect(200) == created


async def test_apply_needs_a_manager_and_refuses_managed_fields(api: Api, configmaps: str) -> None:
    path = f"{configmaps}/a"
    body = (await api.call("PATCH", path, configmap("a"), content_type="application/apply-patch+yaml")).expect(422)
    assert "fieldManager" in body["message"]
    with_fields = configmap("a", managedFields=[{"manager": "x", "operation": "Apply"}])
    body = (await api.apply(path, with_fields, "me")).expect(400)
    assert body["message"] == "metadata.managedFields must be nil"


async def test_force_is_only_for_apply(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("a"))).expect(201)
    body = (await api.patch(f"{configmaps}/a", {"data": {}}, MERGE, force="true")).expect(422)
    assert "force" in body["message"]


async def test_an_apply_names_what_it_applies(api: Api, configmaps: str) -> None:
    (await api.apply(f"{configmaps}/a", {"metadata": {"name": "a"}, "data": {}}, "me")).expect(400)
    (await api.apply(f"{configmaps}/a", configmap("b"), "me")).expect(400)


async def test_managed_fields_can_be_cleared(api: Api, configmaps: str) -> None:
    (await api.apply(f"{configmaps}/a", configmap("a"), "me")).expect(201)
    cleared = (await api.patch(f"{configmaps}/a", {"metadata": {"managedFields": [{}]}}, MERGE)).expect(200)
    assert "managedFields" not in cleared["metadata"]
    assert cleared["data"] == {"k": "v"}


@pytest.mark.current_kubernetes_only("managers per subresource")
async def test_a_manager_of_status_is_another_than_that_of_the_rest(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w"), fieldManager="me")).expect(201)
    patched = await api.patch(f"{widgets}/w/status", {"status": {"phase": "Ready"}}, MERGE, fieldManager="me")
    entries = patched.expect(200)["metadata"]["managedFields"]
    assert {entry.get("subresource", ""): set(entry["fieldsV1"]) for entry in entries} == {
        "": {"f:spec"},
        "status": {"f:status"},
    }
