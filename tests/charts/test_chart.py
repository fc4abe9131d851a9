"""The chart, installed by real Helm on the embedded API server and on a real one."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.apiserver.client import Api, connect
from tests.conftest import real_assets_or_skip
from tests.support.control_planes import ControlPlane, EmbeddedControlPlane, RealControlPlane
from tests.support.helm import Helm, needs_helm

pytestmark = needs_helm

CHART = Path("charts/capstan")
NAMESPACE = "capstan-system"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = ["benchmarks.capstan.dev", "inferenceservices.capstan.dev", "trainingjobs.capstan.dev"]
JOB = list(yaml.safe_load_all(Path("examples/digits-flax/job.yaml").read_text()))
MONITORING = ("servicemonitors", "podmonitors", "prometheusrules")
ALL_OFF: dict[str, Any] = {
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "rbac": {"aggregate": False},
    "operator": {"replicas": 1, "image": {"digest": "sha256:" + "0" * 64}},
}
ALL_ON: dict[str, Any] = {
    "operator": {
        "watchNamespace": "default",
        "allowChaos": True,
        "logLevel": "DEBUG",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "cpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"team": "ml"},
        "podLabels": {"team": "ml"},
        "env": [{"name": "TZ", "value": "UTC"}],
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "checkpointAgeSeconds": 60},
    },
    "serviceAccount": {"name": "own", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
    "commonLabels": {"cost-center": "42"},
}


@pytest.fixture(scope="module", params=["embedded", "real"])
def plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A server of this file's own: what is installed cluster-wide must not have been there before."""
    with tempfile.TemporaryDirectory(prefix="capstan-chart-") as folder:
        home = Path(folder) / "plane"
        chosen: ControlPlane = (
            EmbeddedControlPlane(home)
            if request.param == "embedded"
            else RealControlPlane(home, assets=real_assets_or_skip())
        )
        with chosen as running:
            yield running


@pytest_asyncio.fixture
async def api(plane: ControlPlane) -> AsyncIterator[Api]:
    async with connect(plane) as api:
        yield api


@pytest_asyncio.fixture
async def helm(plane: ControlPlane, api: Api, tmp_path: Path) -> AsyncIterator[Helm]:
    """Helm on a server that has the Prometheus Operator's kinds; what a test installed is gone after it."""
    for plural in MONITORING:
        await api.post(CRDS, _monitoring_crd(plural))
    helm = Helm(plane, NAMESPACE, tmp_path)
    yield helm
    helm.answer("Uninstall", release_name="capstan", wait=False)
    for name in KINDS:
        await api.delete(f"{CRDS}/{name}")
        await _until_gone(api, f"{CRDS}/{name}")


def _monitoring_crd(plural: str) -> dict[str, Any]:
    kind = {"servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}[
        plural
    ]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


async def _until_gone(api: Api, path: str) -> None:
    async with asyncio.timeout(60):
        while (await api.get(path)).status != 404:
            await asyncio.sleep(0.2)


def install(helm: Helm, **values: Any) -> None:
    helm("Install", release_name="capstan", chart_path=str(CHART), create_namespace=True, wait=False, values=values)


async def objects(api: Api, plane: ControlPlane) -> dict[str, Any]:
    """All that the release made, by `kind name`."""
    found = {}
    for group, plurals in {
        "/api/v1": ("services", "serviceaccounts"),
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


async def test_a_release_holds_what_its_values_ask_for_and_leaves_the_jobs_behind(
    api: Api, plane: ControlPlane, helm: Helm
) -> None:
    install(helm)
    names = sorted(await objects(api, plane))
    assert names == [
        "clusterrolebindings capstan",
        "clusterroles capstan",
        "clusterroles capstan-edit",
        "clusterroles capstan-view",
        "deployments capstan",
        "networkpolicies capstan",
        "poddisruptionbudgets capstan",
        "rolebindings capstan-own",
        "roles capstan-own",
        "serviceaccounts capstan",
        "services capstan",
    ]
    manifest = next(document for document in JOB if document["kind"] == "TrainingJob")
    jobs = "/apis/capstan.dev/v1alpha1/namespaces/default/trainingjobs"
    await _created(api, jobs, manifest)

    helm("Uninstall", release_name="capstan", wait=False)
    assert sorted(await objects(api, plane)) == []
    kept = (await api.get(f"{jobs}/digits-flax")).expect(200)
    assert kept["spec"]["model"] == manifest["spec"]["model"]
    assert [name for name in KINDS if (await api.get(f"{CRDS}/{name}")).status != 200] == []
    # And a new release takes them up again.
    install(helm)
    assert (await api.get(f"{jobs}/digits-flax")).expect(200)["metadata"]["uid"] == kept["metadata"]["uid"]


async def _created(api: Api, path: str, manifest: dict[str, Any]) -> None:
    """A kind that was just defined is served a moment later."""
    async with asyncio.timeout(30):
        while (await api.post(path, manifest)).status != 201:
            await asyncio.sleep(0.2)


async def test_installing_again_changes_nothing(api: Api, plane: ControlPlane, helm: Helm) -> None:
    install(helm)
    before = _versions(await objects(api, plane))
    crds = [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS]
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False)
    assert _versions(await objects(api, plane)) == before
    assert [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS] == crds


def _versions(found: dict[str, Any]) -> dict[str, Any]:
    """What grows with every change of an object, but not of its status, where it has one."""
    return {
        name: item["metadata"].get("generation", item["metadata"]["resourceVersion"]) for name, item in found.items()
    }


@pytest.mark.parametrize("values", [ALL_OFF, ALL_ON], ids=["all off", "all on"])
async def test_every_value_can_be_changed_and_changed_back(
    api: Api, plane: ControlPlane, helm: Helm, values: dict[str, Any]
) -> None:
    install(helm)
    plain = _shapes(await objects(api, plane))
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False, values=values)
    assert _shapes(await objects(api, plane)) != plain
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False, reset_values=True)
    assert _shapes(await objects(api, plane)) == plain


def _shapes(found: dict[str, Any]) -> dict[str, Any]:
    """What was asked for of each object."""
    return {
        name: [item.get(part) for part in ("spec", "rules", "subjects")]
        for name, item in found.items()
        if not name.startswith("services ")  # its address is given, and kept
    }


async def test_all_that_can_be_on_is_accepted_by_the_api_server(api: Api, plane: ControlPlane, helm: Helm) -> None:
    install(helm, **ALL_ON)
    found = await objects(api, plane)
    assert sorted(found) == [
        "clusterrolebindings capstan-chaos",
        "clusterroles capstan-chaos",
        "clusterroles capstan-edit",
        "clusterroles capstan-view",
        "deployments capstan",
        "networkpolicies capstan",
        "poddisruptionbudgets capstan",
        "podmonitors capstan",
        "prometheusrules capstan",
        "rolebindings capstan",
        "rolebindings capstan-own",
        "roles capstan",
        "roles capstan-own",
        "serviceaccounts own",
        "servicemonitors capstan",
        "services capstan",
    ]
    container = found["deployments capstan"]["spec"]["template"]["spec"]["containers"][0]
    assert [argument for argument in container["args"] if argument.startswith(("--namespace", "--allow", "--log"))] == [
        "--log-level=DEBUG",
        "--namespace=default",
        "--allow-chaos",
    ]
    rules = found["prometheusrules capstan"]["spec"]["groups"][0]["rules"]
    assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in rules)
    assert "> 60" in next(rule["expr"] for rule in rules if rule["alert"] == "CapstanCheckpointIsOld")
    labelled = {item["metadata"]["labels"].get("cost-center") for item in found.values()}
    assert labelled == {"42"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"operator": {"replica": 1}}, "replica"),
        ({"operator": {"replicas": "two"}}, "replicas"),
        ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
        ({"images": {"torch": "x"}}, "torch"),
    ],
)
async def test_a_value_that_means_nothing_is_refused_by_its_name(
    helm: Helm, values: dict[str, Any], named: str
) -> None:
    answer = helm.answer(
        "Install", release_name="capstan", chart_path=str(CHART), create_namespace=True, wait=False, values=values
    )
    assert "values don't meet the specifications of the schema" in answer["error"]
    assert named in answer["error"]


def test_the_schema_says_what_the_readme_says() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    readme = (CHART / "README.md").read_text()
    assert (
        f"| `operator.replicas` | `2` | {schema['properties']['operator']['properties']['replicas']['description']} |"
        in readme
    )
