"""Optimistic concurrency: nobody overwrites what they have not seen."""

import asyncio

from tests.apiserver.client import JSON_PATCH, Api, failure
from tests.apiserver.objects import configmap

STALE = (
    'Operation cannot be fulfilled on configmaps "c": the object has been modified; '
    "please apply your changes to the latest version and try again"
)


async def test_a_stale_update_is_409_conflict(api: Api, configmaps: str) -> None:
    first = (await api.post(configmaps, configmap("c"))).expect(201)
    (await api.patch(f"{configmaps}/c", {"data": {"x": "1"}})).expect(200)
    expected = failure(409, "Conflict", STALE, name="c", kind="configmaps")
    assert (await api.put(f"{configmaps}/c", first)).expect(409) == expected


async def test_a_stale_version_in_a_patch_is_409_conflict(api: Api, configmaps: str) -> None:
    first = (await api.post(configmaps, configmap("c"))).expect(201)
    version = first["metadata"]["resourceVersion"]
    guarded = {"metadata": {"resourceVersion": version}, "data": {"x": "1"}}
    (await api.patch(f"{configmaps}/c", guarded)).expect(200)
    guarded["data"] = {"x": "2"}
    expected = failure(409, "Conflict", STALE, name="c", kind="configmaps")
    assert (await api.patch(f"{configmaps}/c", guarded)).expect(409) == expected


async def test_an_update_without_a_version_overwrites(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c"))).expect(201)
    (await api.patch(f"{configmaps}/c", {"data": {"x": "1"}})).expect(200)
    assert (await api.put(f"{configmaps}/c", configmap("c", {"z": "9"}))).expect(200)["data"] == {"z": "9"}


async def test_a_custom_object_is_not_updated_without_a_version(api: Api, widgets: str) -> None:
    body = {"apiVersion": "battery.example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}}
    (await api.post(widgets, body)).expect(201)
    refusal = (await api.put(f"{widgets}/w", body)).expect(422)
    assert refusal["message"] == (
        'widgets.battery.example.com "w" is invalid: metadata.resourceVersion: Invalid value: 0x0: '
        "must be specified for an update"
    )


async def test_of_many_stale_writers_one_wins(api: Api, configmaps: str) -> None:
    first = (await api.post(configmaps, configmap("c"))).expect(201)
    writes = (api.put(f"{configmaps}/c", {**first, "data": {"winner": str(number)}}) for number in range(8))
    answers = await asyncio.gather(*writes)
    assert sorted(answer.status for answer in answers) == [200, *[409] * 7]
    winner = next(answer.body for answer in answers if answer.status == 200)
    assert (await api.get(f"{configmaps}/c")).expect(200) == winner


async def test_patches_without_a_version_all_land(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c", {}))).expect(201)
    patches = (api.patch(f"{configmaps}/c", {"data": {f"k{number}": "v"}}) for number in range(8))
    for answer in await asyncio.gather(*patches):
        answer.expect(200)
    assert set((await api.get(f"{configmaps}/c")).expect(200)["data"]) == {f"k{number}" for number in range(8)}


async def test_a_json_patch_may_test_first(api: Api, configmaps: str) -> None:
    (await api.post(configmaps, configmap("c", {"x": "1"}))).expect(201)
    swap = [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "replace", "path": "/data/x", "value": "2"}]
    (await api.patch(f"{configmaps}/c", swap, JSON_PATCH)).expect(200)
    body = (await api.patch(f"{configmaps}/c", swap, JSON_PATCH)).expect(422)
    assert body["reason"] == "Invalid"
    assert (await api.get(f"{configmaps}/c")).expect(200)["data"] == {"x": "2"}


async def test_a_delete_may_name_the_object_it_means(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("c"))).expect(201)
    other = "00000000-0000-0000-0000-000000000000"
    body = (await api.delete(f"{configmaps}/c", {"preconditions": {"uid": other}})).expect(409)
    assert body["reason"] == "Conflict"
    uid, version = created["metadata"]["uid"], created["metadata"]["resourceVersion"]
    assert body["message"] == (
        'Operation cannot be fulfilled on ConfigMap "c": the UID in the precondition '
        f"({other}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
    )
    body = (await api.delete(f"{configmaps}/c", {"preconditions": {"resourceVersion": "1"}})).expect(409)
    assert body["reason"] == "Conflict"
    (await api.delete(f"{configmaps}/c", {"preconditions": {"uid": uid, "resourceVersion": version}})).expect(200)
