"""What GitOps tools do: apply what is in git, and compare it with what is there.

`ClientSide` is kubectl (and Argo CD as it comes): it keeps what it applied last in an annotation, and compares three
ways. `ServerSide` is Argo CD with ServerSideApply and Server-Side Diff, or Flux: it asks the API server what an apply
would make of the object. None of our kinds has a strategic merge, nor any list of what the examples hold beside them,
so a JSON merge patch (RFC 7386) tells the same as kubectl's.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import OWN_KINDS, Resource
from capstan_operator.cluster.kube import APPLY_PATCH, MERGE_PATCH
from capstan_operator.cluster.limiter import Lane
from tests.support.real_cluster import Cluster

Document = dict[str, Any]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
ARGO_LABEL, ARGO_ANNOTATION = "app.kubernetes.io/instance", "argocd.argoproj.io/tracking-id"
FLUX_LABELS = "kustomize.toolkit.fluxcd.io/"
RBAC = "rbac.authorization.k8s.io"
RESOURCES = {
    resource.kind: resource
    for resource in (
        *OWN_KINDS,
        Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
        Resource("", "v1", "serviceaccounts", "ServiceAccount"),
        Resource("", "v1", "configmaps", "ConfigMap"),
        Resource(RBAC, "v1", "roles", "Role"),
        Resource(RBAC, "v1", "rolebindings", "RoleBinding"),
    )
}
"""What the examples are made of, by kind."""
_NOT_COMPARED = ("managedFields", "resourceVersion")


def three_way(applied: Document, wanted: Document, live: Document) -> Document:
    """The merge patch that makes `live` what `wanted` says: what differs is set, and what was `applied` and is no more
    wanted is removed."""
    patch: Document = {}
    for name, value in wanted.items():
        found = live.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            before = applied.get(name)
            if inner := three_way(before if isinstance(before, dict) else {}, value, found):
                patch[name] = inner
        elif found != value:
            patch[name] = value
    return patch | {name: None for name in applied if name not in wanted and name in live}


def leaves(patch: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of what a merge patch changes."""
    for name, value in patch.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}.{name}".lstrip("."))
        else:
            yield f"{path}.{name}".lstrip(".")


def comparable(document: Document) -> Document:
    """Without what Argo CD and Flux leave out: status, which is nobody's wish, and the API server's bookkeeping."""
    metadata = {name: value for name, value in document["metadata"].items() if name not in _NOT_COMPARED}
    return {name: value for name, value in document.items() if name != "status"} | {"metadata": metadata}


def differences(applied: Document, wanted: Document, live: Document, dry: Document) -> list[str]:
    """What a client finds that compares three ways, and one that compares with the answer to a `dry` run of an apply on
    the server's side."""
    on_client = [f"client-side: {path}" for path in leaves(three_way(applied, wanted, live))]
    return on_client + [f"server-side: {path}" for path in _differing(comparable(live), comparable(dry))]


@dataclass(frozen=True)
class ClientSide:
    """`kubectl apply` and `kubectl diff`."""

    cluster: Cluster
    name: str = "kubectl"

    def render(self, document: Document) -> Document:
        """With what kubectl adds before it compares."""
        metadata = document["metadata"]
        added = {"annotations": metadata.get("annotations", {}), "namespace": self.cluster.namespace}
        return document | {"metadata": metadata | added}

    async def apply(self, document: Document) -> bool:
        """Whether anything was sent; kubectl says `unchanged` when not."""
        name = document["metadata"]["name"]
        resource = RESOURCES[document["kind"]]
        noted = copy.deepcopy(document)
        noted["metadata"].setdefault("annotations", {})[LAST_APPLIED] = json.dumps(document)
        try:
            live = await self.cluster.get(resource, name)
        except ApiError as error:
            if not error.is_not_found:
                raise
            await _send(self.cluster, "POST", resource, None, noted, {"fieldManager": self.name})
            return True
        if patch := three_way(last_applied(live), noted, live):
            await _send(self.cluster, "PATCH", resource, name, patch, {"fieldManager": self.name}, MERGE_PATCH)
        return bool(patch)

    async def differences(self, document: Document, live: Document) -> list[str]:
        """As `kubectl diff` tells them, and as Server-Side Diff of Argo CD, which may be turned on at any time."""
        dry = await _apply(self.cluster, document, "argocd-controller", is_dry=True)
        return differences(last_applied(live), document, live, dry)


@dataclass(frozen=True)
class ServerSide:
    """A controller that applies on the server's side, by force, what it has rendered."""

    cluster: Cluster
    name: str
    """Its field manager."""
    labels: Mapping[str, str]
    """That it puts on everything."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def render(self, document: Document) -> Document:
        metadata = document["metadata"]
        labels = {**metadata.get("labels", {}), **self.labels}
        annotations = {**metadata.get("annotations", {}), **self.annotations}
        noted = {"annotations": annotations} if annotations else {}
        return document | {"metadata": metadata | {"labels": labels} | noted}

    async def apply(self, document: Document) -> bool:
        """Whether that made another version of the object."""
        try:
            before = (await self.cluster.get(RESOURCES[document["kind"]], document["metadata"]["name"]))["metadata"]
        except ApiError as error:
            if not error.is_not_found:
                raise
            before = {}
        after = (await _apply(self.cluster, document, self.name, is_dry=False))["metadata"]
        return bool(before.get("generation") != after.get("generation") or "uid" not in before)

    async def differences(self, document: Document, live: Document) -> list[str]:
        """As Server-Side Diff tells them; and as Argo CD without it does where nobody noted what was applied."""
        return differences(document, document, live, await _apply(self.cluster, document, self.name, is_dry=True))


Tool = ClientSide | ServerSide


def argo_cd(cluster: Cluster) -> ServerSide:
    """As the chart's documentation sets it up, tracking by label and by annotation at once."""
    tracking = {ARGO_ANNOTATION: f"examples:capstan.dev/any:{cluster.namespace}/any"}
    return ServerSide(cluster, "argocd-controller", {ARGO_LABEL: "examples"}, tracking)


def flux(cluster: Cluster) -> ServerSide:
    """A Kustomization."""
    labels = {f"{FLUX_LABELS}name": "examples", f"{FLUX_LABELS}namespace": "flux-system"}
    return ServerSide(cluster, "kustomize-controller", labels)


class Repository:
    """What is in git, and the tool that brings it into one namespace."""

    def __init__(self, tool: Tool, documents: list[Document]) -> None:
        self.tool = tool
        self.documents = {(one["kind"], one["metadata"]["name"]): tool.render(one) for one in documents}
        self.commits = dict.fromkeys(self.documents, 0)
        """How often the spec of each was changed."""

    @property
    def cluster(self) -> Cluster:
        return self.tool.cluster

    async def sync(self) -> list[str]:
        """Apply everything; `kind name` of what that changed."""
        changed = await _at_most_eight(self.tool.apply(one) for one in self.documents.values())
        return [f"{kind} {name}" for (kind, name), is_new in zip(self.documents, changed, strict=True) if is_new]

    async def commit(self, kind: str, *names: str, **spec: Any) -> None:
        """Change the specs of these objects (a merge patch), and sync them."""
        for name in names:
            document = copy.deepcopy(self.documents[kind, name])
            document["spec"] = merge(document["spec"], spec)
            self.documents[kind, name] = document
            self.commits[kind, name] += 1
        changed = await _at_most_eight(self.tool.apply(self.documents[kind, name]) for name in names)
        assert all(changed), f"{self.tool.name}: {kind} {names} were committed to no effect"

    async def live(self) -> list[Document]:
        """What is there of what is in git."""
        return await _at_most_eight(self.cluster.get(RESOURCES[kind], name) for kind, name in self.documents)

    async def differences(self) -> list[str]:
        """Between git and the namespace, and whatever of the objects was written by the operator but their status."""
        live = await self.live()
        found = await _at_most_eight(
            self.tool.differences(document, one) for document, one in zip(self.documents.values(), live, strict=True)
        )
        told = [
            f"{self.tool.name}: {kind} {name}: {line}"
            for (kind, name), lines in zip(self.documents, found, strict=True)
            for line in lines
        ]
        for one, commits in zip(live, self.commits.values(), strict=True):
            told += [
                f"{self.tool.name}: {one['kind']} {one['metadata']['name']}: {line}" for line in meddled(one, commits)
            ]
        return told


def meddled(live: Document, commits: int) -> Iterator[str]:
    """What the operator has written into one of its objects that is not status."""
    if live["kind"] not in {resource.kind for resource in OWN_KINDS}:
        return
    if live["metadata"]["generation"] != 1 + commits:
        yield f"spec was written by somebody: generation {live['metadata']['generation']} after {commits} commits"
    for entry in live["metadata"]["managedFields"]:
        if entry["manager"] == "capstan-operator" and set(entry["fieldsV1"]) - {"f:status"}:
            yield f"the operator owns {sorted(entry['fieldsV1'])}"


def last_applied(live: Document) -> Document:
    """What kubectl applied last; empty when it never did."""
    text = live["metadata"].get("annotations", {}).get(LAST_APPLIED)
    document: Document = json.loads(text) if text else {}
    return document


def merge(base: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    known = base if isinstance(base, dict) else {}
    kept = {name: value for name, value in known.items() if name not in patch}
    return kept | {name: merge(known.get(name), value) for name, value in patch.items() if value is not None}


def _differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from _differing(one.get(name), other.get(name), f"{path}.{name}".lstrip("."))
    elif one != other:
        yield f"{path} is {one!r} and would be {other!r}"


async def _apply(cluster: Cluster, document: Document, manager: str, *, is_dry: bool) -> Document:
    params = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if is_dry else {})
    resource, name = RESOURCES[document["kind"]], document["metadata"]["name"]
    return await _send(cluster, "PATCH", resource, name, document, params, APPLY_PATCH)


async def _send(
    cluster: Cluster,
    method: str,
    resource: Resource,
    name: str | None,
    body: Document,
    params: Mapping[str, str],
    content_type: str = "application/json",
) -> Document:
    answer = await cluster.client.call(
        method,
        resource.path(cluster.namespace, name),
        lane=Lane.SYSTEM,
        body=json.dumps(body).encode(),
        content_type=content_type,
        params=params,
    )
    document: Document = json.loads(answer)
    return document


async def _at_most_eight(calls: Any) -> list[Any]:
    """Their results, in order."""
    gate = asyncio.Semaphore(8)

    async def one(call: Any) -> Any:
        async with gate:
            return await call

    return await asyncio.gather(*map(one, calls))
