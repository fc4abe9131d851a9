"""Deletion: finalizers, grace, garbage collection, namespaces."""

import pytest

from tests.apiserver.client import MERGE, Api, Json, eventually, gone
from tests.apiserver.objects import configmap, owner_reference, pod
from tests.apiserver.widgets import widget


async def test_a_finalizer_holds_a_deleted_object_until_it_is_removed(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("f", finalizers=["example.com/hold"]))).expect(201)
    path = f"{configmaps}/f"
    answered = (await api.delete(path)).expect(200)
    assert (answered["kind"], answered["metadata"]["finalizers"]) == ("ConfigMap", ["example.com/hold"])
    held = (await api.get(path)).expect(200)
    assert held["metadata"]["deletionTimestamp"] == answered["metadata"]["deletionTimestamp"]
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0

    (await api.patch(path, {"data": {"still": "writable"}})).expect(200)
    (await api.delete(path)).expect(200)
    (await api.patch(path, {"metadata": {"finalizers": None}})).expect(200)
    (await api.get(path)).expect(404)


async def test_no_finalizer_can_be_added_to_what_is_being_deleted(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("f", finalizers=["example.com/one"]))).expect(201)
    path = f"{configmaps}/f"
    (await api.delete(path)).expect(200)
    body = (await api.patch(path, {"metadata": {"finalizers": ["example.com/one", "example.com/two"]}})).expect(422)
    # Some servers validate metadata twice and say so twice.
    assert {tuple(sorted(cause.items())) for cause in body["details"]["causes"]} == {
        (
            ("field", "metadata.finalizers"),
            (
                "message",
                "Forbidden: no new finalizers can be added if the object is being deleted, "
                'found new finalizers []string{"example.com/two"}',
            ),
            ("reason", "FieldValueForbidden"),
        )
    }


async def test_a_watcher_sees_the_mark_and_then_the_deletion(api: Api, widgets: str) -> None:
    body = widget("f")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    created = (await api.post(widgets, body)).expect(201)
    async with api.watch(widgets, resourceVersion=created["metadata"]["resourceVersion"]) as watch:
        (await api.delete(f"{widgets}/f")).expect(200)
        (await api.patch(f"{widgets}/f", {"metadata": {"finalizers": []}})).expect(200)
        marked, deleted = await watch.take(2)
    assert (marked["type"], deleted["type"]) == ("MODIFIED", "DELETED")
    assert marked["object"]["metadata"]["deletionTimestamp"]
    assert marked["object"]["metadata"]["generation"] == 2


async def test_an_unscheduled_pod_goes_at_once(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p"))).expect(201)
    deleted = (await api.delete(f"{pods}/p")).expect(200)
    assert deleted["kind"] == "Pod"
    (await api.get(f"{pods}/p")).expect(404)


async def test_a_bound_pod_is_given_its_grace(api: Api, pods: str) -> None:
    # A pod bound to a node that does not exist: nobody but the test ends it.
    (await api.post(pods, pod("p", nodeName="absent-node", terminationGracePeriodSeconds=7))).expect(201)
    deleted = (await api.delete(f"{pods}/p")).expect(200)
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 7
    assert deleted["metadata"]["deletionTimestamp"]
    waiting = (await api.get(f"{pods}/p")).expect(200)
    assert waiting["metadata"]["deletionTimestamp"] == deleted["metadata"]["deletionTimestamp"]

    shorter = (await api.delete(f"{pods}/p", {"gracePeriodSeconds": 2})).expect(200)
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 2
    longer = (await api.delete(f"{pods}/p", {"gracePeriodSeconds": 60})).expect(200)
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 2

    (await api.delete(f"{pods}/p", {"gracePeriodSeconds": 0})).expect(200)
    (await api.get(f"{pods}/p")).expect(404)


async def test_the_grace_may_be_given_in_the_query(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p", nodeName="absent-node"))).expect(201)
    deleted = (await api.delete(f"{pods}/p", gracePeriodSeconds=3)).expect(200)
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 3
    (await api.delete(f"{pods}/p", gracePeriodSeconds=0)).expect(200)
    (await api.get(f"{pods}/p")).expect(404)


async def test_a_pod_that_has_ended_goes_at_once(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p", nodeName="absent-node"))).expect(201)
    (await api.patch(f"{pods}/p/status", {"status": {"phase": "Succeeded"}})).expect(200)
    (await api.delete(f"{pods}/p")).expect(200)
    (await api.get(f"{pods}/p")).expect(404)


async def family(api: Api, configmaps: str, **reference: bool) -> tuple[str, str]:
    """Paths of an owner and of its dependent."""
    owner = (await api.post(configmaps, configmap("owner"))).expect(201)
    child = configmap("child", ownerReferences=[owner_reference(owner, **reference)])
    (await api.post(configmaps, child)).expect(201)
    return f"{configmaps}/owner", f"{configmaps}/child"


async def test_in_the_background_the_owner_goes_first(api: Api, configmaps: str) -> None:
    owner, child = await family(api, configmaps)
    (await api.delete(owner, {"propagationPolicy": "Background"})).expect(200)
    (await api.get(owner)).expect(404)
    await gone(api, child)


async def test_background_is_the_default(api: Api, configmaps: str) -> None:
    owner, child = await family(api, configmaps)
    (await api.delete(owner)).expect(200)
    await gone(api, child)


async def test_in_the_foreground_the_owner_waits_for_its_dependents(api: Api, configmaps: str) -> None:
    owner, child = await family(api, configmaps, blockOwnerDeletion=True)
    (await api.patch(child, {"metadata": {"finalizers": ["example.com/hold"]}})).expect(200)
    (await api.delete(owner, {"propagationPolicy": "Foreground"})).expect(200)
    waiting = (await api.get(owner)).expect(200)
    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert waiting["metadata"]["deletionTimestamp"]

    async def is_marked() -> bool:
        return "deletionTimestamp" in (await api.get(child)).expect(200)["metadata"]

    await eventually(is_marked, "the dependent is being deleted")
    (await api.get(owner)).expect(200)
    (await api.patch(child, {"metadata": {"finalizers": None}})).expect(200)
    await gone(api, child)
    await gone(api, owner)


async def test_orphans_stay_and_forget_their_owner(api: Api, configmaps: str) -> None:
    owner, child = await family(api, configmaps)
    (await api.delete(owner, {"propagationPolicy": "Orphan"})).expect(200)
    await gone(api, owner)
    left = (await api.get(child)).expect(200)
    assert "ownerReferences" not in left["metadata"]


async def test_the_policy_may_be_given_in_the_query(api: Api, configmaps: str) -> None:
    owner, child = await family(api, configmaps)
    (await api.delete(owner, propagationPolicy="Orphan")).expect(200)
    await gone(api, owner)
    (await api.get(child)).expect(200)


async def test_an_unknown_policy_is_refused(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c"))).expect(201)
    body = (await api.delete(f"{configmaps}/c", {"propagationPolicy": "Sideways"})).expect(422)
    assert body["reason"] == "Invalid"
    (await api.get(f"{configmaps}/c")).expect(200)


async def test_a_dependent_with_another_owner_stays(api: Api, configmaps: str) -> None:
    first = (await api.post(configmaps, configmap("first"))).expect(201)
    second = (await api.post(configmaps, configmap("second"))).expect(201)
    references = [owner_reference(first), owner_reference(second)]
    (await api.post(configmaps, configmap("child", ownerReferences=references))).expect(201)
    (await api.delete(f"{configmaps}/first")).expect(200)

    async def has_one_owner() -> bool:
        child = (await api.get(f"{configmaps}/child")).expect(200)
        return [item["name"] for item in child["metadata"]["ownerReferences"]] == ["second"]

    await eventually(has_one_owner, "the reference to the deleted owner is dropped")
    (await api.delete(f"{configmaps}/second")).expect(200)
    await gone(api, f"{configmaps}/child")


async def test_a_dependent_of_what_never_was_is_collected(api: Api, configmaps: str) -> None:
    ghost = {"apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "00000000-0000-0000-0000-00000000dead"}
    (await api.post(configmaps, configmap("child", ownerReferences=[ghost]))).expect(201)
    await gone(api, f"{configmaps}/child")


async def test_grandchildren_go_too(api: Api, configmaps: str, namespace: str) -> None:
    owner = (await api.post(configmaps, configmap("owner"))).expect(201)
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    secret = {"metadata": {"name": "child", "ownerReferences": [owner_reference(owner)]}}
    child = (await api.post(secrets, secret)).expect(201)
    (await api.post(configmaps, configmap("grandchild", ownerReferences=[owner_reference(child)]))).expect(201)
    (await api.delete(f"{configmaps}/owner")).expect(200)
    await gone(api, f"{secrets}/child")
    await gone(api, f"{configmaps}/grandchild")


async def test_a_reference_needs_all_its_fields(api: Api, configmaps: str) -> None:
    reference = {"apiVersion": "v1", "kind": "", "name": "x", "uid": "u"}
    body = (await api.post(configmaps, configmap("c", ownerReferences=[reference]))).expect(422)
    assert body["reason"] == "Invalid"


async def test_only_one_owner_is_the_controller(api: Api, configmaps: str) -> None:
    base = {"apiVersion": "v1", "kind": "ConfigMap", "controller": True}
    references = [base | {"name": name, "uid": f"uid-{name}"} for name in ("a", "b")]
    body = (await api.post(configmaps, configmap("c", ownerReferences=references))).expect(422)
    assert "Only one reference can have Controller set to true" in body["message"]


async def test_a_deleted_namespace_takes_everything_with_it(
    api: Api, namespace: str, configmaps: str, pods: str
) -> None:
    (await api.post(configmaps, configmap("c"))).expect(201)
    (await api.post(pods, pod("p"))).expect(201)
    path = f"/api/v1/namespaces/{namespace}"
    deleted = (await api.delete(path)).expect(200)
    assert deleted["status"]["phase"] == "Terminating"
    await gone(api, path)
    (await api.get(f"{configmaps}/c")).expect(404)
    (await api.get(f"{pods}/p")).expect(404)


async def test_a_namespace_that_is_going_takes_nothing_in(api: Api, namespace: str, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c", finalizers=["example.com/hold"]))).expect(201)
    (await api.delete(f"/api/v1/namespaces/{namespace}")).expect(200)
    body = (await api.post(configmaps, configmap("late"))).expect(403)
    assert body["reason"] == "Forbidden"
    assert body["message"] == (
        f'configmaps "late" is forbidden: unable to create new content in namespace {namespace} '
        "because it is being terminated"
    )

    async def is_marked() -> bool:
        return "deletionTimestamp" in (await api.get(f"{configmaps}/c")).expect(200)["metadata"]

    await eventually(is_marked, "the content is being deleted")
    (await api.get(f"/api/v1/namespaces/{namespace}")).expect(200)
    (await api.patch(f"{configmaps}/c", {"metadata": {"finalizers": None}}, MERGE)).expect(200)
    await gone(api, f"/api/v1/namespaces/{namespace}", 30)


async def test_a_new_namespace_is_active_and_has_a_finalizer(api: Api, namespace: str) -> None:
    created: Json = (await api.get(f"/api/v1/namespaces/{namespace}")).expect(200)
    assert created["spec"] == {"finalizers": ["kubernetes"]}
    assert created["status"] == {"phase": "Active"}


@pytest.mark.parametrize("name", ["default", "kube-system", "kube-public"])
async def test_the_namespaces_of_the_system_are_protected(api: Api, name: str) -> None:
    (await api.get(f"/api/v1/namespaces/{name}")).expect(200)
    body = (await api.delete(f"/api/v1/namespaces/{name}", dryRun="All")).expect(403)
    assert body["reason"] == "Forbidden"


async def test_custom_objects_own_and_are_collected(api: Api, widgets: str, configmaps: str) -> None:
    # A real garbage collector meets a new kind at its next resync, up to 30 s after the definition.
    owner = (await api.post(widgets, widget("owner"))).expect(201)
    (await api.post(configmaps, configmap("child", ownerReferences=[owner_reference(owner)]))).expect(201)
    (await api.delete(f"{widgets}/owner")).expect(200)
    await gone(api, f"{configmaps}/child", 45)
