"""The core kinds that an operator meets: their defaults and their rules."""

import base64
import ipaddress

import pytest

from tests.apiserver.client import Api, eventually
from tests.apiserver.objects import configmap, pod


async def test_secrets_fold_string_data_into_data(api: Api, namespace: str) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    created = (await api.post(secrets, {"metadata": {"name": "s"}, "stringData": {"k": "v"}})).expect(201)
    assert (created["data"], created["type"]) == ({"k": base64.b64encode(b"v").decode()}, "Opaque")
    assert "stringData" not in created
    patched = (await api.patch(f"{secrets}/s", {"stringData": {"k": "w", "l": "x"}})).expect(200)
    assert patched["data"] == {"k": base64.b64encode(b"w").decode(), "l": base64.b64encode(b"x").decode()}


async def test_secret_data_must_be_base64(api: Api, namespace: str) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    body = (await api.post(secrets, {"metadata": {"name": "s"}, "data": {"k": "%%%"}})).expect(400)
    assert "illegal base64 data at input byte 0" in body["message"]


async def test_a_null_in_a_list_is_an_empty_item_or_a_zero(api: Api, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    body = pod("p")
    body["spec"]["imagePullSecrets"] = [None]
    body["spec"]["containers"][0]["args"] = ["a", None]
    created = (await api.post(pods, body)).expect(201)["spec"]
    assert (created["imagePullSecrets"], created["containers"][0]["args"]) == ([{}], ["a", ""])
    body = pod("q")
    body["spec"]["volumes"] = [None]
    refused = (await api.post(pods, body)).expect(422)
    assert "spec.volumes[0].name" in {cause["field"] for cause in refused["details"]["causes"]}
    body["spec"]["volumes"] = []
    body["spec"]["containers"] = [None]
    refused = (await api.post(pods, body)).expect(422)
    assert "spec.containers[0].name" in {cause["field"] for cause in refused["details"]["causes"]}


@pytest.mark.parametrize("kind", ["configmaps", "secrets"])
async def test_what_is_immutable_stays(api: Api, namespace: str, kind: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/{kind}"
    (await api.post(path, {"metadata": {"name": "fixed"}, "data": {"k": "dg=="}, "immutable": True})).expect(201)
    body = (await api.patch(f"{path}/fixed", {"data": {"k": "dw=="}})).expect(422)
    assert "field is immutable when `immutable` is set" in body["message"]
    (await api.patch(f"{path}/fixed", {"metadata": {"labels": {"a": "b"}}})).expect(200)
    (await api.delete(f"{path}/fixed")).expect(200)


@pytest.mark.parametrize(("data", "field"), [({"a/b": "x"}, "data[a/b]"), ({"": "x"}, "data[]")])
async def test_config_map_keys_are_file_names(api: Api, configmaps: str, data: dict, field: str) -> None:
    body = (await api.post(configmaps, configmap("c", data))).expect(422)
    assert field in {cause["field"] for cause in body["details"]["causes"]}


async def test_a_service_gets_an_address_and_defaults(api: Api, namespace: str) -> None:
    services = f"/api/v1/namespaces/{namespace}/services"
    body = {"metadata": {"name": "s"}, "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}}
    created = (await api.post(services, body)).expect(201)
    spec = created["spec"]
    assert ipaddress.ip_address(spec["clusterIP"])
    assert (spec["type"], spec["sessionAffinity"]) == ("ClusterIP", "None")
    assert spec["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]
    assert created["status"] == {"loadBalancer": {}}
    other = (await api.post(services, body | {"metadata": {"name": "t"}})).expect(201)
    assert other["spec"]["clusterIP"] != spec["clusterIP"]
    body = (await api.patch(f"{services}/s", {"spec": {"clusterIP": other["spec"]["clusterIP"]}})).expect(422)
    assert "spec.clusterIP" in body["message"]


async def test_a_headless_service_keeps_none(api: Api, namespace: str) -> None:
    services = f"/api/v1/namespaces/{namespace}/services"
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "ports": [{"name": "a", "port": 1, "targetPort": "x"}],
    }
    created = (await api.post(services, {"metadata": {"name": "h"}, "spec": spec})).expect(201)
    assert (created["spec"]["clusterIP"], created["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert created["spec"]["ports"] == [{"name": "a", "protocol": "TCP", "port": 1, "targetPort": "x"}]


async def test_a_service_name_is_a_dns_label(api: Api, namespace: str) -> None:
    body = {"metadata": {"name": "has.dot"}, "spec": {"ports": [{"port": 80}]}}
    answer = (await api.post(f"/api/v1/namespaces/{namespace}/services", body)).expect(422)
    assert [cause["field"] for cause in answer["details"]["causes"]] == ["metadata.name"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": []}, "spec.containers"),
        ({"containers": [{"name": "Bad_Name", "image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"name": "a"}]}, "spec.containers[0].image"),
        ({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}, "spec.containers[1].name"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        (
            {"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            "spec.containers[0].volumeMounts[0].name",
        ),
        (
            {
                "containers": [
                    {"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}
                ]
            },
            "spec.containers[0].resources.requests",
        ),
    ],
)
async def test_a_broken_pod_is_refused_naming_the_field(api: Api, pods: str, spec: dict, field: str) -> None:
    body = (await api.post(pods, pod("bad", **spec))).expect(422)
    assert field in {cause["field"] for cause in body["details"]["causes"]}
    assert body["message"].startswith('Pod "bad" is invalid: ')


async def test_a_pod_with_a_bad_quantity_is_refused(api: Api, pods: str) -> None:
    container = {"name": "a", "image": "i", "resources": {"limits": {"memory": "lots"}}}
    body = (await api.post(pods, pod("bad", containers=[container]))).expect(400)
    assert "quantities must match the regular expression" in body["message"]


async def test_limits_become_requests_and_set_the_quality_of_service(api: Api, pods: str) -> None:
    limits = {"cpu": "1", "memory": "1Gi"}
    container = {"name": "a", "image": "i", "resources": {"limits": limits}}
    created = (await api.post(pods, pod("p", containers=[container]))).expect(201)
    assert created["spec"]["containers"][0]["resources"] == {"limits": limits, "requests": limits}
    assert created["status"]["qosClass"] == "Guaranteed"
    container = {"name": "a", "image": "i", "resources": {"requests": {"cpu": "0.5"}}}
    created = (await api.post(pods, pod("q", containers=[container]))).expect(201)
    assert created["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "500m"}}
    assert created["status"]["qosClass"] == "Burstable"


async def test_probes_get_their_defaults(api: Api, pods: str) -> None:
    container = {
        "name": "a",
        "image": "i",
        "readinessProbe": {"httpGet": {"port": 80}},
        "ports": [{"containerPort": 80}],
    }
    created = (await api.post(pods, pod("p", containers=[container]))).expect(201)
    assert created["spec"]["containers"][0]["readinessProbe"] == {
        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert created["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]


async def test_a_label_on_an_old_pod_can_still_be_changed(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p"))).expect(201)
    patched = (await api.patch(f"{pods}/p", {"metadata": {"labels": {"a": "b"}}})).expect(200)
    assert patched["metadata"]["labels"] == {"a": "b"}
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "example.com/app:2"}]
    patched = await api.patch(f"{pods}/p", image, "application/json-patch+json")
    assert patched.expect(200)["spec"]["containers"][0]["image"] == "example.com/app:2"


async def test_leases_hold_micro_times_as_written(api: Api, namespace: str) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    spec = {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-02T03:04:05.678901Z",
        "renewTime": "2026-01-02T03:04:06.000000Z",
        "leaseTransitions": 1,
    }
    created = (await api.post(leases, {"metadata": {"name": "l"}, "spec": spec})).expect(201)
    assert created["spec"] == spec
    created["spec"]["holderIdentity"] = "you"
    first = await api.put(f"{leases}/l", created)
    second = await api.put(f"{leases}/l", created)
    assert (first.status, second.status) == (200, 409)
    body = (await api.post(leases, {"metadata": {"name": "bad"}, "spec": {"leaseDurationSeconds": 0}})).expect(422)
    assert [cause["field"] for cause in body["details"]["causes"]] == ["spec.leaseDurationSeconds"]


async def test_events_are_stored_and_counted_up(api: Api, namespace: str) -> None:
    events = f"/api/v1/namespaces/{namespace}/events"
    event = {
        "metadata": {"name": "e", "namespace": namespace},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace},
        "reason": "Started",
        "message": "it started",
        "type": "Normal",
        "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "test"},
    }
    created = (await api.post(events, event)).expect(201)
    assert {name: created[name] for name in ("reason", "message", "type", "count", "source")} == {
        name: event[name] for name in ("reason", "message", "type", "count", "source")
    }
    patched = (await api.patch(f"{events}/e", {"count": 2, "lastTimestamp": "2026-01-01T00:01:00Z"})).expect(200)
    assert (patched["count"], patched["lastTimestamp"]) == (2, "2026-01-01T00:01:00Z")
    elsewhere = event | {
        "metadata": {"name": "f"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "other"},
    }
    body = (await api.post(events, elsewhere)).expect(422)
    assert "involvedObject.namespace" in body["message"]


async def test_events_of_both_groups_are_the_same_objects(api: Api, namespace: str) -> None:
    newer = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    event = {
        "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/me",
        "reportingInstance": "me-1",
        "action": "Looking",
        "reason": "Seen",
        "note": "hello",
        "type": "Normal",
        "regarding": {"kind": "Pod", "name": "p", "namespace": namespace},
    }
    (await api.post(newer, event)).expect(201)
    older = (await api.get(f"/api/v1/namespaces/{namespace}/events/e")).expect(200)
    assert (older["message"], older["involvedObject"]["name"], older["reportingComponent"]) == (
        "hello",
        "p",
        "example.com/me",
    )


async def test_a_node_has_status_and_capacity(api: Api, namespace: str) -> None:
    name = f"node-{namespace}"
    (await api.post("/api/v1/nodes", {"metadata": {"name": name}, "spec": {"unschedulable": True}})).expect(201)
    capacity = {"cpu": "4", "nvidia.com/gpu": "2"}
    status = {"capacity": capacity, "conditions": [{"type": "Ready", "status": "True", "reason": "Up"}]}
    patched = (await api.patch(f"/api/v1/nodes/{name}/status", {"status": status})).expect(200)
    assert patched["status"]["capacity"] == capacity
    (await api.delete(f"/api/v1/nodes/{name}")).expect(200)


async def test_a_claim_is_pending_and_keeps_its_request(api: Api, namespace: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "none-such",
    }
    created = (await api.post(claims, {"metadata": {"name": "c"}, "spec": spec})).expect(201)
    assert created["spec"] == {**spec, "volumeMode": "Filesystem"}
    assert created["status"] == {"phase": "Pending"}


async def test_every_namespace_has_a_default_service_account(api: Api, namespace: str) -> None:
    async def is_there() -> bool:
        return (await api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")).status == 200

    await eventually(is_there, "the default service account")


async def test_roles_and_bindings_are_kept(api: Api, namespace: str) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    created = (await api.post(f"{rbac}/roles", {"metadata": {"name": "r"}, "rules": rules})).expect(201)
    assert created["rules"] == rules
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    subjects = [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}]
    binding = {"metadata": {"name": "b"}, "roleRef": role, "subjects": subjects}
    made = (await api.post(f"{rbac}/rolebindings", binding)).expect(201)
    assert (made["roleRef"], made["subjects"]) == (role, subjects)
    other = {"roleRef": role | {"name": "other"}}
    body = (await api.patch(f"{rbac}/rolebindings/b", other)).expect(422)
    assert "cannot change roleRef" in body["message"]


def workload(name: str, **spec: object) -> dict:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "example.com/app:1"}]},
    }
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


async def test_a_deployment_makes_a_replica_set_that_makes_pods(api: Api, namespace: str, pods: str) -> None:
    apps = f"/apis/apps/v1/namespaces/{namespace}"
    created = (await api.post(f"{apps}/deployments", workload("d", replicas=2))).expect(201)
    assert created["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    assert (created["spec"]["revisionHistoryLimit"], created["spec"]["progressDeadlineSeconds"]) == (10, 600)

    async def two_pods() -> list | None:
        items = (await api.get(pods, labelSelector="app=d")).expect(200)["items"]
        return items if len(items) == 2 else None

    made = await eventually(two_pods, "two pods")
    (owner,) = made[0]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"]) == ("ReplicaSet", True)
    replica_set = (await api.get(f"{apps}/replicasets/{owner['name']}")).expect(200)
    assert replica_set["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]

    scaled = (await api.patch(f"{apps}/deployments/d/scale", {"spec": {"replicas": 0}})).expect(200)
    assert scaled["spec"] == {}, "zero replicas are left out"

    async def no_pods() -> bool:
        return (await api.get(pods, labelSelector="app=d")).expect(200)["items"] == []

    await eventually(no_pods, "the pods are gone")


async def test_a_selector_must_match_its_template(api: Api, namespace: str) -> None:
    body = workload("d")
    body["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    refusal = (await api.post(f"/apis/apps/v1/namespaces/{namespace}/deployments", body)).expect(422)
    assert "`selector` does not match template `labels`" in refusal["message"]


async def test_a_job_makes_its_pod_and_counts_it(api: Api, namespace: str, pods: str) -> None:
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    template = {
        "spec": {"restartPolicy": "Never", "schedulerName": "nobody", "containers": [{"name": "m", "image": "i"}]}
    }
    created = (await api.post(jobs, {"metadata": {"name": "j"}, "spec": {"template": template}})).expect(201)
    spec = created["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 6)
    assert spec["template"]["metadata"]["labels"]["job-name"] == "j"

    async def the_pod() -> dict | None:
        items = (await api.get(pods, labelSelector="job-name=j")).expect(200)["items"]
        return items[0] if items else None

    made = await eventually(the_pod, "the job's pod")
    done = {"status": {"phase": "Succeeded"}}
    (await api.patch(f"{pods}/{made['metadata']['name']}/status", done)).expect(200)

    async def is_complete() -> bool:
        status = (await api.get(f"{jobs}/j")).expect(200)["status"]
        complete = [item["type"] for item in status.get("conditions") or [] if item["status"] == "True"]
        return status.get("succeeded") == 1 and "Complete" in complete

    await eventually(is_complete, "the job is complete")


async def test_an_eviction_deletes_the_pod(api: Api, pods: str) -> None:
    (await api.post(pods, pod("p"))).expect(201)
    eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "p"}}
    if (await api.get("/version")).body["minor"] != "20":
        eviction["apiVersion"] = "policy/v1"
    assert (await api.post(f"{pods}/p/eviction", eviction)).expect(201)["status"] == "Success"
    (await api.get(f"{pods}/p")).expect(404)
