"""The same operator against API servers that are not ours to bend: the embedded one and a real kube-apiserver."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus
from capstan_operator.api.meta import CHAOS_ALLOWED, LABEL_CHAOS, LABEL_SERVICE
from capstan_operator.build.secret import build_secret
from capstan_operator.build.serving_revision import (
    Revision,
    build_config_secret,
    build_deployment,
    build_revision_service,
    build_route,
)
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.credentials import read_kubeconfig
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    DEPLOYMENTS,
    EVENTS,
    INFERENCE_SERVICES,
    LEASES,
    NAMESPACES,
    PODS,
    RULES,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    Resource,
)
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane, Limiter
from capstan_operator.decide.blueprint import Blueprint, read_blueprint
from capstan_operator.decide.serving.blueprint import read_revision
from capstan_operator.decide.serving.model import resolve
from capstan_operator.decide.types import Decision
from capstan_operator.metrics import Metrics
from capstan_operator.observe import Observed, OperatorSettings
from capstan_operator.observe_serving import ObservedService
from tests.support.benchmarks import job_of, spec_of, summary
from tests.support.looks import make_job
from tests.support.operators import RunningOperator, eventually, run_one
from tests.support.real_cluster import STORED_MODEL, Cluster
from tests.support.small_decide import FINISHED_AT, decide_small

SPEC: dict[str, Any] = {
    "framework": {"flax": {}},
    "model": {"mlp": {"hidden": [8]}},
    "data": {"digits": {}},
    "optimizer": {"adamw": {"learningRate": 0.001}},
    "schedule": {"constant": {}},
    "training": {"steps": 10, "globalBatchSize": 16},
    "workers": {"max": 2},
    "checkpoint": {"store": {"claim": {"name": "nowhere"}}},
}


SERVING_SPEC: dict[str, Any] = {
    **STORED_MODEL,
    "replicas": 1,
}


def leads(operator: RunningOperator) -> bool:
    return operator.value("leader") == 1


async def test_a_job_lives_and_dies_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        job = await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
        assert await cluster.names(PODS) == ["train-0-0", "train-1-0"]
        owner = (await cluster.get(PODS, "train-0-0"))["metadata"]["ownerReferences"][0]
        assert owner["uid"] == job["metadata"]["uid"]
        secret = await cluster.get(SECRETS, "train-run")
        assert {entry["manager"] for entry in secret["metadata"]["managedFields"]} == {"capstan-operator"}
        for name in ("train-0-0", "train-1-0"):
            await cluster.set_pod_status(name, phase="Succeeded")
        job = await cluster.until(TRAINING_JOBS, "train", "phase", "Succeeded")
        assert (job["metadata"]["generation"], job["status"]["observedGeneration"]) == (1, 1)
        await eventually(lambda: operator.value("events_total", result="written") >= 2)
        events = await cluster.list(EVENTS)
        assert sorted(event["reason"] for event in events) == ["Pending", "Succeeded"]
        assert {event["involvedObject"]["uid"] for event in events} == {job["metadata"]["uid"]}
        assert operator.value("reconciles_total", result="api_error") == 0


async def test_a_restart_writes_nothing_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
    before = [
        item["metadata"]["resourceVersion"]
        for kind in (TRAINING_JOBS, PODS, SECRETS)
        for item in await cluster.list(kind)
    ]
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="unchanged") >= 1)
        await asyncio.sleep(0.5)
        assert operator.value("reconciles_total", result="written") == 0
    after = [
        item["metadata"]["resourceVersion"]
        for kind in (TRAINING_JOBS, PODS, SECRETS)
        for item in await cluster.list(kind)
    ]
    assert after == before


async def test_strangers_are_left_alone_on_a_real_server(cluster: Cluster) -> None:
    spec = {"containers": [{"name": "c", "image": "none"}]}
    pod = await cluster.create(PODS, "train-1-0", spec=spec)
    secret = await cluster.create(SECRETS, "other-run", data={"a": base64.b64encode(b"b").decode()})
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        for name in ("train", "other"):
            await cluster.create(TRAINING_JOBS, name, spec=SPEC)
            await cluster.until(TRAINING_JOBS, name, "reason", "NameTaken")
        assert await cluster.names(PODS) == ["train-0-0", "train-1-0"]
        assert (await cluster.get(PODS, "train-1-0"))["metadata"] == pod["metadata"]
        assert (await cluster.get(SECRETS, "other-run"))["data"] == secret["data"]
        await cluster.client.delete(
            SECRETS, cluster.namespace, "other-run", uid=secret["metadata"]["uid"], grace_seconds=None, lane=Lane.SYSTEM
        )
        job = await cluster.until(TRAINING_JOBS, "other", "fence", 1)
        assert "reason" not in job["status"]


async def test_a_failed_pod_is_deleted_by_uid_and_replaced_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
        await cluster.set_pod_status("train-1-0", phase="Failed")
        await cluster.until(TRAINING_JOBS, "train", "fence", 2)
        names = await cluster.names(PODS)
        assert {"train-0-0", "train-1-1"} <= set(names)


async def test_a_spec_that_changes_while_a_pass_runs_costs_only_a_second_look(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        for seconds in range(1, 15):
            patch = {"spec": {"activeDeadlineSeconds": seconds}}
            await cluster.client.merge_patch(TRAINING_JOBS, cluster.namespace, "train", patch, lane=Lane.SYSTEM)
        job = await cluster.get(TRAINING_JOBS, "train")
        await cluster.until(TRAINING_JOBS, "train", "observedGeneration", job["metadata"]["generation"])
        assert await cluster.names(PODS) == ["train-0-0", "train-1-0"]
        assert operator.value("reconciles_total", result="error") == 0


async def test_a_deleted_job_is_forgotten_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
        known = operator.value("jobs")
        await cluster.delete(TRAINING_JOBS, "train")
        await eventually(lambda: operator.value("jobs") == known - 1)


async def test_a_benchmark_lives_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(BENCHMARKS, "bench", spec=spec_of({"training": {}}, job=job_of(), repetitions=1))
        await until_there(cluster, TRAINING_JOBS, "bench-t00")
        done = {"type": "Succeeded", "status": "True", "reason": "Completed", "lastTransitionTime": FINISHED_AT}
        status = {"status": {"conditions": [done | {"message": "done"}], "finishedAt": FINISHED_AT}}
        await cluster.client.merge_patch(
            TRAINING_JOBS, cluster.namespace, "bench-t00", status, lane=Lane.SYSTEM, subresource="status"
        )
        await cluster.until(BENCHMARKS, "bench", "phase", "Reporting")
        await until_there(cluster, PODS, "bench-report-1")
        ended = {"exitCode": 0, "message": summary()}
        container = {"name": "bench", "image": "", "imageID": "", "ready": False, "restartCount": 0}
        statuses = [container | {"state": {"terminated": ended}}]
        await cluster.set_pod_status("bench-report-1", phase="Succeeded", containerStatuses=statuses)
        found = await cluster.until(BENCHMARKS, "bench", "phase", "Succeeded")
        assert found["status"]["result"] == "100 samples/s ±1 %"
        assert found["metadata"]["generation"] == 1
        made = await cluster.get(TRAINING_JOBS, "bench-t00")
        assert made["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]


async def until_there(cluster: Cluster, resource: Resource, name: str) -> None:
    """Returns once there is such an object."""
    async with asyncio.timeout(30):
        while name not in await cluster.names(resource):
            await asyncio.sleep(0.05)


async def test_two_replicas_hand_over_on_a_real_server(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_small) as first, run_one(cluster.kubeconfig, decide_small) as second:
        await eventually(lambda: leads(first) != leads(second))
        leader, standby = (first, second) if leads(first) else (second, first)
        await leader.stop()
        await eventually(lambda: leads(standby), seconds=5)
        lease = json.loads(await cluster.client.get(LEASES, "capstan", "capstan-operator"))
        assert lease["spec"]["leaseTransitions"] >= 1
        await cluster.create(TRAINING_JOBS, "after", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "after", "phase", "Pending")


async def test_a_status_for_an_older_version_is_refused_and_one_for_this_version_taken(cluster: Cluster) -> None:
    old = await cluster.create(TRAINING_JOBS, "train", spec=SPEC)

    async def write(version: str, step: int) -> None:
        patch = {"metadata": {"resourceVersion": version}, "status": {"step": step}}
        await cluster.client.merge_patch(
            TRAINING_JOBS, cluster.namespace, "train", patch, lane=Lane.SYSTEM, subresource="status"
        )

    await write(old["metadata"]["resourceVersion"], 1)
    with pytest.raises(ApiError) as caught:
        await write(old["metadata"]["resourceVersion"], 2)
    assert caught.value.is_conflict
    assert (await cluster.get(TRAINING_JOBS, "train"))["status"]["step"] == 1


async def test_the_table_of_rights_is_all_the_operator_needs(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With RBAC in force: a service account that may do what `RULES` says and nothing else runs a job to its end."""
    await _grant_rules(cluster, "operator")
    kubeconfig = await _kubeconfig_of(cluster, "operator", tmp_path)
    async with run_one(kubeconfig, decide_small) as operator:
        await eventually(lambda: leads(operator))
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
        await cluster.set_pod_status("train-1-0", phase="Failed")
        await cluster.until(TRAINING_JOBS, "train", "fence", 2)
        await eventually(lambda: operator.value("events_total", result="written") >= 1)
    assert [record.getMessage() for record in caplog.records if " cannot " in record.getMessage()] == []


async def test_a_namespace_gives_and_takes_back_its_consent_to_chaos_on_a_real_server(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A watch with a selector: the server says DELETED of a namespace whose label was taken off."""
    await _grant_rules(cluster, "chaotic")
    seen: list[bool] = []

    def decide(observed: Observed, now: float) -> Decision:
        seen.append(observed.is_chaos_allowed)
        return decide_small(observed, now)

    async def label(value: str | None) -> None:
        patch = {"metadata": {"labels": {LABEL_CHAOS: value}}}
        await cluster.client.merge_patch(NAMESPACES, None, cluster.namespace, patch, lane=Lane.SYSTEM)

    kubeconfig = await _kubeconfig_of(cluster, "chaotic", tmp_path)
    async with run_one(kubeconfig, decide, allow_chaos=True):
        await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
        await cluster.until(TRAINING_JOBS, "train", "phase", "Pending")
        assert set(seen) == {False}
        await label(CHAOS_ALLOWED)
        await eventually(lambda: seen[-1])
        await label(None)
        await eventually(lambda: not seen[-1])


async def test_a_secret_made_with_another_key_is_made_anew_on_a_real_server(cluster: Cluster, tmp_path: Path) -> None:
    """Under the table of rights: a real server refuses to change immutable Secrets, and to delete without a right."""
    await _grant_rules(cluster, "writer")
    job = await cluster.create(TRAINING_JOBS, "train", spec=SPEC)
    observed = make_job(name="train", namespace=cluster.namespace, uid=job["metadata"]["uid"])
    blueprint = read_blueprint(observed, OperatorSettings())
    assert isinstance(blueprint, Blueprint)
    credentials = read_kubeconfig(await _kubeconfig_of(cluster, "writer", tmp_path))
    async with KubeClient(credentials, Limiter(), Metrics()) as client:
        children = Children(client, TRAINING_JOBS.kind, lambda *_: None)
        uids = []
        for token in ("old", "new", "new"):
            await children.apply((build_secret(observed, blueprint.run, token),), observed, lane=Lane.CREATE)
            secret = await cluster.get(SECRETS, "train-run")
            assert base64.b64decode(secret["data"]["token"]).decode() == token
            uids.append(secret["metadata"]["uid"])
        assert (uids[0] == uids[1], uids[1] == uids[2]) == (False, True)
        await children.delete(SECRETS, "train-run", observed, lane=Lane.CREATE)
    assert "train-run" not in await cluster.names(SECRETS)


async def test_a_revisions_children_are_made_sized_and_deleted_under_the_table_of_rights(
    cluster: Cluster, tmp_path: Path
) -> None:
    await _grant_rules(cluster, "server")
    service = await cluster.create(INFERENCE_SERVICES, "digits", spec=SERVING_SPEC)
    owner = ObservedService(
        cluster.namespace, "digits", service["metadata"]["uid"], 1, False, SERVING_SPEC, InferenceServiceStatus()
    )
    model = resolve(InferenceServiceSpec.parse(SERVING_SPEC), None, InferenceServiceStatus())
    assert isinstance(model, ModelStatus)
    revision = read_revision(owner, InferenceServiceSpec.parse(SERVING_SPEC), model, OperatorSettings())
    assert isinstance(revision, Revision)
    name, lane = revision.name, Lane.CREATE
    seen: list[tuple[str, str]] = []
    made = (
        build_config_secret(owner, revision),
        build_revision_service(owner, name),
        build_deployment(owner, revision, 1),
        build_route(owner, name),
        build_route(owner, None),
    )
    credentials = read_kubeconfig(await _kubeconfig_of(cluster, "server", tmp_path))
    async with KubeClient(credentials, Limiter(), Metrics()) as client:
        children = Children(
            client,
            INFERENCE_SERVICES.kind,
            lambda resource, answer: seen.append((resource.kind, json.loads(answer)["metadata"]["name"])),
        )
        await children.apply(made, owner, lane=lane)
        uid = (await cluster.get(DEPLOYMENTS, name))["metadata"]["uid"]
        await children.scale(DEPLOYMENTS, cluster.namespace, name, uid, 3, lane=lane)
        with pytest.raises(ApiError) as refused:
            await children.scale(DEPLOYMENTS, cluster.namespace, name, str(uuid4()), 7, lane=lane)
        assert refused.value.is_conflict, refused.value
        assert (await cluster.get(DEPLOYMENTS, name))["spec"]["replicas"] == 3
        assert (await cluster.get(SERVICES, "digits"))["spec"]["selector"] == {LABEL_SERVICE: "digits"}
        for resource in (SECRETS, SERVICES, DEPLOYMENTS):
            await children.delete(resource, name, owner, lane=lane)
        assert name not in await cluster.names(SERVICES) + await cluster.names(DEPLOYMENTS)
    kinds = [kind for kind, _ in seen]
    assert kinds == ["Secret", "Service", "Deployment", "Service", "Service", "Deployment"]


async def _grant_rules(cluster: Cluster, account: str) -> None:
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    name = f"{account}-{cluster.namespace}"
    for scope, namespace, kind in (("watched", None, "ClusterRole"), ("own", "capstan", "Role")):
        rules = [
            {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)}
            | ({"resourceNames": [rule.name]} if rule.name else {})
            for rule in RULES
            if rule.scope == scope
        ]
        role = Resource("rbac.authorization.k8s.io", "v1", f"{kind.lower()}s", kind)
        binding = Resource("rbac.authorization.k8s.io", "v1", f"{kind.lower()}bindings", f"{kind}Binding")
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        for resource, body in ((role, {"rules": rules}), (binding, {"subjects": [subject], "roleRef": reference})):
            document = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": resource.kind, "metadata": {"name": name}}
            await cluster.client.call(
                "POST", resource.path(namespace), lane=Lane.SYSTEM, body=json.dumps(document | body).encode()
            )


async def _kubeconfig_of(cluster: Cluster, account: str, folder: Path) -> Path:
    accounts = Resource("", "v1", "serviceaccounts", "ServiceAccount")
    await cluster.create(accounts, account)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    answer = await cluster.client.call(
        "POST", accounts.path(cluster.namespace, account, "token"), lane=Lane.SYSTEM, body=json.dumps(request).encode()
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": json.loads(answer)["status"]["token"]}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
