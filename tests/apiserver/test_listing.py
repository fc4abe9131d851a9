"""Lists: paging, consistency, label and field selectors."""

import pytest

from tests.apiserver.client import Api, names
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget


@pytest.fixture
def letters() -> dict[str, dict[str, str]]:
    return {
        "a": {"tier": "front", "env": "prod"},
        "b": {"tier": "back", "env": "prod"},
        "c": {"tier": "front", "env": "test"},
        "d": {"env": "test"},
    }


async def test_a_list_holds_the_objects_in_the_order_of_their_names(api: Api, configmaps: str) -> None:
    for name in ("c", "a", "b"):
        (await api.post(configmaps, configmap(name, labels={"mine": "yes"}))).expect(201)
    listing = (await api.get(configmaps, labelSelector="mine")).expect(200)
    assert (listing["kind"], listing["apiVersion"]) == ("ConfigMapList", "v1")
    assert names(listing) == ["a", "b", "c"]
    newest = max(int(item["metadata"]["resourceVersion"]) for item in listing["items"])
    assert int(listing["metadata"]["resourceVersion"]) >= newest


async def test_the_items_of_a_core_list_carry_no_kind_and_those_of_a_custom_list_do(
    api: Api, configmaps: str, widgets: str
) -> None:
    (await api.post(configmaps, configmap("a", labels={"mine": "yes"}))).expect(201)
    (await api.post(widgets, widget("w"))).expect(201)
    core = (await api.get(configmaps, labelSelector="mine")).expect(200)
    assert {"kind", "apiVersion"} & set(core["items"][0]) == set()
    custom = (await api.get(widgets)).expect(200)
    assert (custom["kind"], custom["apiVersion"]) == ("WidgetList", "battery.example.com/v1")
    assert (custom["items"][0]["kind"], custom["items"][0]["apiVersion"]) == ("Widget", "battery.example.com/v1")


async def test_a_list_over_all_namespaces_sees_every_one(api: Api, configmaps: str, namespace: str) -> None:
    (await api.post(configmaps, configmap("here", labels={"run": namespace}))).expect(201)
    listing = (await api.get("/api/v1/configmaps", labelSelector=f"run={namespace}")).expect(200)
    assert [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in listing["items"]] == [
        (namespace, "here")
    ]


async def test_pages_are_a_consistent_snapshot(api: Api, widgets: str) -> None:
    for number in range(7):
        (await api.post(widgets, widget(f"w{number}"))).expect(201)
    first = (await api.get(widgets, limit=3)).expect(200)
    assert names(first) == ["w0", "w1", "w2"]
    assert first["metadata"]["remainingItemCount"] == 4
    # What happens between two pages does not show on the later ones.
    (await api.delete(f"{widgets}/w4")).expect(200)
    (await api.post(widgets, widget("w3x"))).expect(201)
    second = (await api.get(widgets, limit=3, **{"continue": first["metadata"]["continue"]})).expect(200)
    assert names(second) == ["w3", "w4", "w5"]
    assert second["metadata"]["remainingItemCount"] == 1
    third = (await api.get(widgets, limit=3, **{"continue": second["metadata"]["continue"]})).expect(200)
    assert names(third) == ["w6"]
    assert not third["metadata"].get("continue")
    assert "remainingItemCount" not in third["metadata"]
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1


async def test_pages_with_a_selector_do_not_count_what_remains(api: Api, widgets: str) -> None:
    for number in range(5):
        body = widget(f"w{number}")
        body["metadata"]["labels"] = {"even": str(number % 2 == 0).lower()}
        (await api.post(widgets, body)).expect(201)
    first = (await api.get(widgets, limit=2, labelSelector="even=true")).expect(200)
    assert names(first) == ["w0", "w2"]
    assert "remainingItemCount" not in first["metadata"]
    token = first["metadata"]["continue"]
    rest = (await api.get(widgets, limit=2, labelSelector="even=true", **{"continue": token})).expect(200)
    assert names(rest) == ["w4"]


async def test_a_broken_continue_token_is_400(api: Api, widgets: str) -> None:
    body = (await api.get(widgets, limit=2, **{"continue": "bogus"})).expect(400)
    assert body["reason"] == "BadRequest"
    assert "continue key is not valid" in body["message"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("tier=front", "ac"),
        ("tier==front", "ac"),
        ("tier!=front", "bd"),
        ("tier", "abc"),
        ("!tier", "d"),
        ("tier in (front,back),env=prod", "ab"),
        ("tier notin (front)", "bd"),
        ("env in (prod, test),!tier", "d"),
        ("env=none", ""),
        ("", "abcd"),
    ],
)
async def test_label_selectors(api: Api, widgets: str, letters: dict, selector: str, expected: str) -> None:
    for name, labels in letters.items():
        body = widget(name)
        body["metadata"]["labels"] = labels
        (await api.post(widgets, body)).expect(201)
    listing = (await api.get(widgets, labelSelector=selector)).expect(200)
    assert "".join(names(listing)) == expected


@pytest.mark.parametrize("selector", ["a=b=c", "in (x)", "a in x", "=", "a b"])
async def test_a_broken_label_selector_is_400(api: Api, configmaps: str, selector: str) -> None:
    body = (await api.get(configmaps, labelSelector=selector)).expect(400)
    assert (body["kind"], body["reason"]) == ("Status", "BadRequest")


async def test_field_selectors_pick_by_name_and_namespace(api: Api, configmaps: str, namespace: str) -> None:
    for name in ("a", "b"):
        (await api.post(configmaps, configmap(name))).expect(201)
    assert names((await api.get(configmaps, fieldSelector="metadata.name=a")).expect(200)) == ["a"]
    listing = (await api.get(configmaps, fieldSelector="metadata.name!=a", labelSelector="x!=y")).expect(200)
    assert "b" in names(listing)
    assert "a" not in names(listing)
    everywhere = f"metadata.namespace={namespace},metadata.name=b"
    assert names((await api.get("/api/v1/configmaps", fieldSelector=everywhere)).expect(200)) == ["b"]


async def test_pods_are_picked_by_node_and_phase(api: Api, pods: str) -> None:
    (await api.post(pods, pod("free"))).expect(201)
    (await api.post(pods, pod("bound", nodeName="no-such-node"))).expect(201)
    assert names((await api.get(pods, fieldSelector="spec.nodeName=no-such-node")).expect(200)) == ["bound"]
    assert names((await api.get(pods, fieldSelector="spec.nodeName=")).expect(200)) == ["free"]
    assert names((await api.get(pods, fieldSelector="status.phase=Pending")).expect(200)) == ["bound", "free"]
    assert names((await api.get(pods, fieldSelector="status.phase!=Pending")).expect(200)) == []


async def test_custom_objects_are_picked_by_name_alone(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("w"))).expect(201)
    assert names((await api.get(widgets, fieldSelector="metadata.name=w")).expect(200)) == ["w"]
    body = (await api.get(widgets, fieldSelector="spec.size=1")).expect(400)
    assert body["message"] == "field label not supported: spec.size"


async def test_events_are_picked_by_their_object(api: Api, namespace: str) -> None:
    events = f"/api/v1/namespaces/{namespace}/events"
    for name in ("one", "two"):
        event = {
            "metadata": {"name": f"e-{name}"},
            "involvedObject": {"kind": "Pod", "name": name, "namespace": namespace},
            "reason": "Seen",
            "type": "Normal",
        }
        (await api.post(events, event)).expect(201)
    selector = "involvedObject.kind=Pod,involvedObject.name=two"
    assert names((await api.get(events, fieldSelector=selector)).expect(200)) == ["e-two"]
    assert names((await api.get(events, fieldSelector="reason=Seen,type=Warning")).expect(200)) == []


async def test_a_resource_version_that_is_no_number_is_refused(api: Api, configmaps: str) -> None:
    # The code depends on the server's age (400 or 500); that it is refused, and the words, do not.
    body = (await api.get(configmaps, resourceVersion="x")).body
    assert body["status"] == "Failure"
    assert 'Invalid value: "x"' in body["message"]


async def test_a_list_at_version_zero_or_newer_is_answered(api: Api, widgets: str) -> None:
    created = (await api.post(widgets, widget("w"))).expect(201)
    version = created["metadata"]["resourceVersion"]
    assert names((await api.get(widgets, resourceVersion=version)).expect(200)) == ["w"]
    newer = await api.get(widgets, resourceVersion=version, resourceVersionMatch="NotOlderThan")
    assert names(newer.expect(200)) == ["w"]
    (await api.get(widgets, resourceVersion="0")).expect(200)


async def test_a_list_at_an_exact_version_shows_the_past(api: Api, widgets: str) -> None:
    (await api.post(widgets, widget("old"))).expect(201)
    version = (await api.get(widgets)).expect(200)["metadata"]["resourceVersion"]
    (await api.post(widgets, widget("new"))).expect(201)
    past = await api.get(widgets, resourceVersion=version, resourceVersionMatch="Exact")
    assert names(past.expect(200)) == ["old"]
