"""`capstan doctor` asks real API servers, with the rights of different people, and changes nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_operator import cli
from capstan_operator.cluster.kinds import DEPLOYMENTS, TRAINING_JOBS, Resource
from capstan_operator.cluster.limiter import Lane
from tests.support.control_planes import ControlPlane
from tests.support.real_cluster import Cluster, real_cluster

ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole")
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding")
RIGHTS = yaml.safe_load((Path(__file__).parents[2] / "charts/capstan/files/rights.yaml").read_text())
LOOKING = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]},
    {
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["subjectaccessreviews", "selfsubjectaccessreviews"],
        "verbs": ["create"],
    },
]
OPERATOR = {"app.kubernetes.io/name": "capstan-operator"}


class Doctor:
    """The command, called by somebody."""

    def __init__(self, capsys: pytest.CaptureFixture[str], kubeconfig: Path) -> None:
        self._capsys, self._kubeconfig = capsys, kubeconfig

    def __call__(self, *arguments: str) -> tuple[int, dict[tuple[str, str], list[dict[str, Any]]]]:
        """The exit code, and findings by area and check."""
        code = cli.main(["doctor", "--kubeconfig", str(self._kubeconfig), "-o", "json", *arguments])
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in json.loads(self._capsys.readouterr().out)["findings"]:
            found.setdefault((one["area"], one["check"]), []).append(one)
        return code, found


async def bound(cluster: Cluster, account: str, rules: list[dict[str, Any]], folder: Path) -> Path:
    """A kubeconfig of a new account that may do exactly this."""
    name = f"{account}-{cluster.namespace}"
    await cluster.create(ACCOUNTS, account)
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    reference = {"apiGroup": ROLES.group, "kind": "ClusterRole", "name": name}
    for resource, body in ((ROLES, {"rules": rules}), (BINDINGS, {"subjects": [subject], "roleRef": reference})):
        document = {"apiVersion": resource.group_version, "kind": resource.kind, "metadata": {"name": name}} | body
        await cluster.client.call("POST", resource.path(None), lane=Lane.SYSTEM, body=json.dumps(document).encode())
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    path = ACCOUNTS.path(cluster.namespace, account, "token")
    answer = await cluster.client.call("POST", path, lane=Lane.SYSTEM, body=json.dumps(request).encode())
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": json.loads(answer)["status"]["token"]}
    kubeconfig = folder / account
    kubeconfig.write_text(yaml.safe_dump(config))
    return kubeconfig


async def prepared(cluster: Cluster, folder: Path) -> dict[str, Path]:
    """A Deployment that names an account of the operator's, whose rights lack one; a job; kubeconfigs by whose."""
    lacking = [rule for rule in RIGHTS["watched"] if rule["resources"] != ["poddisruptionbudgets"]]
    await bound(cluster, "operator", [*lacking, *RIGHTS["own"]], folder)
    container = {"name": "operator", "image": "capstan/operator:0.2.0", "command": ["capstan", "run"]}
    template = {"metadata": {"labels": OPERATOR}, "spec": {"serviceAccountName": "operator", "containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": OPERATOR}, "template": template}
    await cluster.create(DEPLOYMENTS, "capstan", spec=spec)
    await cluster.create(TRAINING_JOBS, "train", spec=job_spec())
    return {
        "looking": await bound(cluster, "looking", LOOKING, folder),
        "nobody": await bound(cluster, "nobody", [], folder),
    }


def job_spec() -> dict[str, Any]:
    return {
        "framework": {"flax": {}},
        "model": {"mlp": {"hidden": [8]}},
        "data": {"digits": {}},
        "optimizer": {"adamw": {"learningRate": 0.001}},
        "schedule": {"constant": {}},
        "training": {"steps": 10, "globalBatchSize": 16},
        "workers": {"max": 2, "gpus": 1},
        "checkpoint": {"store": {"claim": {"name": "missing"}}},
    }


async def run_in_thread(doctor: Doctor, *arguments: str) -> tuple[int, dict[tuple[str, str], list[dict[str, Any]]]]:
    return await asyncio.to_thread(doctor, *arguments)


async def test_who_may_only_look_is_told_everything(
    control_plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so nothing was written: this account could not."""
    async with real_cluster(control_plane) as cluster:
        people = await prepared(cluster, tmp_path)
        code, found = await run_in_thread(Doctor(capsys, people["looking"]), "-n", cluster.namespace)
    assert code == 1
    assert [one["message"] for kind in found.values() for one in kind if one["level"] == "SKIP"] == []
    job = f"{cluster.namespace}/train"
    for check, level, words in (
        (("Definitions", "trainingjobs.capstan.dev"), "OK", "with the fields of this version"),
        (("API server", "clock"), "OK", "agrees with this machine's"),
        (("API server", "version"), "OK" if control_plane.is_current else "WARN", control_plane.url),
        (("Nodes", "GPUs"), "FAIL", f"{job} asks for nvidia.com/gpu"),
        (("Storage", "claims"), "FAIL", f"{cluster.namespace}/missing is named and not there"),
        (("Objects", "TrainingJobs"), "OK", "1"),
    ):
        (finding,) = found[check]
        assert (finding["level"], words in finding["message"]) == (level, True), finding
    account = f"system:serviceaccount:{cluster.namespace}:operator"
    told = [one for one in found["Operator", "rights"] if account in one["message"]]
    if control_plane.is_current:  # the embedded server allows everybody everything
        assert [one["level"] for one in told] == ["OK"]
    else:
        assert [one["message"].partition(". ")[0] for one in told] == [
            f"{account} may not {verb} poddisruptionbudgets.policy in all namespaces"
            for verb in ("list", "watch", "create", "patch", "delete")
        ]


async def test_who_may_nothing_is_told_which_right_would_show_it(
    real_control_plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with real_cluster(real_control_plane) as cluster:
        people = await prepared(cluster, tmp_path)
        code, found = await run_in_thread(Doctor(capsys, people["nobody"]))
    levels = {(area, check): {one["level"] for one in kind} for (area, check), kind in found.items()}
    assert code == 0
    assert {check for check, level in levels.items() if level != {"SKIP"}} == {
        ("API server", "version"),
        ("API server", "clock"),
        ("API server", "optional kinds"),
    }
    assert found["Nodes", "nodes"][0]["message"] == "needs the right to list nodes"
    assert found["Objects", "TrainingJobs"][0]["message"] == "needs the right to list trainingjobs.capstan.dev"


async def test_who_is_let_in_nowhere_is_told_so_in_one_line(
    real_control_plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(real_control_plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": "wrong"}
    kubeconfig = tmp_path / "wrong"
    kubeconfig.write_text(yaml.safe_dump(config))
    code = await asyncio.to_thread(cli.main, ["doctor", "--kubeconfig", str(kubeconfig)])
    told = capsys.readouterr()
    assert (code, told.out) == (1, "")
    assert told.err.startswith("capstan doctor: ")
    assert told.err.count("\n") == 1
    assert "Unauthorized" in told.err
