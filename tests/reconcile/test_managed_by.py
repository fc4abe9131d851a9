"""An object that names another controller is none of ours: nothing is made for it, and nothing is said of it."""

from __future__ import annotations

from typing import Any

from capstan_operator.api.meta import API_VERSION, LABEL_INCARNATION, LABEL_MANAGED_BY, LABEL_WORKER
from capstan_operator.api.queueing import LABEL_GROUP
from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    OWN_KINDS,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    Resource,
)
from capstan_operator.cluster.limiter import Lane
from capstan_operator.decide.training_job import decide_training_job
from tests.support.benchmarks import job_of, spec_of
from tests.support.operators import eventually, run_one
from tests.support.real_cluster import STORED_MODEL, Cluster

SPECS: dict[str, dict[str, Any]] = {
    TRAINING_JOBS.kind: job_of() | {"checkpoint": {"store": {"claim": {"name": "nowhere"}}}},
    INFERENCE_SERVICES.kind: STORED_MODEL,
    BENCHMARKS.kind: spec_of(),
}
CHILDREN = (PODS, SECRETS, SERVICES, DEPLOYMENTS)


async def names_of_ours(cluster: Cluster, kind: Resource) -> list[str]:
    """Of what this operator made: an old controller manager gives every namespace a Secret, whenever it comes to it."""
    made = await cluster.list(kind)
    return [one["metadata"]["name"] for one in made if LABEL_MANAGED_BY in one["metadata"].get("labels", {})]


async def test_what_another_controller_looks_after_is_left_wholly_alone(cluster: Cluster) -> None:
    theirs = {}
    for kind in OWN_KINDS:
        spec = SPECS[kind.kind] | {"managedBy": "acme.io/trainer"}
        theirs[kind] = await cluster.create(kind, "theirs", spec=spec)
    async with run_one(cluster.kubeconfig, decide_training_job) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="foreign") >= len(OWN_KINDS))
        assert operator.value("reconciles_total", result="written") == 0
        assert {kind: await cluster.get(kind, "theirs") for kind in OWN_KINDS} == theirs
        assert {kind: await names_of_ours(cluster, kind) for kind in CHILDREN} == {kind: [] for kind in CHILDREN}


async def test_pods_in_a_queue_are_left_alone_when_the_job_of_another_controller_that_had_them_is_deleted(
    cluster: Cluster,
) -> None:
    spec = SPECS[TRAINING_JOBS.kind] | {"managedBy": "acme.io/trainer"}
    job = await cluster.create(TRAINING_JOBS, "theirs", spec=spec)
    owner = {"apiVersion": API_VERSION, "kind": TRAINING_JOBS.kind, "name": "theirs", "controller": True}
    metadata = {
        "name": "theirs-0",
        "labels": {LABEL_MANAGED_BY: "capstan", LABEL_WORKER: "0", LABEL_INCARNATION: "0", LABEL_GROUP: "theirs-group"},
        "ownerReferences": [owner | {"uid": job["metadata"]["uid"]}],
        "finalizers": ["kueue.x-k8s.io/managed"],  # as Kueue holds it, against a garbage collector, too
    }
    containers = [{"name": "trainer", "image": "none"}]
    await cluster.create(PODS, "theirs-0", metadata=metadata, spec={"containers": containers})
    async with run_one(cluster.kubeconfig, decide_training_job) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="foreign") >= 1)
        await eventually(lambda: operator.value("pods") == 1)
        await cluster.delete(TRAINING_JOBS, "theirs")
        await eventually(lambda: operator.value("reconciles_total", result="gone") >= 1)
        assert "annotations" not in (await cluster.get(PODS, "theirs-0"))["metadata"]
    release = {"metadata": {"finalizers": None}}
    await cluster.client.merge_patch(PODS, cluster.namespace, "theirs-0", release, lane=Lane.SYSTEM)


async def test_an_object_that_names_this_operator_is_its_own(cluster: Cluster) -> None:
    async with run_one(cluster.kubeconfig, decide_training_job):
        for kind in OWN_KINDS:
            await cluster.create(kind, "ours", spec=SPECS[kind.kind] | {"managedBy": "capstan.dev/operator"})
            await cluster.until(kind, "ours", "observedGeneration", 1)
