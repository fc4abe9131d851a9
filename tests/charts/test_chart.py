"""The chart, installed by real Helm on the embedded API server and on a real one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.apiserver.client import Api
from tests.charts.releases import CHART, CRDS, JOBS, KINDS, NAMESPACE, create, install, objects, shapes, versions
from tests.support.control_planes import ControlPlane
from tests.support.helm import Helm, needs_helm

pytestmark = needs_helm

JOB = list(yaml.safe_load_all(Path("examples/digits-flax/job.yaml").read_text()))
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
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
        "allowHostPath": True,
        "logLevel": "DEBUG",
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"limits": None},  # takes the default out
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
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Capstan"}},
    },
    "serviceAccount": {"name": "own", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
    "commonLabels": {"cost-center": "42"},
}


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
    (container,) = (await objects(api, plane))["deployments capstan"]["spec"]["template"]["spec"]["containers"]
    started = [argument.partition("=")[2] for argument in container["args"] if "-image=" in argument]
    assert [container["image"], *started] == [
        f"capstan/{name}:{VERSION}"
        for name in ("operator", "flax-trainer", "deepspeed-trainer", "serve-replica", "bench")
    ]
    manifest = next(document for document in JOB if document["kind"] == "TrainingJob")
    await create(api, JOBS, manifest)

    helm("Uninstall", release_name="capstan", wait=False)
    assert sorted(await objects(api, plane)) == []
    kept = (await api.get(f"{JOBS}/digits-flax")).expect(200)
    assert kept["spec"]["model"] == manifest["spec"]["model"]
    assert [name for name in KINDS if (await api.get(f"{CRDS}/{name}")).status != 200] == []
    # And a new release takes them up again.
    install(helm)
    assert (await api.get(f"{JOBS}/digits-flax")).expect(200)["metadata"]["uid"] == kept["metadata"]["uid"]


async def test_installing_again_changes_nothing(api: Api, plane: ControlPlane, helm: Helm) -> None:
    install(helm)
    before = versions(await objects(api, plane))
    crds = [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS]
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False)
    assert versions(await objects(api, plane)) == before
    assert [(await api.get(f"{CRDS}/{name}")).expect(200)["metadata"]["generation"] for name in KINDS] == crds


@pytest.mark.parametrize("values", [ALL_OFF, ALL_ON], ids=["all off", "all on"])
async def test_every_value_can_be_changed_and_changed_back(
    api: Api, plane: ControlPlane, helm: Helm, values: dict[str, Any]
) -> None:
    install(helm)
    plain = shapes(await objects(api, plane))
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False, values=values)
    assert shapes(await objects(api, plane)) != plain
    helm("Upgrade", release_name="capstan", chart_path=str(CHART), wait=False, reset_values=True)
    assert shapes(await objects(api, plane)) == plain


async def test_all_that_can_be_on_is_accepted_by_the_api_server(api: Api, plane: ControlPlane, helm: Helm) -> None:
    install(helm, **ALL_ON)
    found = await objects(api, plane)
    assert sorted(found) == [
        "clusterrolebindings capstan-default-chaos",
        "clusterroles capstan-default-chaos",
        "clusterroles capstan-default-edit",
        "clusterroles capstan-default-view",
        *(f"configmaps capstan-dashboard-{name}" for name in ("benchmarks", "operator", "serving", "training")),
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
        "--allow-host-path",
    ]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "192Mi"}}
    rules = found["prometheusrules capstan"]["spec"]["groups"][0]["rules"]
    assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in rules)
    assert "> 60" in next(rule["expr"] for rule in rules if rule["alert"] == "CapstanCheckpointIsOld")
    dashboard = found["configmaps capstan-dashboard-training"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["metadata"]["annotations"]["grafana_folder"] == "Capstan"
    assert json.loads(dashboard["data"]["capstan-training.json"])["uid"] == "capstan-training"
    labelled = {item["metadata"]["labels"].get("cost-center") for item in found.values()}
    assert labelled == {"42"}


async def test_releases_for_one_namespace_each_may_have_the_same_name(
    api: Api, plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    other = Helm(plane, "default", tmp_path)
    install(helm, operator={"watchNamespace": NAMESPACE, "allowChaos": True})
    install(other, operator={"watchNamespace": "default", "allowChaos": True}, crds={"enabled": False})
    other("Uninstall", release_name="capstan", wait=False)
    found = await objects(api, plane)
    assert [name for name in sorted(found) if name.startswith("cluster")] == [
        f"clusterrolebindings capstan-{NAMESPACE}-chaos",
        *(f"clusterroles capstan-{NAMESPACE}-{part}" for part in ("chaos", "edit", "view")),
    ]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"operator": {"replica": 1}}, "replica"),
        ({"operator": {"replicas": "two"}}, "replicas"),
        ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
        ({"images": {"torch": "x"}}, "torch"),
        ({"commonLabels": {"cost-center": 42}}, "cost-center"),
        ({"operator": {"imagePullSecrets": ["registry"]}}, "imagePullSecrets"),
        ({"operator": None}, "operator"),
        ({"crds": None}, "crds"),
        ({"operator": {"watchNamespace": "Team A"}}, "watchNamespace"),
        ({"operator": {"image": {"digest": "abc"}}}, "digest"),
        ({"operator": {"image": {"tag": "1 2"}}}, "tag"),
        ({"operator": {"image": {"repository": ""}}}, "repository"),
        ({"images": {"flax": "a b"}}, "flax"),
        ({"operator": {"resources": {"limit": {"memory": "1Gi"}}}}, "limit"),
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


def test_chart_application_and_package_are_of_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (package, package)


def test_the_schema_says_what_the_readme_says() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    readme = (CHART / "README.md").read_text()
    assert (
        f"| `operator.replicas` | `2` | {schema['properties']['operator']['properties']['replicas']['description']} |"
        in readme
    )
