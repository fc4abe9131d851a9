"""The official Python client: typed calls, watches, custom objects, and the dynamic client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import kubernetes
import pytest
import urllib3
import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

from tests.apiserver.objects import configmap, pod
from tests.apiserver.widgets import GROUP, widget
from tests.support.control_planes import ControlPlane


@pytest.fixture
def client(control_plane: ControlPlane) -> Iterator[kubernetes.client.ApiClient]:
    with kubernetes.config.new_client_from_config(str(control_plane.kubeconfig)) as client:
        client.configuration.retries = urllib3.Retry(0)
        yield client


@pytest.fixture
def dynamic(client: kubernetes.client.ApiClient, tmp_path: Path, widgets: str) -> DynamicClient:
    del widgets
    return DynamicClient(client, cache_file=str(tmp_path / "discovery.json"))


def test_typed_objects_make_the_round_trip(client: kubernetes.client.ApiClient, namespace: str) -> None:
    core = kubernetes.client.CoreV1Api(client)
    made = core.create_namespaced_config_map(namespace, configmap("c", {"a": "1"}))
    assert (made.metadata.name, made.data) == ("c", {"a": "1"})
    made.data["b"] = "2"
    replaced = core.replace_namespaced_config_map("c", namespace, made)
    assert replaced.data == {"a": "1", "b": "2"}
    with pytest.raises(ApiException) as stale:
        core.replace_namespaced_config_map("c", namespace, made)
    assert (stale.value.status, stale.value.reason) == (409, "Conflict")
    patched = core.patch_namespaced_config_map("c", namespace, {"data": {"a": None}})
    assert patched.data == {"b": "2"}
    assert [
        item.metadata.name
        for item in core.list_namespaced_config_map(namespace, label_selector="!x").items
        if item.metadata.name == "c"
    ] == ["c"]
    core.delete_namespaced_config_map("c", namespace)
    with pytest.raises(ApiException) as absent:
        core.read_namespaced_config_map("c", namespace)
    assert absent.value.status == 404


def test_typed_pods_parse(client: kubernetes.client.ApiClient, namespace: str) -> None:
    core = kubernetes.client.CoreV1Api(client)
    made = core.create_namespaced_pod(namespace, pod("p"))
    assert (made.status.phase, made.spec.containers[0].image_pull_policy) == ("Pending", "IfNotPresent")
    condition = {"type": "Ready", "status": "False", "reason": "Why"}
    patched = core.patch_namespaced_pod_status("p", namespace, {"status": {"conditions": [condition]}})
    assert [(item.type, item.status) for item in patched.status.conditions] == [("Ready", "False")]
    assert core.list_namespaced_pod(namespace).items[0].metadata.name == "p"
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)


def test_a_watch_streams_typed_events_and_goes_on_by_itself(
    client: kubernetes.client.ApiClient, namespace: str
) -> None:
    core = kubernetes.client.CoreV1Api(client)
    version = core.list_namespaced_config_map(namespace).metadata.resource_version
    names = [f"c{number}" for number in range(4)]

    def write() -> None:
        for name in names:
            core.create_namespaced_config_map(namespace, configmap(name, labels={"mine": "yes"}))

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    watch = kubernetes.watch.Watch()
    stream = watch.stream(
        core.list_namespaced_config_map,
        namespace,
        resource_version=version,
        label_selector="mine=yes",
        timeout_seconds=10,
    )
    for event in stream:
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == len(names):
            watch.stop()
    writer.join()
    assert seen == [("ADDED", name) for name in names]


def test_custom_objects(client: kubernetes.client.ApiClient, namespace: str, widgets: str) -> None:
    del widgets
    custom = kubernetes.client.CustomObjectsApi(client)
    where = (GROUP, "v1", namespace, "widgets")
    custom.create_namespaced_custom_object(*where, widget("w", size=2))
    patched = custom.patch_namespaced_custom_object(*where, "w", {"spec": {"size": 3}})
    assert patched["spec"]["size"] == 3
    custom.patch_namespaced_custom_object_status(*where, "w", {"status": {"phase": "Ready"}})
    assert custom.get_namespaced_custom_object(*where, "w")["status"] == {"phase": "Ready"}
    with pytest.raises(ApiException) as refused:
        custom.patch_namespaced_custom_object(*where, "w", {"spec": {"size": 99}})
    assert refused.value.status == 422
    custom.delete_namespaced_custom_object(*where, "w")
    assert custom.list_namespaced_custom_object(*where)["items"] == []


def test_the_dynamic_client_discovers_and_applies(dynamic: DynamicClient, namespace: str) -> None:
    resource = dynamic.resources.get(api_version=f"{GROUP}/v1", kind="Widget")
    assert (resource.name, resource.namespaced, set(resource.subresources)) == ("widgets", True, {"status", "scale"})
    made = resource.create(body=widget("w", size=2), namespace=namespace)
    assert made.spec.size == 2
    applied = resource.server_side_apply(
        body=widget("w", size=4), namespace=namespace, name="w", field_manager="me", force_conflicts=True
    )
    assert applied.spec.size == 4
    with pytest.raises(ConflictError):
        resource.server_side_apply(body=widget("w", size=5), namespace=namespace, name="w", field_manager="you")
    patched = resource.patch(
        body={"spec": {"size": 6}}, namespace=namespace, name="w", content_type="application/merge-patch+json"
    )
    assert patched.spec.size == 6
    assert [item.metadata.name for item in resource.get(namespace=namespace).items] == ["w"]
    resource.delete(name="w", namespace=namespace)
    with pytest.raises(NotFoundError):
        resource.get(name="w", namespace=namespace)


def test_the_dynamic_client_watches(dynamic: DynamicClient, namespace: str) -> None:
    resource = dynamic.resources.get(api_version=f"{GROUP}/v1", kind="Widget")
    version = resource.get(namespace=namespace).metadata.resourceVersion
    resource.create(body=widget("w"), namespace=namespace)
    resource.delete(name="w", namespace=namespace)
    seen = []
    for event in resource.watch(namespace=namespace, resource_version=version, timeout=10):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 2:
            break
    assert seen == [("ADDED", "w"), ("DELETED", "w")]


def test_manifests_can_be_created_from_yaml(
    client: kubernetes.client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.yaml"
    documents = ({"apiVersion": "v1", "kind": kind, "metadata": {"name": "one"}} for kind in ("ConfigMap", "Secret"))
    manifest.write_text(yaml.safe_dump_all(documents))
    kubernetes.utils.create_from_yaml(client, str(manifest), namespace=namespace)
    core = kubernetes.client.CoreV1Api(client)
    assert core.read_namespaced_config_map("one", namespace).metadata.name == "one"
    assert core.read_namespaced_secret("one", namespace).type == "Opaque"
    with pytest.raises(kubernetes.utils.FailToCreateError, match="AlreadyExists"):
        kubernetes.utils.create_from_yaml(client, str(manifest), namespace=namespace)


def test_groups_and_versions_are_listed(client: kubernetes.client.ApiClient) -> None:
    groups = kubernetes.client.ApisApi(client).get_api_versions().groups
    assert {"apps", "batch", "apiextensions.k8s.io"} <= {group.name for group in groups}
    assert kubernetes.client.VersionApi(client).get_code().git_version.startswith("v1.")
