"""A service behind a Gateway, under a whole operator: the HTTPRoute is made, divides a canary's traffic, and goes.

The kind of HTTPRoute is a small one of our own; what a Gateway does with it is played here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstan_operator.api.meta import LABEL_REVISION
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import DEPLOYMENTS, HTTP_ROUTES, INFERENCE_SERVICES, PODS, SERVICES, Resource
from capstan_operator.cluster.limiter import Lane
from tests.support.operators import run_one
from tests.support.real_cluster import CRDS, STORED_MODEL, Cluster
from tests.support.small_decide import decide_small

REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
NAME = "digits"
SPEC: dict[str, Any] = {
    **STORED_MODEL,
    "replicas": 4,
    "timeoutSeconds": 2.5,
    "gateway": {"parentRefs": [{"name": "public", "namespace": "edge"}], "hostnames": ["digits.example.com"]},
    # Nobody asks, so the canary stays undecided and is given up after four times its hold.
    "rollout": {"strategy": {"canary": {"steps": [{"weight": 60, "holdSeconds": 1}]}}},
}
TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
PARENT = {
    "type": "object",
    "properties": {
        "group": TEXT | {"default": HTTP_ROUTES.group},
        "kind": TEXT | {"default": "Gateway"},
        "namespace": TEXT,
        "name": TEXT,
        "sectionName": TEXT,
    },
}
BACKEND = {
    "type": "object",
    "properties": {
        "kind": TEXT | {"default": "Service"},
        "name": TEXT,
        "port": INTEGER,
        "weight": INTEGER | {"default": 1},
    },
}
RULE = {
    "type": "object",
    "properties": {
        "backendRefs": {"type": "array", "items": BACKEND},
        "timeouts": {"type": "object", "properties": {"request": TEXT}},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "parentRefs": {"type": "array", "items": PARENT},
                "hostnames": {"type": "array", "items": TEXT},
                "rules": {"type": "array", "items": RULE},
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
CRD_NAME = f"{HTTP_ROUTES.plural}.{HTTP_ROUTES.group}"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": CRD_NAME,
        # API servers give names in k8s.io only to what says that it was approved.
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
    },
    "spec": {
        "group": HTTP_ROUTES.group,
        "scope": "Namespaced",
        "names": {"kind": "HTTPRoute", "listKind": "HTTPRouteList", "plural": "httproutes", "singular": "httproute"},
        "versions": [
            {
                "name": HTTP_ROUTES.version,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": SCHEMA},
                "subresources": {"status": {}},
            }
        ],
    },
}


NOBODY = "127.255.0.9"
"""An address on loopback at which nothing listens."""


class Surroundings:
    """What the Deployment controller, a node and a Gateway do: pods come and are ready, routes are taken."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.hears = True
        """The Gateway hears of changes of routes."""

    async def run(self) -> None:
        while True:
            for act in (self._match_pods, self._take_route):
                try:
                    await act()
                except ApiError as error:
                    if not (error.is_not_found or error.is_conflict or error.is_already_exists):
                        raise
            await asyncio.sleep(0.05)

    async def _match_pods(self) -> None:
        wanted = {
            f"{deployment['metadata']['name']}-{index}": deployment["spec"]["template"]["metadata"]["labels"]
            for deployment in await self._cluster.list(DEPLOYMENTS)
            for index in range(deployment["spec"]["replicas"])
        }
        there = await self._cluster.names(PODS)
        for name in set(there) - set(wanted):
            await self._cluster.delete(PODS, name)
        for name in set(wanted) - set(there):
            spec = {"containers": [{"name": "server", "image": "none"}]}
            owner = await self._replica_set(wanted[name][LABEL_REVISION], wanted[name])
            metadata = {"name": name, "labels": wanted[name], "ownerReferences": [owner]}
            await self._cluster.create(PODS, name, metadata=metadata, spec=spec)
            ready = {"type": "Ready", "status": "True", "lastProbeTime": None}
            # They are asked for their numbers, and nobody answers.
            await self._cluster.set_pod_status(
                name, phase="Running", podIP=NOBODY, hostIP="127.0.0.1", conditions=[ready]
            )

    async def _replica_set(self, revision: str, labels: dict[str, str]) -> dict[str, Any]:
        """Reference to the ReplicaSet of this revision, which is made if it is not there."""
        name = f"{revision}-1"
        if name not in await self._cluster.names(REPLICA_SETS):
            template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "server", "image": "none"}]}}
            spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
            await self._cluster.create(REPLICA_SETS, name, spec=spec)
        uid = (await self._cluster.get(REPLICA_SETS, name))["metadata"]["uid"]
        return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": True}

    async def _take_route(self) -> None:
        route = await self._cluster.get(HTTP_ROUTES, NAME)
        generation = route["metadata"]["generation"]
        parents = route.get("status", {}).get("parents", [])
        if not self.hears or any(one["observedGeneration"] == generation for p in parents for one in p["conditions"]):
            return
        said = [
            {"type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": generation}
            for kind in ("Accepted", "ResolvedRefs")
        ]
        status = {"parents": [{"parentRef": {"name": "public"}, "controllerName": "a.b/c", "conditions": said}]}
        await self._cluster.client.merge_patch(
            HTTP_ROUTES, self._cluster.namespace, NAME, {"status": status}, lane=Lane.SYSTEM, subresource="status"
        )


@pytest.fixture
async def surroundings(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Surroundings]:
    """With an operator that runs in them, and no Gateway API at first."""
    monkeypatch.setattr("capstan_operator.serving_parts.LOOK_SECONDS", 0.2)
    surroundings = Surroundings(cluster)
    async with run_one(cluster.kubeconfig, decide_small):
        running = asyncio.create_task(surroundings.run())
        try:
            yield surroundings
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def gateway_api(cluster: Cluster) -> AsyncIterator[None]:
    """The API server serves HTTPRoutes."""
    await cluster.client.call("POST", CRDS.path(None), lane=Lane.SYSTEM, body=json.dumps(CRD).encode())
    try:
        yield
    finally:
        await cluster.client.call("DELETE", CRDS.path(None, CRD_NAME), lane=Lane.SYSTEM)


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


async def change(cluster: Cluster, spec: dict[str, Any]) -> None:
    await cluster.client.merge_patch(INFERENCE_SERVICES, cluster.namespace, NAME, {"spec": spec}, lane=Lane.SYSTEM)


def another_revision(number: int) -> dict[str, Any]:
    return {"podPatch": {"metadata": {"annotations": {"try": str(number)}}}}


async def led_to(cluster: Cluster) -> tuple[dict[str, int], str]:
    """(weights of the HTTPRoute, revision behind the stable Service)."""
    route, service = await cluster.get(HTTP_ROUTES, NAME), await cluster.get(SERVICES, NAME)
    weights = {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]}
    return weights, service["spec"]["selector"]["capstan.dev/revision"]


async def until_led_to(cluster: Cluster, weights: dict[str, int], revision: str) -> None:
    """Returns once requests go there: while a real controller manager has taken a pod of a stand-in ReplicaSet away, as
    it does now and then, the Service is led to whoever has pods."""
    async with asyncio.timeout(20):
        while (seen := await led_to(cluster)) != (weights, revision):
            assert seen[0] == weights
            await asyncio.sleep(0.1)


def is_live(status: dict[str, Any]) -> bool:
    return (status.get("reason"), status.get("ready")) == ("Live", "4/4")


async def test_a_canary_has_its_exact_weight_and_gives_it_back(cluster: Cluster, surroundings: Surroundings) -> None:
    async with gateway_api(cluster):
        await cluster.create(INFERENCE_SERVICES, NAME, spec=SPEC)
        status = await status_once(cluster, "life", lambda seen: is_live(seen) and seen["trafficMode"] == "Gateway")
        first = status["stable"]
        route = await cluster.get(HTTP_ROUTES, NAME)
        parent = {"group": HTTP_ROUTES.group, "kind": "Gateway", "name": "public", "namespace": "edge"}
        assert route["spec"]["parentRefs"] == [parent]
        assert route["spec"]["hostnames"] == ["digits.example.com"]
        assert route["spec"]["rules"][0]["timeouts"] == {"request": "2s500ms"}
        assert await led_to(cluster) == ({NAME: 1}, first)

        await change(cluster, another_revision(2))
        status = await status_once(cluster, "share", lambda seen: seen.get("traffic", "").count("%") == 2)
        second = status["rollout"]["candidate"]
        assert status["traffic"] == f"{second} 60%, {first} 40%"
        await until_led_to(cluster, {first: 40, second: 60}, first)
        sizes = {one["metadata"]["name"]: one["spec"]["replicas"] for one in await cluster.list(DEPLOYMENTS)}
        assert sizes == {first: 4, second: 3}

        await status_once(cluster, "verdict", lambda seen: seen.get("reason") == "GateInconclusive")
        assert await led_to(cluster) == ({NAME: 1}, first)
        async with asyncio.timeout(30):  # the API server answers before a Deployment and its pods are gone
            while await cluster.names(DEPLOYMENTS) != [first]:
                await asyncio.sleep(0.1)


async def test_what_a_gateway_may_still_lead_to_is_kept(cluster: Cluster, surroundings: Surroundings) -> None:
    async with gateway_api(cluster):
        await cluster.create(INFERENCE_SERVICES, NAME, spec=SPEC)
        first = (await status_once(cluster, "life", is_live))["stable"]
        await change(cluster, another_revision(2))
        status = await status_once(cluster, "counting", lambda seen: "since" in seen.get("rollout", {}))
        second = status["rollout"]["candidate"]
        surroundings.hears = False
        await status_once(cluster, "retreat", lambda seen: seen.get("reason") == "Retreating")
        await status_once(cluster, "no share", lambda seen: seen.get("traffic") == f"{first} 100%")
        assert await led_to(cluster) == ({NAME: 1}, first)
        assert await cluster.names(DEPLOYMENTS) == sorted([first, second])
        surroundings.hears = True
        await status_once(cluster, "verdict", lambda seen: seen.get("reason") == "GateInconclusive")
        assert await cluster.names(SERVICES) == [NAME, first]


async def test_a_promotion_moves_the_stable_service_and_leaves_the_route(
    cluster: Cluster, surroundings: Surroundings
) -> None:
    spec = SPEC | {"rollout": {"strategy": {"blueGreen": {"holdSeconds": 0}}}}
    async with gateway_api(cluster):
        await cluster.create(INFERENCE_SERVICES, NAME, spec=spec)
        first = (await status_once(cluster, "life", is_live))["stable"]
        route = await cluster.get(HTTP_ROUTES, NAME)
        await change(cluster, another_revision(2))
        status = await status_once(
            cluster, "promotion", lambda seen: is_live(seen) and seen.get("stable") not in (None, first)
        )
        assert await led_to(cluster) == ({NAME: 1}, status["stable"])
        assert (await cluster.get(HTTP_ROUTES, NAME))["metadata"]["generation"] == route["metadata"]["generation"]

        await change(cluster, {"gateway": None})
        await status_once(cluster, "selector", lambda seen: seen.get("trafficMode") == "Selector")
        assert await cluster.names(HTTP_ROUTES) == []


async def test_the_gateway_api_comes_and_goes(cluster: Cluster, surroundings: Surroundings) -> None:
    await cluster.create(INFERENCE_SERVICES, NAME, spec=SPEC)
    await status_once(cluster, "refusal", lambda seen: seen.get("reason") == "GatewayApiMissing")
    assert await cluster.names(DEPLOYMENTS) == []
    async with gateway_api(cluster):
        status = await status_once(cluster, "life", lambda seen: is_live(seen) and seen["ready"] == "4/4")
    # A real controller manager takes pods of the stand-in ReplicaSet away now and then; they are made again at once.
    missing = await status_once(
        cluster, "second refusal", lambda seen: (seen.get("reason"), seen.get("ready")) == ("GatewayApiMissing", "4/4")
    )
    accepted = next(one for one in missing["conditions"] if one["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "GatewayApiMissing")
    assert accepted["message"].endswith("No new revision is made until then.")
    assert missing["stable"] == status["stable"]
    async with gateway_api(cluster):
        await status_once(cluster, "life again", is_live)
        assert await led_to(cluster) == ({NAME: 1}, status["stable"])
