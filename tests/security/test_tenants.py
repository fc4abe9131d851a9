"""Two tenants of one cluster, each with `edit` in a namespace of their own, and an operator with the chart's rights
between them: neither sees or moves what is the other's, directly or through the operator. On a real API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client, config

from capstan_operator.cluster.kinds import PODS, TRAINING_JOBS
from capstan_operator.cluster.lease import LeaseTimes
from capstan_operator.decide.training_job import decide_training_job
from tests.support.benchmarks import spec_of
from tests.support.control_planes import ControlPlane, free_port, write_kubeconfig
from tests.support.fake_supervisors import serve_fake_supervisors
from tests.support.looks import SPEC
from tests.support.operators import eventually, run_one
from tests.support.real_cluster import Cluster, real_cluster
from tests.support.rights import operators_kubeconfig

Document = dict[str, Any]
GROUP, VERSION = "capstan.dev", "v1alpha1"
ROLES = Path("charts/capstan/templates/rights.yaml")
KINDS = ("trainingjobs", "inferenceservices", "benchmarks")
DEADLINE = 60.0
PATIENT = LeaseTimes()


@dataclass
class Tenant:
    """A user with `edit` in `namespace`, and nothing else."""

    namespace: str
    objects: client.CustomObjectsApi
    core: client.CoreV1Api
    access: client.AuthorizationV1Api

    def may(self, verb: str, resource: str, namespace: str | None, group: str = GROUP, subresource: str = "") -> bool:
        wanted = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
        if namespace is not None:
            wanted["namespace"] = namespace
        review = {"spec": {"resourceAttributes": wanted}}
        return bool(self.access.create_self_subject_access_review(review).status.allowed)

    def create(self, plural: str, kind: str, name: str, spec: Document) -> None:
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, body)

    def status(self, plural: str, name: str) -> Document:
        found = self.objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, name)
        return dict(found.get("status", {}))

    async def until_told(self, plural: str, name: str) -> str:
        """The reason on status, once the operator has written one."""
        async with asyncio.timeout(DEADLINE):
            while not (status := await asyncio.to_thread(self.status, plural, name)).get("reason"):
                await asyncio.sleep(0.1)
        return str(status["reason"])


@pytest.fixture
async def cluster(real_control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with real_cluster(real_control_plane) as cluster:
        yield cluster


def make_tenant(plane: ControlPlane, namespace: str, home: Path) -> Tenant:
    """The account `tenant` of this namespace, which is made if it is not there, bound to `edit`."""
    admin = config.new_client_from_config(str(plane.kubeconfig))
    core, rbac = client.CoreV1Api(admin), client.RbacAuthorizationV1Api(admin)
    if namespace not in {one.metadata.name for one in core.list_namespace().items}:
        core.create_namespace({"metadata": {"name": namespace}})
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "tenant"}})
    binding = {
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": namespace}],
    }
    rbac.create_namespaced_role_binding(namespace, binding)
    request = {"spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600}}
    token = core.create_namespaced_service_account_token("tenant", namespace, request).status.token
    kubeconfig = home / f"{namespace}.yaml"
    write_kubeconfig(kubeconfig, plane.url, plane.ca_file, token)
    own = config.new_client_from_config(str(kubeconfig))
    return Tenant(namespace, client.CustomObjectsApi(own), client.CoreV1Api(own), client.AuthorizationV1Api(own))


def aggregate(plane: ControlPlane) -> None:
    """The chart's roles for people, as its template has them, which the controller manager adds to `edit`."""
    rbac = client.RbacAuthorizationV1Api(config.new_client_from_config(str(plane.kubeconfig)))
    text = ROLES.read_text()
    verbs = yaml.safe_load("[" + text.split('"edit" (list (list ')[1].split(")")[0].replace('" "', '", "') + "]")
    assert "create" in verbs
    for name, given in (("view", ["get", "list", "watch"]), ("edit", verbs)):
        rbac.create_cluster_role(
            {
                "metadata": {
                    "name": f"capstan-{name}-{uuid4().hex[:8]}",
                    "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"},
                },
                "rules": [{"apiGroups": [GROUP], "resources": list(KINDS), "verbs": given}],
            }
        )


async def test_one_tenant_neither_sees_nor_moves_what_is_the_others(
    cluster: Cluster, real_control_plane: ControlPlane, tmp_path: Path
) -> None:
    plane, port = real_control_plane, free_port()
    aggregate(plane)
    victim = make_tenant(plane, cluster.namespace, tmp_path)
    attacker = make_tenant(plane, f"{cluster.namespace}-b", tmp_path)
    kubeconfig = operators_kubeconfig(plane, tmp_path / "operator.yaml", "capstan")
    await eventually(lambda: attacker.may("create", "trainingjobs", attacker.namespace), DEADLINE, 0.2)
    async with (
        serve_fake_supervisors(port) as supervisors,
        run_one(kubeconfig, decide_training_job, supervisor_port=port, lease=PATIENT) as operator,
    ):
        await eventually(lambda: operator.value("leader") == 1, DEADLINE)
        victim.create("trainingjobs", "TrainingJob", "train", SPEC)
        victim.create("benchmarks", "Benchmark", "before", spec_of())
        victim.core.create_namespaced_config_map(
            victim.namespace, {"metadata": {"name": "kept"}, "data": {"result.json": '{"workload": "secret"}'}}
        )
        async with asyncio.timeout(DEADLINE):
            while await cluster.names(PODS) != ["before-t00", "train-worker-0", "train-worker-1"]:
                await asyncio.sleep(0.1)
        job = await cluster.get(TRAINING_JOBS, "train")

        # What RBAC says.
        everything = [(verb, kind) for verb in ("get", "list", "watch", "create", "patch", "delete") for kind in KINDS]
        assert all(attacker.may(verb, kind, attacker.namespace) for verb, kind in everything)
        for where in (victim.namespace, "capstan", None):
            assert [one for one in everything if attacker.may(*one, where)] == []
            assert [one for one in ("secrets", "pods", "configmaps") if attacker.may("get", one, where, "")] == []
        assert [kind for kind in KINDS if attacker.may("patch", kind, attacker.namespace, subresource="status")] == []
        with pytest.raises(client.ApiException, match="403"):
            attacker.core.read_namespaced_secret("train-run", victim.namespace)

        # What the operator would do for them.
        asked: tuple[tuple[str, str, str, Document], ...] = (
            ("inferenceservices", "InferenceService", "service", {"modelRef": {"trainingJob": {"name": "train"}}}),
            ("benchmarks", "Benchmark", "rerun", spec_of(baseline={"benchmark": {"name": "before", "rerun": True}})),
            ("benchmarks", "Benchmark", "compare", spec_of(baseline={"configMap": {"name": "kept"}})),
            ("trainingjobs", "TrainingJob", "nodes", {**SPEC, "checkpoint": {"store": {"hostPath": {"path": "/"}}}}),
        )
        for one in asked:
            attacker.create(*one)
        assert {name: await attacker.until_told(plural, name) for plural, _, name, _ in asked} == {
            "service": "TrainingJobNotFound",
            "rerun": "BaselineNotFound",
            "compare": "BaselineNotFound",
            "nodes": "InvalidSpec",
        }
        path = {"configMap": {"name": f"../../{victim.namespace}/configmaps/kept"}}
        with pytest.raises(client.ApiException, match="422"):
            attacker.create("benchmarks", "Benchmark", "path", spec_of(baseline=path))

        # A pod that says it is the victim's, at an address where somebody listens.
        spy = await supervisors.add("127.0.7.1", "train-worker-0", job["metadata"]["uid"])
        own = await supervisors.add("127.0.7.2", "train-worker-0", job["metadata"]["uid"])
        owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainingJob", "name": "train", "controller": True}
        attacker.core.create_namespaced_pod(
            attacker.namespace,
            {
                "metadata": {
                    "name": "train-worker-0",
                    "labels": {
                        "app.kubernetes.io/managed-by": "capstan",
                        "capstan.dev/worker": "0",
                        "capstan.dev/incarnation": "0",
                    },
                    "ownerReferences": [owner | {"uid": job["metadata"]["uid"]}],
                },
                "spec": {"containers": [{"name": "trainer", "image": "none"}]},
            },
        )
        theirs = Cluster(cluster.client, attacker.namespace, cluster.kubeconfig)
        for where, ip in ((theirs, "127.0.7.1"), (cluster, "127.0.7.2")):
            await where.set_pod_status("train-worker-0", phase="Running", podIP=ip, hostIP="127.0.0.1")
        await eventually(lambda: own.asked >= 3, DEADLINE)
        assert (spy.asked, spy.tokens, spy.memberships) == (0, set(), [])
    await asyncio.to_thread(
        client.CoreV1Api(config.new_client_from_config(str(plane.kubeconfig))).delete_namespace, attacker.namespace
    )
