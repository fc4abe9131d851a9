"""Every pair of values, rendered by real Helm, against what a real API server says of its kinds."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.apiserver.client import Api
from tests.charts.chart_values import CHOICES, DEFINITIONS, combinations
from tests.charts.releases import CHART, CRDS, KINDS, documents, install
from tests.support.control_planes import ControlPlane
from tests.support.helm import Helm, needs_helm
from tests.support.openapi_check import Definitions
from tests.support.pod_security import violations

pytestmark = needs_helm

VALUES = functools.cache(combinations)
MONITORING = "monitoring.coreos.com/v1"


def leaves(schema: dict[str, Any], path: str = "") -> list[str]:
    """Names of the values that hold no others of the chart's."""
    if "properties" not in schema:
        return [path]
    return [
        leaf for name, inner in schema["properties"].items() for leaf in leaves(inner, f"{path}.{name}".lstrip("."))
    ]


def test_every_value_of_the_chart_is_tried_and_its_default_first() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert sorted(CHOICES) == sorted(
        set(leaves(schema)) - {"global", *(f"crds.{name}" for name in DEFINITIONS[0]["crds"])}
    )
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    firsts = {path: choices[0] for path, choices in CHOICES.items() if path != "operator.resources"}
    assert firsts == {
        path: functools.reduce(lambda inner, name: inner[name], path.split("."), defaults) for path in firsts
    }


def test_every_pair_of_choices_is_in_one_of_the_combinations() -> None:
    def chosen(values: dict[str, Any], path: str) -> str:
        return json.dumps(functools.reduce(lambda inner, name: inner[name], path.split("."), values))

    held = {
        (one, chosen(values, one), other, chosen(values, other))
        for values in VALUES()
        for one, other in itertools.combinations(CHOICES, 2)
    }
    assert held == {
        (one, json.dumps(first), other, json.dumps(second))
        for one, other in itertools.combinations(CHOICES, 2)
        for first in CHOICES[one]
        for second in CHOICES[other]
    }


async def test_what_any_values_render_is_valid_to_the_api_server(api: Api, plane: ControlPlane, helm: Helm) -> None:
    """Installed one after the other as upgrades, so that Helm and the server also go from each to the next."""
    # Definitions come last: those without `keep` would go, slowly, with the next upgrade.
    every = [*VALUES(), *DEFINITIONS]
    common = {"release_name": "capstan", "chart_path": str(CHART), "wait": False}
    first = ("Install", {**common, "create_namespace": True, "values": every[0]})
    steps = [("Upgrade", {**common, "max_history": 1, "values": values}) for values in every[1:]]
    manifests = []
    for values, answer in zip(every, helm.answers([first, *steps]), strict=True):
        assert "error" not in answer, f"{answer['error']}\n{yaml.safe_dump(values)}"
        manifests.append(answer["result"]["manifest"])

    found = documents(manifests)
    definitions = await Definitions.of(api, found)
    # What needs a definition that this server does not come with is checked by that definition alone.
    problems = {
        f"{each['kind']} {each['metadata']['name']} {problem}"
        for each in found
        if each["apiVersion"] != MONITORING
        for problem in definitions.problems(each)
    }
    assert {problem for problem in problems if plane.is_current or not problem.endswith(_RULES)} == set()
    assert {each["kind"] for each in found} == {
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "CustomResourceDefinition",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }
    templates = [each["spec"]["template"] for each in found if each["kind"] == "Deployment"]
    assert [line for template in templates for line in violations(template["spec"])] == []
    for name in KINDS:
        conditions = (await api.get(f"{CRDS}/{name}")).expect(200)["status"]["conditions"]
        said = {entry["type"]: entry["status"] for entry in conditions}
        assert said == {"NamesAccepted": "True", "Established": "True"}, f"{name} is not structural or not served"


_RULES = ".x-kubernetes-validations: unknown field"
"""All that Kubernetes 1.20 does not know in our definitions: it drops them, and the operator checks instead."""


def test_lint_finds_nothing_but_that_there_is_no_icon(tmp_path: Path) -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    steps = []
    for number, values in enumerate([*VALUES(), *DEFINITIONS]):
        copy = shutil.copytree(CHART, tmp_path / str(number) / "capstan")
        (copy / "values.yaml").write_text(yaml.safe_dump(_merged(defaults, values)))
        steps.append(("Lint", {"chart_path": str(copy)}))
    nowhere = Helm(ControlPlane(home=tmp_path, kubeconfig=Path("/dev/null")), "default", tmp_path)
    results = [answer["result"] for answer in nowhere.answers(steps)]
    said = {(entry["Severity"], entry["Path"]) for result in results for entry in result["Messages"]}
    assert (said, [result["Errors"] for result in results]) == ({(1, "Chart.yaml")}, [None] * len(results))


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return defaults | {
        name: _merged(defaults.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _edited(document: Any, path: str, value: Any) -> Any:
    """A copy with `value` at `a.0.b`; None removes what is there."""
    copy = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    target = functools.reduce(lambda inner, name: inner[int(name) if isinstance(inner, list) else name], parents, copy)
    if value is None:
        del target[last]
    elif isinstance(target, list):
        target.append(value)
    else:
        target[last] = value
    return copy


BROKEN = [
    ("spec.replicas", "two", ".spec.replicas: 'two' is no integer"),
    ("spec.replica", 2, ".spec.replica: unknown field"),
    ("spec.selector", None, ".spec.selector: is required"),
    ("spec.template.spec.containers.0.name", None, ".spec.template.spec.containers[0].name: is required"),
    ("spec.template.spec.containers.0.imagePull", "x", ".spec.template.spec.containers[0].imagePull: unknown field"),
    ("spec.template.metadata.labels.x", 1, ".spec.template.metadata.labels.x: 1 is no string"),
    ("spec.template.spec.volumes", {}, ".spec.template.spec.volumes: {} is no array"),
    ("spec.template.spec.enableServiceLinks", "no", ".spec.template.spec.enableServiceLinks: 'no' is no boolean"),
    (
        "spec.template.spec.containers.0.readinessProbe.httpGet.port",
        True,
        ".spec.template.spec.containers[0].readinessProbe.httpGet.port: True is neither number nor string",
    ),
]
LOOSENED = [
    ("hostNetwork", True, "hostNetwork: must not be set"),
    ("volumes.9", {"name": "x", "hostPath": {"path": "/"}}, "volumes[x]: hostPath is not allowed"),
    ("securityContext.runAsNonRoot", None, "containers[operator].runAsNonRoot: must be true"),
    ("securityContext.runAsUser", 0, "securityContext.runAsUser: must not be 0"),
    (
        "securityContext.seccompProfile",
        None,
        "containers[operator].seccompProfile: must be RuntimeDefault or Localhost",
    ),
    (
        "containers.0.securityContext.allowPrivilegeEscalation",
        None,
        "containers[operator].allowPrivilegeEscalation: must be false",
    ),
    ("containers.0.securityContext.privileged", True, "containers[operator].privileged: must not be set"),
    ("containers.0.securityContext.capabilities", None, "containers[operator].capabilities: must drop ALL"),
    (
        "containers.0.securityContext.capabilities.add",
        ["SYS_ADMIN"],
        "containers[operator].capabilities: may add NET_BIND_SERVICE alone",
    ),
    ("containers.0.ports.0.hostPort", 80, "containers[operator].hostPort: must not be set"),
]


async def test_what_is_broken_in_the_deployment_is_noticed(api: Api, helm: Helm) -> None:
    install(helm, crds={"enabled": False})
    manifest = helm("Status", release_name="capstan")["manifest"]
    (deployment,) = [each for each in documents([manifest]) if each["kind"] == "Deployment"]
    definitions = await Definitions.of(api, [deployment])
    assert [definitions.problems(_edited(deployment, path, value)) for path, value, _ in BROKEN] == [
        [problem] for _, _, problem in BROKEN
    ]
    pod = deployment["spec"]["template"]["spec"]
    assert [violations(_edited(pod, path, value)) for path, value, _ in LOOSENED] == [[line] for _, _, line in LOOSENED]
