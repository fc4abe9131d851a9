"""What the tests of this folder know of a release and look at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from tests.apiserver.client import Api
from tests.support.control_planes import ControlPlane
from tests.support.helm import Helm

CHART = Path("charts/capstan")
NAMESPACE = "capstan-system"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = ["benchmarks.capstan.dev", "inferenceservices.capstan.dev", "trainingjobs.capstan.dev"]
MONITORING = ("servicemonitors", "podmonitors", "prometheusrules")
JOBS = "/apis/capstan.dev/v1alpha1/namespaces/default/trainingjobs"


def install(helm: Helm, chart: Path = CHART, **values: Any) -> None:
    helm("Install", release_name="capstan", chart_path=str(chart), create_namespace=True, wait=False, values=values)


async def objects(api: Api, plane: ControlPlane) -> dict[str, Any]:
    """All that the release made, by `kind name`, but for the definitions."""
    found = {}
    for group, plurals in {
        "/api/v1": ("services", "serviceaccounts", "configmaps"),
        "/apis/apps/v1": ("deployments",),
        "/apis/policy/v1" if plane.is_current else "/apis/policy/v1beta1": ("poddisruptionbudgets",),
        "/apis/networking.k8s.io/v1": ("networkpolicies",),
        "/apis/rbac.authorization.k8s.io/v1": ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
        "/apis/monitoring.coreos.com/v1": MONITORING,
    }.items():
        for plural in plurals:
            path = f"{group}/{plural}"
            answer = await api.get(path, labelSelector="app.kubernetes.io/part-of=capstan")
            for item in answer.expect(200)["items"]:
                found[f"{plural} {item['metadata']['name']}"] = item
    return found


def shapes(found: dict[str, Any]) -> dict[str, Any]:
    """What was asked for of each object."""
    return {
        name: [item.get(part) for part in ("spec", "rules", "subjects", "data")]
        for name, item in found.items()
        if not name.startswith("services ")  # its address is given, and kept
    }


def versions(found: dict[str, Any]) -> dict[str, Any]:
    """What grows with every change of an object, but not of its status, where it has one."""
    return {
        name: item["metadata"].get("generation", item["metadata"]["resourceVersion"]) for name, item in found.items()
    }


async def create(api: Api, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """A kind that was just defined is served a moment later."""
    async with asyncio.timeout(30):
        while (answer := await api.post(path, manifest)).status != 201:
            assert answer.status in (404, 503), answer.body
            await asyncio.sleep(0.2)
    created: dict[str, Any] = answer.body
    return created


class _UniqueKeys(yaml.CSafeLoader):
    """Refuses a key that stands twice in one map, as Helm's parser of manifests does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        assert len(names) == len(set(names)), f"{node.start_mark}: a key of {names} is there twice"
        return super().construct_mapping(node, deep)


def documents(manifests: list[str]) -> list[dict[str, Any]]:
    """The different objects of rendered releases."""
    texts = {text for manifest in manifests for text in manifest.split("\n---\n")}
    found = (yaml.load(text, _UniqueKeys) for text in sorted(texts))
    return [document for document in found if document]
