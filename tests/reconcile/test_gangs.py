"""A job that asks for a gang, under a whole operator: the PodGroup of its scheduler is made, follows its size, and is
asked for in vain where there is none.

The kinds of PodGroups are small ones of our own, with the fields that Volcano's and scheduler-plugins' pages name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import POD_GROUPS, PODS, TRAINING_JOBS, Resource
from capstan_operator.cluster.limiter import Lane
from capstan_operator.decide.training_job import decide_training_job
from tests.support.looks import SPEC, merged
from tests.support.operators import run_one
from tests.support.real_cluster import CRDS, Cluster

NAME = "digits"
SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {"minMember": {"type": "integer", "minimum": 1}, "queue": {"type": "string"}},
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


@asynccontextmanager
async def installed(cluster: Cluster, resource: Resource) -> AsyncIterator[None]:
    """The API server serves these PodGroups."""
    version = {"name": resource.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}
    names = {"kind": resource.kind, "listKind": "PodGroupList", "plural": resource.plural, "singular": "podgroup"}
    name = f"{resource.plural}.{resource.group}"
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # API servers give names in k8s.io only to what says that it was approved.
        "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"}},
        "spec": {"group": resource.group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    await cluster.client.call("POST", CRDS.path(None), lane=Lane.SYSTEM, body=json.dumps(crd).encode())
    try:
        yield
    finally:
        await cluster.client.call("DELETE", CRDS.path(None, name), lane=Lane.SYSTEM)


async def spec_once(cluster: Cluster, resource: Resource, wanted: dict[str, Any]) -> dict[str, Any]:
    """The job's PodGroup once its spec is this."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(60):
            while found.get("spec") != wanted:
                await asyncio.sleep(0.05)
                try:
                    found = await cluster.get(resource, f"{NAME}-gang")
                except ApiError as error:
                    if not error.is_not_found:
                        raise
    except TimeoutError:
        raise AssertionError(f"no PodGroup with {wanted}, but {found.get('spec')}") from None
    return found


async def change(cluster: Cluster, workers: dict[str, Any]) -> None:
    patch = {"spec": {"workers": workers}}
    await cluster.client.merge_patch(TRAINING_JOBS, cluster.namespace, NAME, patch, lane=Lane.SYSTEM)


@pytest.mark.parametrize("scheduler", POD_GROUPS)
async def test_a_gang_is_asked_for_made_and_follows_its_size(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setattr("capstan_operator.run.LOOK_SECONDS", 0.2)
    resource, queue = POD_GROUPS[scheduler], {"queue": "team-a"} if scheduler == "volcano" else {}
    spec = merged(SPEC, {"workers": {"max": 2, "gang": {scheduler: queue}}})
    async with run_one(cluster.kubeconfig, decide_training_job):
        job = await cluster.create(TRAINING_JOBS, NAME, spec=spec)
        told = await cluster.until(TRAINING_JOBS, NAME, "reason", "GangSchedulerMissing")
        assert told["status"]["message"].startswith(f"spec.workers.gang.{scheduler}: needs PodGroups of")
        assert await cluster.names(PODS) == []
        async with installed(cluster, resource):
            group = await spec_once(cluster, resource, {"minMember": 2} | queue)
            (owner,) = group["metadata"]["ownerReferences"]
            assert (owner["uid"], owner["controller"]) == (job["metadata"]["uid"], True)
            await cluster.until(TRAINING_JOBS, NAME, "reason", "WaitingForWorkers")
            assert await cluster.names(PODS) == [f"{NAME}-worker-0", f"{NAME}-worker-1"]
            await change(cluster, {"min": 1})
            again = await spec_once(cluster, resource, {"minMember": 1} | queue)
            assert again["metadata"]["uid"] == group["metadata"]["uid"]
            await cluster.delete(TRAINING_JOBS, NAME)
