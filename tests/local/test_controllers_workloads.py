"""Scheduler, Deployment, ReplicaSet, Job and Endpoints on API servers that have no controllers of their own."""

import asyncio

import aiohttp
import pytest

from capstan_local.client import (
    DEPLOYMENTS,
    ENDPOINTS,
    JOBS,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Client,
    Object,
    key_of,
)
from tests.support.local_node import RunningNode, eventually, shell

WEB = {"app": "web"}


@pytest.fixture
def pool(controlled_node: RunningNode, controlled_namespace: str) -> dict[str, str]:
    """The node selector of this test's own node."""
    return {"pool": controlled_namespace}


def template(pool: dict[str, str], script: str, **spec: object) -> Object:
    container = {**shell(script), "image": "local/host"}
    given = {"nodeSelector": pool, "terminationGracePeriodSeconds": 1, "containers": [container], **spec}
    return {"metadata": {"labels": WEB}, "spec": given}


async def pods_in(client: Client, namespace: str) -> list[Object]:
    items, _ = await client.list(PODS, namespace)
    return [item for item in items if not item["metadata"].get("deletionTimestamp")]


async def phases(client: Client, namespace: str) -> list[str]:
    return sorted(item["status"]["phase"] for item in await pods_in(client, namespace))


async def test_every_namespace_gets_its_default_service_account(
    controlled_client: Client, controlled_namespace: str
) -> None:
    async def has_account() -> bool:
        items, _ = await controlled_client.list(SERVICE_ACCOUNTS, controlled_namespace)
        return [item["metadata"]["name"] for item in items] == ["default"]

    await eventually(has_account)


async def test_pods_wait_with_a_reason_until_there_is_room(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    def wants(name: str, gpus: int) -> Object:
        container = {**shell("sleep 60"), "image": "local/host", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
        spec = {**template(pool, "")["spec"], "containers": [container], "restartPolicy": "Never"}
        metadata = {"name": name, "namespace": controlled_namespace}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    first = await controlled_client.create(PODS, wants("first", 3))
    await eventually(lambda: _is(controlled_client, first, "Running"))
    second = await controlled_client.create(PODS, wants("second", 2))

    async def is_told() -> str | None:
        seen = await controlled_client.get(PODS, "second", controlled_namespace)
        for condition in seen["status"].get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition["reason"] + ": " + condition["message"])
        return None

    told = await eventually(is_told)
    assert told.startswith("Unschedulable: 0/")
    assert "1 Insufficient nvidia.com/gpu" in told
    await controlled_client.delete(PODS, key_of(first))
    await eventually(lambda: _is(controlled_client, second, "Running"))


async def _is(client: Client, pod: Object, phase: str) -> bool:
    seen = await client.get(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
    return bool(seen["status"].get("phase") == phase)


def deployment(namespace: str, pool: dict[str, str], script: str, **spec: object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 3, "selector": {"matchLabels": WEB}, "template": template(pool, script), **spec},
    }


async def rolled_out(client: Client, namespace: str) -> Object | None:
    """The Deployment once `kubectl rollout status` would be content."""
    seen = await client.get(DEPLOYMENTS, "web", namespace)
    status, wanted = seen.get("status") or {}, seen["spec"]["replicas"]
    is_done = (
        status.get("observedGeneration") == seen["metadata"]["generation"]
        and status.get("updatedReplicas", 0)
        == status.get("replicas", 0)
        == status.get("availableReplicas", 0)
        == wanted
    )
    return seen if is_done else None


async def test_a_deployment_rolls_out_scales_and_rolls_back(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    await client.create(DEPLOYMENTS, deployment(namespace, pool, "sleep 600"))
    first = await eventually(lambda: rolled_out(client, namespace))
    assert {item["type"]: (item["status"], item["reason"]) for item in first["status"]["conditions"]} == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    fewest = asyncio.create_task(_fewest_ready(client, namespace))
    await client.patch(DEPLOYMENTS, (namespace, "web"), {"spec": {"template": template(pool, "sleep 601")}})
    await eventually(lambda: rolled_out(client, namespace))
    fewest.cancel()
    with pytest.raises(asyncio.CancelledError):  # and not the AssertionError it would have ended with
        await fewest
    sets, _ = await client.list(REPLICA_SETS, namespace)
    assert sorted(item["spec"]["replicas"] for item in sets) == [0, 3]
    await client.patch(DEPLOYMENTS, (namespace, "web"), {"spec": {"replicas": 1}})
    await eventually(lambda: rolled_out(client, namespace))

    async def one_left() -> bool:
        return await phases(client, namespace) == ["Running"]

    await eventually(one_left)
    await client.patch(DEPLOYMENTS, (namespace, "web"), {"spec": {"template": template(pool, "sleep 600")}})
    back = await eventually(lambda: rolled_out(client, namespace))
    sets, _ = await client.list(REPLICA_SETS, namespace)
    assert (len(sets), back["metadata"]["annotations"]["deployment.kubernetes.io/revision"]) == (2, "3")


async def _fewest_ready(client: Client, namespace: str) -> None:
    """Fails when, at any look, fewer replicas are ready than maxUnavailable (25 % of 3: none) allows."""
    while True:
        seen = await client.get(DEPLOYMENTS, "web", namespace)
        if (seen.get("status") or {}).get("readyReplicas", 0) < 3:
            raise AssertionError(f"too few are ready: {seen['status']}")
        await asyncio.sleep(0.05)


async def test_recreate_never_runs_old_and_new_together(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    options = {"replicas": 2, "strategy": {"type": "Recreate"}}
    await client.create(DEPLOYMENTS, deployment(namespace, pool, "sleep 600", **options))
    await eventually(lambda: rolled_out(client, namespace))
    _, version = await client.list(PODS, namespace)
    together: list[set[str]] = []
    alive: dict[str, str] = {item["metadata"]["name"]: "600" for item in await pods_in(client, namespace)}

    async def follow() -> None:
        async for change, pod in client.watch(PODS, version, namespace):
            alive[pod["metadata"]["name"]] = pod["spec"]["containers"][0]["command"][2][-3:]
            if change == "DELETED":
                del alive[pod["metadata"]["name"]]
            together.append(set(alive.values()))

    following = asyncio.create_task(follow())
    await client.patch(DEPLOYMENTS, (namespace, "web"), {"spec": {"template": template(pool, "sleep 601")}})
    await eventually(lambda: rolled_out(client, namespace))
    following.cancel()
    assert {"601"} in together
    assert {"600", "601"} not in together


async def test_a_deleted_pod_of_a_replica_set_is_replaced(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    spec = {"replicas": 2, "selector": {"matchLabels": WEB}, "template": template(pool, "sleep 600")}
    metadata = {"name": "pair", "namespace": namespace}
    await client.create(
        REPLICA_SETS, {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}
    )

    async def two_run() -> list[Object] | None:
        pods = await pods_in(client, namespace)
        return pods if [pod["status"]["phase"] for pod in pods] == ["Running", "Running"] else None

    before = await eventually(two_run)
    await client.delete(PODS, key_of(before[0]), grace_seconds=0)

    async def replaced() -> list[Object] | None:
        pods = await two_run()
        return pods if pods and before[0]["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in pods} else None

    after = await eventually(replaced)
    assert before[1]["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in after}


def job(namespace: str, pool: dict[str, str], script: str, **spec: object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work", "namespace": namespace},
        "spec": {"template": template(pool, script, restartPolicy="Never"), **spec},
    }


async def finished(client: Client, namespace: str) -> Object | None:
    seen = await client.get(JOBS, "work", namespace)
    kinds = {item["type"] for item in (seen.get("status") or {}).get("conditions") or []}
    return seen if kinds & {"Complete", "Failed"} else None


async def test_a_job_runs_to_completion_within_its_parallelism(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    await client.create(JOBS, job(namespace, pool, "sleep 0.2", completions=5, parallelism=2))
    seen = await eventually(lambda: finished(client, namespace))
    status = seen["status"]
    assert (status["succeeded"], status.get("failed"), status.get("active")) == (5, None, None)
    assert [item["type"] for item in status["conditions"]] == ["Complete"]
    assert status["completionTime"] >= status["startTime"]
    assert await phases(client, namespace) == ["Succeeded"] * 5


async def test_a_job_gives_up_after_its_backoff_limit(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    await client.create(JOBS, job(namespace, pool, "exit 1", backoffLimit=0))
    status = (await eventually(lambda: finished(client, namespace)))["status"]
    told = [(item["type"], item["reason"]) for item in status["conditions"]]
    assert (status["failed"], told) == (1, [("Failed", "BackoffLimitExceeded")])


async def test_a_suspended_job_runs_nothing_until_it_is_resumed(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    created = await client.create(JOBS, job(namespace, pool, "true", suspend=True))
    if not created["spec"].get("suspend"):
        pytest.skip("this API server does not know suspended jobs")
    await asyncio.sleep(0.5)
    assert await phases(client, namespace) == []
    await client.patch(JOBS, (namespace, "work"), {"spec": {"suspend": False}})
    assert (await eventually(lambda: finished(client, namespace)))["status"]["succeeded"] == 1


async def test_an_indexed_job_runs_each_index_once(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    wanted = job(namespace, pool, "echo $JOB_COMPLETION_INDEX", completions=3, parallelism=3, completionMode="Indexed")
    created = await client.create(JOBS, wanted)
    if created["spec"].get("completionMode") != "Indexed":
        pytest.skip("this API server does not know indexed jobs")
    seen = await eventually(lambda: finished(client, namespace))
    assert (seen["status"]["succeeded"], seen["status"]["completedIndexes"]) == (3, "0-2")


async def test_a_service_is_reached_on_its_own_address_while_pods_are_ready(
    controlled_client: Client, controlled_namespace: str, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    spec = {"selector": WEB, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}
    metadata = {"name": "web", "namespace": namespace}
    service = await client.create(SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    address = service["spec"]["clusterIP"]
    if not address.startswith("127."):
        pytest.skip("kube-apiserver accepts no Endpoints on loopback, and its Services are not there")
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(address, 80)
    serve = "exec python3 -m http.server --bind $IP 8080"
    wanted = deployment(namespace, pool, serve, replicas=2)
    container = wanted["spec"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"name": "web", "containerPort": 8080}]
    container["env"] = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    container["readinessProbe"] = {"httpGet": {"port": "web"}, "periodSeconds": 1}
    await client.create(DEPLOYMENTS, wanted)
    await eventually(lambda: rolled_out(client, namespace))
    ips = sorted(pod["status"]["podIP"] for pod in await pods_in(client, namespace))

    async def lists_both() -> bool:
        found = await client.get(ENDPOINTS, "web", namespace)
        subsets = found.get("subsets") or [{}]
        return sorted(item["ip"] for item in subsets[0].get("addresses") or []) == ips

    await eventually(lists_both)

    async def answers() -> bool:
        try:
            # Bounded: a connection that hangs is a failure of the relay, to be seen as such.
            async with aiohttp.request("GET", f"http://{address}/", timeout=aiohttp.ClientTimeout(5)) as response:
                return response.status == 200
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            return False

    await eventually(answers)
    await client.patch(DEPLOYMENTS, (namespace, "web"), {"spec": {"replicas": 0}})

    async def refuses() -> bool:
        return not await answers()

    await eventually(refuses)
    assert not (await client.get(ENDPOINTS, "web", namespace)).get("subsets")


async def test_sidecars_start_first_and_end_last(
    controlled_client: Client, controlled_namespace: str, controlled_node: RunningNode, pool: dict[str, str]
) -> None:
    client, namespace = controlled_client, controlled_namespace
    version = await client.request("GET", "/version")
    if int(version["minor"].rstrip("+")) < 28:
        pytest.skip("this API server does not know sidecar containers")
    sidecar = {
        "name": "side",
        "image": "local/host",
        "restartPolicy": "Always",
        "command": [
            "sh",
            "-c",
            "echo side >> /s/steps; trap 'echo out >> /s/steps; exit 0' TERM; while :; do sleep 0.05; done",
        ],
        "startupProbe": {"exec": {"command": ["test", "-e", "/s/steps"]}, "periodSeconds": 1},
        "volumeMounts": [{"name": "s", "mountPath": "/s"}],
    }
    main = {**shell("echo main >> /s/steps"), "image": "local/host", "volumeMounts": sidecar["volumeMounts"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pair", "namespace": namespace},
        "spec": {
            "nodeSelector": pool,
            "restartPolicy": "Never",
            "initContainers": [sidecar],
            "containers": [main],
            "volumes": [{"name": "s", "emptyDir": {}}],
        },
    }
    created = await client.create(PODS, pod)
    await eventually(lambda: _is(client, created, "Succeeded"))
    steps = controlled_node.home / "pods" / created["metadata"]["uid"] / "volumes/s/steps"
    assert steps.read_text() == "side\nmain\nout\n"
