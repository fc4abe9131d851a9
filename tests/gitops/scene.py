"""One operator, and one namespace for each tool that brings git into a cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    OWN_KINDS,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
)
from capstan_operator.cluster.kinds import TRAINING_JOBS as JOBS
from capstan_operator.cluster.lease import LeaseTimes
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.observe import OperatorSettings
from tests.support.argocd import health_of
from tests.support.control_planes import ControlPlane, free_port
from tests.support.fake_supervisors import serve_fake_supervisors
from tests.support.gitops import (
    ARGO_ANNOTATION,
    ARGO_LABEL,
    FLUX_LABELS,
    LAST_APPLIED,
    ClientSide,
    Repository,
    argo_cd,
    flux,
)
from tests.support.operators import RunningOperator, run_one
from tests.support.pretend_node import PretendNode, pretend_node
from tests.support.real_cluster import Cluster, real_cluster

Document = dict[str, Any]
SECONDS = 90.0
"""For all objects of a namespace to get where they should be, on a machine that has much else to do."""
LOOK_SECONDS = 0.25
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
OURS = {resource.kind for resource in OWN_KINDS}
CHILDREN = (PODS, SECRETS, SERVICES, DEPLOYMENTS, REPLICA_SETS, ENDPOINTS, JOBS, INFERENCE_SERVICES, BENCHMARKS)


def examples(*patterns: str) -> list[Document]:
    """All objects of these files of the examples, in order; an object that two files hold is the first one's."""
    files = [file for pattern in patterns for file in sorted(Path("examples").glob(pattern))]
    found: dict[tuple[str, str], Document] = {}
    for file in files:
        for one in yaml.safe_load_all(file.read_text()):
            found.setdefault((one["kind"], one["metadata"]["name"]), one)
    return list(found.values())


@dataclass
class Place:
    """A namespace, what is in git for it, and its node."""

    repository: Repository
    node: PretendNode

    @property
    def cluster(self) -> Cluster:
        return self.repository.cluster

    async def children(self) -> list[Document]:
        """What is in the namespace and not in git, without what Kubernetes puts into every namespace."""
        lists = await asyncio.gather(*map(self.cluster.list, CHILDREN))
        return [
            one | {"kind": resource.kind}
            for resource, found in zip(CHILDREN, lists, strict=True)
            for one in found
            if (resource.kind, one["metadata"]["name"]) not in self.repository.documents
            and one.get("type") != "kubernetes.io/service-account-token"
        ]


@dataclass
class Scene:
    plane: ControlPlane
    places: list[Place]
    supervisor_port: int
    healths: set[tuple[str, str, str]] = field(default_factory=set)
    """(kind, phase or reason, what Argo CD shows) of all that was looked at."""

    async def sync(self) -> list[str]:
        """What that changed."""
        return [line for place in self.places for line in await place.repository.sync()]

    async def commit(self, resource: Resource, names: Iterable[str], **spec: Any) -> None:
        """To those of these objects that are in git for a place."""
        wanted = list(names)
        for repository in (place.repository for place in self.places):
            known = [name for name in wanted if (resource.kind, name) in repository.documents]
            await repository.commit(resource.kind, *known, **spec)

    async def until(
        self, resource: Resource, names: Iterable[str], holds: Callable[[Document], Any], seconds: float = SECONDS
    ) -> None:
        """Returns once `holds` is true, in each place, of the status of each of these objects that are in git there; a
        status counts when it tells of what is in git now."""
        wanted, left = set(names), {}

        def is_there(one: Document) -> bool:
            status = one.get("status", {})
            return status.get("observedGeneration") == one["metadata"]["generation"] and bool(holds(status))

        try:
            async with asyncio.timeout(seconds):
                for place in self.places:
                    while left := {
                        one["metadata"]["name"]: one.get("status", {})
                        for one in await place.cluster.list(resource)
                        if one["metadata"]["name"] in wanted and not is_there(one)
                    }:
                        await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise AssertionError(f"{place.repository.tool.name}: {json.dumps(left, indent=1)[:6000]}") from None

    async def until_gone(self, *owners: str) -> None:
        """Returns once nothing is left that belongs to objects of these kinds."""
        async with asyncio.timeout(SECONDS):
            for place in self.places:
                while any(owner_of(child) in owners for child in await place.children()):
                    await asyncio.sleep(LOOK_SECONDS)

    async def statuses(self, *resources: Resource) -> list[Document]:
        """Of what is in git, in order."""
        kinds = {resource.kind for resource in resources}
        live = [one for place in self.places for one in await place.repository.live()]
        return [one["status"] for one in live if one["kind"] in kinds]

    async def differences(self) -> list[str]:
        """All that any tool finds between git and its namespace, or would prune of what is not in git."""
        told: list[str] = []
        for place in self.places:
            told += await place.repository.differences()
            told += [f"{place.repository.tool.name}: {line}" for line in map(tracked, await place.children()) if line]
            for one in await place.repository.live():
                if one["kind"] in OURS and "observedGeneration" in one.get("status", {}):
                    self.healths.add((one["kind"], state_of(one), health_of(one)["status"]))
        return told

    async def words(self, resource: Resource) -> dict[str, str]:
        """What Argo CD shows, by name; the same in every place."""
        words: dict[str, str] = {}
        for place in self.places:
            for one in await place.cluster.list(resource):
                name = one["metadata"]["name"]
                if (resource.kind, name) in place.repository.documents:
                    word = health_of(one | {"kind": resource.kind})["status"]
                    assert words.setdefault(name, word) == word, f"{name} is not {word} everywhere"
        return words

    @asynccontextmanager
    async def operator(self, settings: OperatorSettings | None = None) -> AsyncIterator[RunningOperator]:
        """An operator that decides as the one that is shipped."""
        async with run_one(
            self.plane.kubeconfig,
            decide_training_job,
            supervisor_port=self.supervisor_port,
            lease=LeaseTimes(),
            poll_seconds=0.5,
            settings=settings,
        ) as operator:
            yield operator
            assert operator.value("reconciles_total", result="error") == 0


def state_of(document: Document) -> str:
    """Phase; of a service, which has none, the reason."""
    status = document["status"]
    return str(status.get("reason") if document["kind"] == "InferenceService" else status.get("phase"))


def owner_of(child: Document) -> str | None:
    """Kind of its first owner; None: it has none."""
    owners = child["metadata"].get("ownerReferences", [])
    return str(owners[0]["kind"]) if owners else None


def tracked(child: Document) -> str | None:
    """By which mark a tool would take this child for one of its own and prune it; None: by none."""
    metadata = child["metadata"]
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    marks = {name for name in labels if name == ARGO_LABEL or name.startswith(FLUX_LABELS)}
    marks |= annotations.keys() & {ARGO_ANNOTATION, LAST_APPLIED}
    name = f"{child['kind']} {metadata['name']}"
    if marks:
        return f"{name} carries {sorted(marks)}"
    is_owned = bool(metadata.get("ownerReferences")) or child["kind"] == "Endpoints"
    return None if is_owned else f"{name} belongs to nobody"


@asynccontextmanager
async def scene(plane: ControlPlane, documents: list[Document], sample: list[Document]) -> AsyncIterator[Scene]:
    """With `documents` in git for kubectl, and `sample` for Argo CD and Flux; nothing is applied yet."""
    async with AsyncExitStack() as stack:
        supervisors = await stack.enter_async_context(serve_fake_supervisors(free_port()))
        places = []
        for tool, of_tool in ((ClientSide, documents), (argo_cd, sample), (flux, sample)):
            cluster = await stack.enter_async_context(real_cluster(plane))
            node = await stack.enter_async_context(pretend_node(cluster, supervisors))
            places.append(Place(Repository(tool(cluster), of_tool), node))
        yield Scene(plane, places, supervisors.port)
