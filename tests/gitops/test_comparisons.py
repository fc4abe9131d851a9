"""The comparisons by which the lives of this folder are judged find what there is to find, as kubectl does."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstan_operator.cluster.kinds import TRAINING_JOBS
from capstan_operator.cluster.limiter import Lane
from tests.apiserver.kubectl import Kubectl
from tests.gitops.scene import Document, examples
from tests.support.control_planes import ControlPlane
from tests.support.gitops import ClientSide, Repository, argo_cd, three_way
from tests.support.real_cluster import Cluster, real_cluster

GIT = examples("digits-service/service.yaml", "*/*.yaml")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with real_cluster(control_plane) as cluster:
        yield cluster


async def meddle(cluster: Cluster, job: str, change: Document) -> None:
    """As an operator would that writes more than status."""
    await cluster.client.merge_patch(TRAINING_JOBS, cluster.namespace, job, change, lane=Lane.SYSTEM)


async def complete_a_list(cluster: Cluster, job: str) -> None:
    """As a default inside a list, or an admission webhook, would."""
    chaos = (await cluster.get(TRAINING_JOBS, job))["spec"]["chaos"]
    await meddle(cluster, job, {"spec": {"chaos": [{"durationSeconds": 10} | one for one in chaos]}})


async def test_what_somebody_else_writes_is_a_difference_to_every_tool(cluster: Cluster) -> None:
    for tool, job in ((ClientSide(cluster), "chaos-flax"), (argo_cd(cluster), "chaos-deepspeed")):
        repository = Repository(tool, examples(f"{job}/*.yaml"))
        await repository.sync()
        assert (await repository.sync(), await repository.differences()) == ([], [])
        of_job = f"{tool.name}: TrainingJob {job}"
        await complete_a_list(cluster, job)
        # Nobody applied what was added, so that an apply on the server's side would leave it as it is.
        assert await repository.differences() == [
            f"{of_job}: client-side: spec.chaos",
            f"{of_job}: spec was written by somebody: generation 2 after 0 commits",
            f"{of_job}: the operator owns ['f:spec']",
        ]
        await meddle(cluster, job, {"spec": {"workers": {"max": 4}}})
        assert [line for line in await repository.differences() if "workers" in line] == [
            f"{of_job}: client-side: spec.workers.max",
            f"{of_job}: server-side: spec.workers.max is 4 and would be 2",
        ]
        assert await repository.sync() == [f"TrainingJob {job}"]


def test_three_ways_are_compared() -> None:
    """What was applied and is gone from git is removed; what somebody else added stays."""
    applied, wanted = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2}, "e": [1]}
    live = {"a": 1, "b": {"c": 4, "d": 3, "theirs": 5}, "theirs": 6}
    assert three_way(applied, wanted, live) == {"a": None, "b": {"c": 2, "d": None}, "e": [1]}
    assert three_way(wanted, wanted, live | wanted) == {}


@needs_kubectl
async def test_kubectl_says_the_same_of_every_example(
    cluster: Cluster, control_plane: ControlPlane, tmp_path: Path
) -> None:
    kubectl = Kubectl(control_plane, cluster.namespace, tmp_path)
    manifests = tmp_path / "git.json"
    manifests.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": GIT}))
    on_server = ("--server-side", "--force-conflicts", "--field-manager=argocd-controller")
    applied = kubectl("apply", "-f", str(manifests)).splitlines()
    assert [line.rsplit(" ", 1)[-1] for line in applied] == ["created"] * len(GIT)
    again = kubectl("apply", "-f", str(manifests)).splitlines()
    assert [line for line in again if not line.endswith(" unchanged")] == []
    for how in ((), on_server):
        assert kubectl.run("diff", *how, "-f", str(manifests)).ok() == ""
    repository = Repository(ClientSide(cluster), GIT)
    assert await repository.differences() == []
    await complete_a_list(cluster, "chaos-flax")
    different = kubectl.run("diff", "-f", str(manifests))
    assert (different.code, "durationSeconds: 10" in different.out) == (1, True)
    assert [line for line in await repository.differences() if "client-side" in line] == [
        "kubectl: TrainingJob chaos-flax: client-side: spec.chaos"
    ]
