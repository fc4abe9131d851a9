"""Helm installs, upgrades and uninstalls a chart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.apiserver.client import Api, gone, names
from tests.apiserver.widgets import GROUP, crd
from tests.support.control_planes import ControlPlane
from tests.support.helm import Helm, needs_helm

pytestmark = needs_helm

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}
  labels: {app.kubernetes.io/managed-by: {{ .Release.Service }}}
spec:
  replicas: 0
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      containers:
      - name: main
        image: example.com/app:{{ .Values.tag }}
"""
CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-config}
data:
  tag: {{ .Values.tag | quote }}
  {{- if .Values.extra }}
  extra: "yes"
  {{- end }}
  kubernetes: {{ .Capabilities.KubeVersion.Version | quote }}
"""
CUSTOM = """
apiVersion: battery.example.com/v1
kind: Sprocket
metadata: {name: {{ .Release.Name }}}
spec: {tag: {{ .Values.tag | quote }}}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "crds").mkdir()
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: battery\nversion: 0.1.0\n")
    (folder / "values.yaml").write_text("tag: '1'\nextra: true\n")
    for name, text in (("deployment", DEPLOYMENT), ("config", CONFIG), ("custom", CUSTOM)):
        (folder / "templates" / f"{name}.yaml").write_text(text)
    spec = {"type": "object", "properties": {"tag": {"type": "string"}}}
    definition = crd("Sprocket", "sprockets", spec, {"type": "object"})
    (folder / "crds" / "sprockets.yaml").write_text(yaml.safe_dump(definition))
    return folder


@pytest.fixture
def helm(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Helm:
    return Helm(control_plane, namespace, tmp_path)


@pytest.mark.parametrize("server_side", [False, True], ids=["client-side", "server-side"])
async def test_a_release_lives_its_whole_life(
    api: Api, helm: Helm, chart: Path, namespace: str, configmaps: str, server_side: bool
) -> None:
    installed = helm(
        "Install", release_name="demo", chart_path=str(chart), wait=True, timeout=40, server_side_apply=server_side
    )
    assert installed["name"] == "demo"
    config = (await api.get(f"{configmaps}/demo-config")).expect(200)
    assert config["data"] == {"tag": "1", "extra": "yes", "kubernetes": config["data"]["kubernetes"]}
    assert config["metadata"]["annotations"]["meta.helm.sh/release-name"] == "demo"
    sprocket = f"/apis/{GROUP}/v1/namespaces/{namespace}/sprockets/demo"
    assert (await api.get(sprocket)).expect(200)["spec"] == {"tag": "1"}
    secrets = (await api.get(f"/api/v1/namespaces/{namespace}/secrets", labelSelector="owner=helm")).expect(200)
    assert names(secrets) == ["sh.helm.release.v1.demo.v1"]

    # What someone else wrote survives an upgrade; what the chart dropped goes.
    (await api.patch(f"{configmaps}/demo-config", {"data": {"theirs": "kept"}})).expect(200)
    values = {"tag": "2", "extra": False}
    helm("Upgrade", release_name="demo", chart_path=str(chart), values=values, server_side_apply=server_side)
    data = (await api.get(f"{configmaps}/demo-config")).expect(200)["data"]
    assert {name: data.get(name) for name in ("tag", "extra", "theirs")} == {
        "tag": "2",
        "extra": None,
        "theirs": "kept",
    }
    deployment = (await api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/demo")).expect(200)
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/app:2"
    assert (await api.get(sprocket)).expect(200)["spec"] == {"tag": "2"}

    # Back to the first values by one more upgrade: the library's own rollback lacks a wait strategy and always fails.
    helm("Upgrade", release_name="demo", chart_path=str(chart), values={"tag": "1"}, server_side_apply=server_side)
    assert (await api.get(f"{configmaps}/demo-config")).expect(200)["data"]["tag"] == "1"
    assert len(helm("History", release_name="demo")) == 3

    helm("Uninstall", release_name="demo")
    for path in (f"{configmaps}/demo-config", sprocket):
        await gone(api, path)


async def test_a_second_release_of_the_same_name_is_refused(helm: Helm, chart: Path) -> None:
    helm("Install", release_name="twice", chart_path=str(chart), wait=False)
    answer = helm.answer("Install", release_name="twice", chart_path=str(chart), wait=False)
    assert "cannot reuse a name that is still in use" in answer["error"]


async def test_what_belongs_to_nobody_is_not_taken_over(api: Api, helm: Helm, chart: Path, configmaps: str) -> None:
    (await api.post(configmaps, {"metadata": {"name": "mine-config"}, "data": {}})).expect(201)
    answer = helm.answer("Install", release_name="mine", chart_path=str(chart), wait=False)
    assert "invalid ownership metadata" in answer["error"]
