"""Watches: what arrives, in which order, from where, and how a stream ends."""

import asyncio

import pytest

from tests.apiserver.client import Api, eventually
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget

NONE = "metadata.name=no-such-name"


def seen(events: list[dict]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events]


async def test_a_watch_from_a_list_sees_every_change_since(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("before"))).expect(201)
    version = (await api.get(widgets)).expect(200)["metadata"]["resourceVersion"]
    created = (await api.post(widgets, widget("w"))).expect(201)
    changed = (await api.patch(f"{widgets}/w", {"spec": {"size": 2}})).expect(200)
    (await api.delete(f"{widgets}/w")).expect(200)
    async with api.watch(widgets, resourceVersion=version) as watch:
        added, modified, deleted = await watch.take(3)
    assert added == {"type": "ADDED", "object": created}
    assert modified == {"type": "MODIFIED", "object": changed}
    assert deleted["type"] == "DELETED"
    # A deletion is a write of its own: the last state, at a version that is newer than the last change.
    last = deleted["object"]
    assert int(last["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])
    last["metadata"]["resourceVersion"] = changed["metadata"]["resourceVersion"]
    assert last == changed


async def test_a_watch_without_a_version_begins_with_what_exists(api: Api, widgets: str) -> None:
    for name in ("a", "b"):
        (await api.post(widgets, widget(name))).expect(201)
    async with api.watch(widgets) as watch:
        assert sorted(seen(await watch.take(2))) == [("ADDED", "a"), ("ADDED", "b")]
        (await api.post(widgets, widget("c"))).expect(201)
        assert seen(await watch.take(1)) == [("ADDED", "c")]


async def test_a_change_arrives_while_watching(api: Api, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(configmaps, resourceVersion=version, labelSelector="mine") as watch:
        for number in range(20):
            created = await api.post(configmaps, configmap(f"c{number:02}", labels={"mine": "yes"}))
            assert await watch.next() == {"type": "ADDED", "object": created.expect(201)}
        assert await watch.is_silent()


async def test_watchers_of_one_kind_agree_on_the_order(api: Api, widgets: str) -> None:
    version = (await api.get(widgets)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(widgets, resourceVersion=version) as one, api.watch(widgets, resourceVersion=version) as two:
        await asyncio.gather(*(api.post(widgets, widget(f"w{number}")) for number in range(10)))
        first, second = await one.take(10), await two.take(10)
    assert first == second
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in first]
    assert versions == sorted(versions)


async def test_an_object_that_stops_matching_is_deleted_for_the_watcher(api: Api, widgets: str) -> None:
    version = (await api.get(widgets)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(widgets, resourceVersion=version, labelSelector="on=yes") as watch:
        (await api.post(widgets, widget("w"))).expect(201)
        for labels, event in (({"on": "yes"}, "ADDED"), ({"more": "x"}, "MODIFIED"), ({"on": None}, "DELETED")):
            changed = (await api.patch(f"{widgets}/w", {"metadata": {"labels": labels}})).expect(200)
            arrived = await watch.next()
            assert arrived is not None
            assert arrived["type"] == event
            assert arrived["object"]["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
        (await api.delete(f"{widgets}/w")).expect(200)
        assert await watch.is_silent()


async def test_one_object_can_be_watched_by_name(api: Api, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(configmaps, resourceVersion=version, fieldSelector="metadata.name=b") as watch:
        for name in ("a", "b", "c"):
            (await api.post(configmaps, configmap(name))).expect(201)
        assert seen(await watch.take(1)) == [("ADDED", "b")]
        assert await watch.is_silent()


async def test_a_watch_of_pods_on_a_node_sees_them_bound(api: Api, pods: str) -> None:
    version = (await api.get(pods)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(pods, resourceVersion=version, fieldSelector="spec.nodeName=nowhere") as watch:
        (await api.post(pods, pod("p"))).expect(201)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "nowhere"}}
        (await api.post(f"{pods}/p/binding", binding)).expect(201)
        arrived = await watch.next()
    assert arrived is not None
    assert (arrived["type"], arrived["object"]["spec"]["nodeName"]) == ("ADDED", "nowhere")
    conditions = {item["type"]: item["status"] for item in arrived["object"]["status"]["conditions"]}
    assert conditions == {"PodScheduled": "True"}


async def test_a_watch_ends_when_its_time_is_up(api: Api, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(configmaps, resourceVersion=version, timeoutSeconds=1, fieldSelector=NONE) as watch:
        assert await watch.next(10) is None


async def test_bookmarks_carry_a_version_to_go_on_from(api: Api, widgets: str) -> None:
    version = (await api.get(widgets)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(widgets, resourceVersion=version, allowWatchBookmarks="true", timeoutSeconds=4) as watch:
        created = (await api.post(widgets, widget("w"))).expect(201)
        events = []
        while (event := await watch.next()) is not None:
            events.append(event)
    assert events[0] == {"type": "ADDED", "object": created}
    assert {event["type"] for event in events[1:]} == {"BOOKMARK"}
    bookmark = events[-1]["object"]
    assert (bookmark["kind"], bookmark["apiVersion"]) == ("Widget", "battery.example.com/v1")
    newest = bookmark["metadata"]["resourceVersion"]
    assert int(newest) >= int(created["metadata"]["resourceVersion"])
    async with api.watch(widgets, resourceVersion=newest) as watch:
        assert await watch.is_silent()


async def test_without_being_asked_no_bookmarks_come(api: Api, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    async with api.watch(configmaps, resourceVersion=version, timeoutSeconds=3, fieldSelector=NONE) as watch:
        assert await watch.next() is None


async def test_a_version_that_is_forgotten_is_410_in_the_stream(api: Api, widgets: str) -> None:
    # Version 1 lies before the kind existed, hence before anything the server remembers of it.
    async with api.watch(widgets, resourceVersion="1") as watch:
        event = await watch.next()
        assert event is not None
        assert await watch.next() is None
    assert event["type"] == "ERROR"
    status = event["object"]
    assert (status["kind"], status["status"], status["reason"], status["code"]) == ("Status", "Failure", "Expired", 410)
    assert status["message"].startswith("too old resource version: 1 (")


async def test_a_watch_of_an_old_style_path_works_too(api: Api, namespace: str, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    (await api.post(configmaps, configmap("w"))).expect(201)
    path = f"/api/v1/watch/namespaces/{namespace}/configmaps"
    async with api.watch(path, resourceVersion=version, fieldSelector="metadata.name=w") as watch:
        assert seen(await watch.take(1)) == [("ADDED", "w")]


async def test_a_status_change_is_one_event(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    async with api.watch(widgets, resourceVersion=created["metadata"]["resourceVersion"]) as watch:
        patched = (await api.patch(f"{widgets}/w/status", {"status": {"phase": "Ready"}})).expect(200)
        assert await watch.next() == {"type": "MODIFIED", "object": patched}
        (await api.patch(f"{widgets}/w/status", {"status": {"phase": "Ready"}})).expect(200)
        assert await watch.is_silent()


async def test_a_client_that_leaves_costs_the_others_nothing(api: Api, configmaps: str) -> None:
    version = (await api.get(configmaps)).expect(200)["metadata"]["resourceVersion"]
    for _ in range(5):
        async with api.watch(configmaps, resourceVersion=version):
            pass

    async def is_written() -> bool:
        return (await api.post(configmaps, configmap("after"))).status in (201, 409)

    await eventually(is_written, "a write after watchers left")
    async with api.watch(configmaps, resourceVersion=version, fieldSelector="metadata.name=after") as watch:
        assert seen(await watch.take(1)) == [("ADDED", "after")]


@pytest.mark.current_kubernetes_only("streaming lists")
async def test_a_watch_can_begin_with_the_list_and_say_where_it_ends(api: Api, widgets: str) -> None:
    for name in ("a", "b"):
        (await api.post(widgets, widget(name))).expect(201)
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with api.watch(widgets, **query) as watch:
        assert sorted(seen(await watch.take(2))) == [("ADDED", "a"), ("ADDED", "b")]
        end = await watch.next()
        assert end is not None
        assert end["type"] == "BOOKMARK"
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        created = (await api.post(widgets, widget("c"))).expect(201)
        assert await watch.next() == {"type": "ADDED", "object": created}
    async with api.watch(widgets, resourceVersion=end["object"]["metadata"]["resourceVersion"]) as watch:
        assert seen(await watch.take(1)) == [("ADDED", "c")]
