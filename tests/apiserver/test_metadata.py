"""What the server writes into metadata, and what it refuses there."""

import asyncio
import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.apiserver.client import Api
from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import widget


async def test_the_server_sets_uid_time_and_version(api: Api, configmaps: str) -> None:
    metadata = (await api.post(configmaps, configmap("m"))).expect(201)["metadata"]
    assert str(uuid.UUID(metadata["uid"])) == metadata["uid"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    age = datetime.now(UTC) - datetime.fromisoformat(metadata["creationTimestamp"])
    assert timedelta(seconds=-2) < age < timedelta(seconds=30)
    assert metadata["resourceVersion"].isdecimal()


async def test_what_the_client_writes_there_is_ignored_on_create(api: Api, configmaps: str) -> None:
    wish = {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7, "selfLink": "/x"}
    metadata = (await api.post(configmaps, configmap("m", **wish))).expect(201)["metadata"]
    assert metadata["uid"] != "mine"
    assert not metadata["creationTimestamp"].startswith("2001")
    assert "selfLink" not in metadata


async def test_a_resource_version_on_create_is_refused(api: Api, configmaps: str) -> None:
    # Kubernetes calls it an internal error (500), though it is the client's (400); the words are what is compared.
    body = (await api.post(configmaps, configmap("m", resourceVersion="5"))).body
    assert body["status"] == "Failure"
    assert body["message"] == "resourceVersion should not be set on objects to be created"


async def test_generate_name_appends_five_characters(api: Api, configmaps: str) -> None:
    body = {"metadata": {"generateName": "gen-"}, "data": {}}
    seen = [(await api.post(configmaps, body)).expect(201)["metadata"] for _ in range(5)]
    for metadata in seen:
        assert re.fullmatch(r"gen-[bcdfghjklmnpqrstvwxz2456789]{5}", metadata["name"])
        assert metadata["generateName"] == "gen-"
    assert len({metadata["name"] for metadata in seen}) == 5


async def test_an_object_needs_a_name(api: Api, configmaps: str) -> None:
    body = (await api.post(configmaps, {"data": {}})).expect(422)
    assert body["reason"] == "Invalid"
    assert "metadata.name: Required value: name or generateName is required" in body["message"]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dot.", "a" * 254, "space d"])
async def test_a_name_must_be_a_dns_subdomain(api: Api, configmaps: str, name: str) -> None:
    body = (await api.post(configmaps, configmap(name))).expect(422)
    assert body["reason"] == "Invalid"
    assert [cause["field"] for cause in body["details"]["causes"]] == ["metadata.name"]
    assert body["details"]["causes"][0]["reason"] == "FieldValueInvalid"
    assert f'ConfigMap "{name}" is invalid: metadata.name: Invalid value: "{name}": ' in body["message"]


async def test_the_words_of_a_refused_name(api: Api, configmaps: str, widgets: str) -> None:
    rule = (
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
        "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
        "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    )
    message = (await api.post(configmaps, configmap("Up"))).expect(422)["message"]
    # Older servers leave out "lowercase RFC 1123".
    assert message.replace("a DNS-1123 subdomain", "a lowercase RFC 1123 subdomain") == (
        f'ConfigMap "Up" is invalid: metadata.name: Invalid value: "Up": {rule}'
    )
    message = (await api.post(widgets, widget("Up"))).expect(422)["message"]
    assert message.startswith('Widget.battery.example.com "Up" is invalid: metadata.name: Invalid value: "Up": a ')


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"labels": {"a b": "x"}}, "metadata.labels"),
        ({"labels": {"a": "not a value"}}, "metadata.labels"),
        ({"annotations": {"/x": "y"}}, "metadata.annotations"),
        ({"finalizers": ["no slash here"]}, "metadata.finalizers"),
        (
            {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]},
            "metadata.ownerReferences.uid",
        ),
    ],
)
async def test_metadata_is_validated(api: Api, configmaps: str, metadata: dict, field: str) -> None:
    body = (await api.post(configmaps, configmap("m", **metadata))).expect(422)
    assert body["reason"] == "Invalid"
    assert field in {cause["field"] for cause in body["details"]["causes"]}


async def test_identity_cannot_be_changed(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("m"))).expect(201)
    other = configmap("m", uid=str(uuid.uuid4()))
    body = (await api.put(f"{configmaps}/m", other)).expect(409)
    assert body["reason"] == "Conflict"
    patched = (await api.patch(f"{configmaps}/m", {"metadata": {"creationTimestamp": None}})).expect(200)
    assert patched["metadata"]["creationTimestamp"] == created["metadata"]["creationTimestamp"]


async def test_resource_versions_grow_over_all_kinds(api: Api, configmaps: str, namespace: str) -> None:
    versions = []
    for number in range(3):
        for path in (configmaps, f"/api/v1/namespaces/{namespace}/secrets"):
            made = (await api.post(path, {"metadata": {"name": f"n{number}"}})).expect(201)
            versions.append(int(made["metadata"]["resourceVersion"]))
    assert versions == sorted(set(versions))


async def test_a_write_that_changes_nothing_keeps_the_version(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("same"))).expect(201)
    again = (await api.put(f"{configmaps}/same", created)).expect(200)
    assert again == created
    patched = (await api.patch(f"{configmaps}/same", {"data": {"k": "v"}})).expect(200)
    assert patched["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


async def test_generation_counts_changes_of_spec_alone(api: Api, widgets: str) -> None:
    async def generation_after(patch: dict, path: str) -> int:
        return (await api.patch(path, patch)).expect(200)["metadata"]["generation"]

    created = (await api.post(widgets, widget("g"))).expect(201)
    assert created["metadata"]["generation"] == 1
    path = f"{widgets}/g"
    assert await generation_after({"metadata": {"labels": {"a": "b"}}}, path) == 1
    assert await generation_after({"spec": {"size": 2}}, path) == 2
    assert await generation_after({"spec": {"size": 2}}, path) == 2
    assert await generation_after({"status": {"phase": "Ready"}}, f"{path}/status") == 2
    assert await generation_after({"spec": {"size": 3}}, path) == 3


async def test_a_kind_without_status_has_no_generation(api: Api, configmaps: str) -> None:
    created = (await api.post(configmaps, configmap("g"))).expect(201)
    assert "generation" not in created["metadata"]


async def test_writers_in_a_hurry_all_get_different_versions(api: Api, configmaps: str) -> None:
    answers = await asyncio.gather(*(api.post(configmaps, configmap(f"c{number}")) for number in range(30)))
    versions = {answer.expect(201)["metadata"]["resourceVersion"] for answer in answers}
    assert len(versions) == 30


async def test_a_pod_gets_its_defaults(api: Api, pods: str) -> None:
    created = (await api.post(pods, pod("p", nodeSelector={"a": "b"}))).expect(201)
    spec = created["spec"]
    assert {name: spec[name] for name in ("restartPolicy", "dnsPolicy", "terminationGracePeriodSeconds")} == {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30,
    }
    assert spec["securityContext"] == {}
    assert spec["enableServiceLinks"] is True
    assert spec["containers"] == [
        {
            "name": "main",
            "image": "example.com/app:1",
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        }
    ]
    assert created["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
