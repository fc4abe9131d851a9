"""A service's PodDisruptionBudget under a whole operator, on API servers that serve it in different versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import DISRUPTION_BUDGETS, INFERENCE_SERVICES, Resource
from capstan_operator.cluster.limiter import Lane
from tests.reconcile.test_gateways import NAME, SPEC, change
from tests.support.operators import run_one
from tests.support.real_cluster import Cluster
from tests.support.small_decide import decide_small

PLAIN: dict[str, Any] = {key: value for key, value in SPEC.items() if key not in ("gateway", "rollout")}


async def served_version(cluster: Cluster) -> Resource:
    for resource in DISRUPTION_BUDGETS:
        try:
            await cluster.names(resource)
            return resource
        except ApiError as error:
            if not error.is_not_found:
                raise
    raise AssertionError("no version of PodDisruptionBudgets is served")


async def budgets_once(
    cluster: Cluster, resource: Resource, holds: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        while not holds(budgets := await cluster.list(resource)):
            await asyncio.sleep(0.05)
    return budgets


async def test_a_budget_is_made_and_made_again_and_goes_with_the_last_but_one_pod(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capstan_operator.serving_parts.LOOK_SECONDS", 0.2)
    resource = await served_version(cluster)
    async with run_one(cluster.kubeconfig, decide_small):
        service = await cluster.create(INFERENCE_SERVICES, NAME, spec=PLAIN)
        [budget] = await budgets_once(cluster, resource, bool)
        assert budget["metadata"]["name"] == NAME
        assert budget["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]
        assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": {"capstan.dev/service": NAME}}}

        await cluster.delete(resource, NAME)
        [again] = await budgets_once(
            cluster, resource, lambda found: any(one["metadata"]["uid"] != budget["metadata"]["uid"] for one in found)
        )
        assert again["spec"] == budget["spec"]

        await change(cluster, {"replicas": 1})
        assert await budgets_once(cluster, resource, lambda found: not found) == []
        await cluster.client.call("DELETE", INFERENCE_SERVICES.path(cluster.namespace, NAME), lane=Lane.SYSTEM)
