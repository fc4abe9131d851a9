"""A service whose replicas KubeRay keeps, under a whole operator.

The kind of RayService is a small one of our own; what KubeRay says on its status is written here by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import DEPLOYMENTS, INFERENCE_SERVICES, RAY_SERVICES, SECRETS
from capstan_operator.cluster.limiter import Lane
from tests.support.operators import run_one
from tests.support.real_cluster import CRDS, STORED_MODEL, Cluster
from tests.support.small_decide import decide_small

NAME = "digits"
SPEC: dict[str, Any] = {
    **STORED_MODEL,
    "replicas": 2,
    "backend": "RayService",
    "rollout": {"strategy": {"blueGreen": {"holdSeconds": 7}}},
}
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD_NAME = f"{RAY_SERVICES.plural}.{RAY_SERVICES.group}"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": CRD_NAME},
    "spec": {
        "group": RAY_SERVICES.group,
        "scope": "Namespaced",
        "names": {
            "kind": "RayService",
            "listKind": "RayServiceList",
            "plural": "rayservices",
            "singular": "rayservice",
        },
        "versions": [
            {
                "name": RAY_SERVICES.version,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": ANYTHING, "status": ANYTHING}}},
                "subresources": {"status": {}},
            }
        ],
    },
}


@pytest.fixture
async def served(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A cluster with an operator, and without KubeRay at first."""
    monkeypatch.setattr("capstan_operator.serving_parts.LOOK_SECONDS", 0.2)
    async with run_one(cluster.kubeconfig, decide_small):
        yield cluster


@asynccontextmanager
async def kuberay(cluster: Cluster) -> AsyncIterator[None]:
    """The API server serves RayServices."""
    await cluster.client.call("POST", CRDS.path(None), lane=Lane.SYSTEM, body=json.dumps(CRD).encode())
    try:
        async with asyncio.timeout(60):
            while not await _is_served(cluster):
                await asyncio.sleep(0.05)
        yield
    finally:
        await cluster.client.call("DELETE", CRDS.path(None, CRD_NAME), lane=Lane.SYSTEM)


async def _is_served(cluster: Cluster) -> bool:
    try:
        await cluster.list(RAY_SERVICES)
    except ApiError as error:
        if not error.is_not_found:
            raise
        return False
    return True


async def status_once(cluster: Cluster, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status of the service once `holds` does."""
    status: dict[str, Any] = {}
    try:
        async with asyncio.timeout(60):
            while not holds(status):
                await asyncio.sleep(0.05)
                status = (await cluster.get(INFERENCE_SERVICES, NAME)).get("status", {})
    except TimeoutError:
        raise AssertionError(f"no {what}, but {json.dumps(status, indent=1)}") from None
    return status


async def asked_for(cluster: Cluster, but: str | None = None) -> str:
    """The revision that the RayService asks for, once it is another than `but`."""
    async with asyncio.timeout(60):
        while True:
            for one in await cluster.list(RAY_SERVICES):
                name: str = one["metadata"]["labels"]["capstan.dev/revision"]
                if name != but:
                    return name
            await asyncio.sleep(0.05)


async def say(cluster: Cluster, **status: Any) -> None:
    """What KubeRay writes once it has seen the RayService as it is now."""
    generation = (await cluster.get(RAY_SERVICES, NAME))["metadata"]["generation"]
    patch = {"status": {"observedGeneration": generation, **status}}
    await cluster.client.merge_patch(
        RAY_SERVICES, cluster.namespace, NAME, patch, lane=Lane.SYSTEM, subresource="status"
    )


def active(name: str) -> dict[str, Any]:
    return {
        "activeServiceStatus": {"rayClusterName": name, "applicationStatuses": {"capstan": {"status": "RUNNING"}}},
        "pendingServiceStatus": None,
    }


async def test_a_ray_service_is_made_followed_and_changed(served: Cluster) -> None:
    async with kuberay(served):
        await served.create(INFERENCE_SERVICES, NAME, spec=SPEC)
        first = await asked_for(served)
        made = await served.get(RAY_SERVICES, NAME)
        assert made["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token", "secretName": first}
        assert set((await served.get(SECRETS, first))["data"]) == {"serve.json", "auth_token"}
        assert await served.names(DEPLOYMENTS) == []

        await say(served, **active("digits-1"), numServeEndpoints=2)
        status = await status_once(served, "life", lambda seen: seen.get("reason") == "Live")
        assert (status["ready"], status["traffic"]) == ("2/2", f"{first} 100%")
        assert status["url"] == f"http://digits-serve-svc.{served.namespace}.svc:8480"

        change = {"spec": {"timeoutSeconds": 9}}
        await served.client.merge_patch(INFERENCE_SERVICES, served.namespace, NAME, change, lane=Lane.SYSTEM)
        second = await asked_for(served, but=first)
        await say(served, pendingServiceStatus={"rayClusterName": "digits-2"})
        status = await status_once(served, "change", lambda seen: seen.get("reason") == "Starting")
        assert status["traffic"] == f"{first} 100%"
        assert {first, second} <= set(await served.names(SECRETS))

        await say(served, **active("digits-2"))
        status = await status_once(served, "new life", lambda seen: seen.get("stable") == second)
        assert status["traffic"] == f"{second} 100%"
        async with asyncio.timeout(60):
            while first in await served.names(SECRETS):
                await asyncio.sleep(0.05)


async def test_kuberay_comes_and_goes(served: Cluster) -> None:
    await served.create(INFERENCE_SERVICES, NAME, spec=SPEC)
    status = await status_once(served, "refusal", lambda seen: seen.get("reason") == "KubeRayMissing")
    assert "install KubeRay, or set backend Standalone" in status["message"]
    async with kuberay(served):
        await asked_for(served)
        await status_once(served, "start", lambda seen: seen.get("reason") == "Starting")
    await status_once(served, "second refusal", lambda seen: seen.get("reason") == "KubeRayMissing")
