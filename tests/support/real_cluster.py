"""One namespace of an API server that is not ours to bend, as a user with all rights sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from capstan_operator.cluster.credentials import read_kubeconfig
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import NAMESPACES, OWN_KINDS, PODS, Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane, Limiter
from capstan_operator.metrics import Metrics
from tests.support.control_planes import ControlPlane

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
CRD_FILES = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))
STORED_MODEL: dict[str, Any] = {
    "modelRef": {
        "uri": {
            "store": {"claim": {"name": "nowhere"}},
            "run": "default/train/uid",
            "digest": "blake3:" + 64 * "0",
        }
    },
    "runtime": "torch",
}
"""Of an InferenceService whose pods never run."""


class Cluster:
    """One namespace of a running API server, as a user with all rights sees it."""

    def __init__(self, client: KubeClient, namespace: str, kubeconfig: Path) -> None:
        self.client = client
        self.namespace = namespace
        self.kubeconfig = kubeconfig

    async def get(self, resource: Resource, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(await self.client.get(resource, self.namespace, name))
        return document

    async def list(self, resource: Resource) -> list[dict[str, Any]]:
        page = json.loads(await self.client.list_page(resource, self.namespace, selector="", token=""))
        items: list[dict[str, Any]] = page["items"]
        return sorted(items, key=lambda item: item["metadata"]["name"])

    async def create(self, resource: Resource, name: str, **body: Any) -> dict[str, Any]:
        group_version = resource.group_path.split("/", 2)[2]
        document = {"apiVersion": group_version, "kind": resource.kind, "metadata": {"name": name}} | body
        created: dict[str, Any] = json.loads(
            await self.client.create(resource, self.namespace, json.dumps(document).encode(), lane=Lane.SYSTEM)
        )
        return created

    async def set_pod_status(self, name: str, **status: Any) -> None:
        await self.client.merge_patch(
            PODS, self.namespace, name, {"status": status}, lane=Lane.SYSTEM, subresource="status"
        )

    async def delete(self, resource: Resource, name: str) -> None:
        await self.client.call("DELETE", resource.path(self.namespace, name), lane=Lane.SYSTEM)

    async def names(self, resource: Resource) -> list[str]:
        return [item["metadata"]["name"] for item in await self.list(resource)]

    async def until(self, resource: Resource, name: str, field: str, value: Any) -> dict[str, Any]:
        """The object once `status.field` has this value."""
        async with asyncio.timeout(30):
            while True:
                document = await self.get(resource, name)
                if document.get("status", {}).get(field) == value:
                    return document
                await asyncio.sleep(0.05)


@asynccontextmanager
async def real_cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    """A new namespace of a running API server that has our CRDs."""
    namespace = f"operator-{uuid4().hex[:8]}"
    async with KubeClient(read_kubeconfig(control_plane.kubeconfig), Limiter(), Metrics()) as client:
        for resource, document in (
            *((CRDS, yaml.safe_load(path.read_text())) for path in CRD_FILES),
            (NAMESPACES, {"metadata": {"name": namespace}}),
            (NAMESPACES, {"metadata": {"name": "capstan"}}),
        ):
            document |= {"apiVersion": resource.group_path.split("/", 2)[2], "kind": resource.kind}
            try:
                await client.call("POST", resource.path(None), lane=Lane.SYSTEM, body=json.dumps(document).encode())
            except ApiError as error:
                if not error.is_already_exists:
                    raise
        await _until_served(client)
        yield Cluster(client, namespace, control_plane.kubeconfig)
        for (
            resource
        ) in OWN_KINDS:  # at once: a namespace goes slowly, and the next test's operator would look after them
            await client.call("DELETE", resource.path(namespace), lane=Lane.SYSTEM)
        await client.call("DELETE", NAMESPACES.path(None, namespace), lane=Lane.SYSTEM)


async def _until_served(client: KubeClient) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                for resource in OWN_KINDS:
                    await client.call("GET", resource.path("default"), lane=Lane.SYSTEM)
                return
            except ApiError as error:
                if not error.is_not_found:
                    raise
            await asyncio.sleep(0.1)
