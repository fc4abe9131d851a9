"""The life of a Benchmark: its runs outlive a pod that is deleted and an operator that is killed, and what is refused
is explained. What its workloads measure is told beside this file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.e2e.benchmarks import PLACE, claim_of_benchmarks, create, delete, events, pods, wait
from tests.e2e.cluster import NAMESPACE, Cluster

CLAIM = "benchmarks-lives"
embedded_only = pytest.mark.parametrize("cluster", ["embedded"], indirect=True, scope="session")
ROOFLINE: dict[str, Any] = {"roofline": {"runtime": "torch", "matrixSizes": [64], "seconds": 0.05}}


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


def results(cluster: Cluster, name: str, uid: str) -> dict[str, float]:
    """When each trial's result was written, by the name of its file."""
    paths: Iterator[Path] = cluster.home.glob(f"**/{NAMESPACE}/{name}/{uid}/trials/*.json")
    return {path.name: path.stat().st_mtime for path in paths}


def test_runs_outlive_a_deleted_pod_and_a_killed_operator(claimed: Cluster, kubectl: str) -> None:
    cluster = claimed
    uid = create(cluster, CLAIM, "peak", ROOFLINE, repetitions=3)
    wait(cluster, "peak", lambda status: "uid" in status.get("running", {}))
    cluster.core.delete_namespaced_pod("peak-t00", NAMESPACE, grace_period_seconds=0)
    wait(cluster, "peak", lambda status: status.get("progress", {}).get("done", 0) >= 1)
    before = results(cluster, "peak", uid)
    cluster.restart_operator()
    status = wait(cluster, "peak", lambda status: status.get("phase") == "Succeeded")
    trials = [(one["trial"], one["attempt"]) for one in status["trials"]]
    assert trials == [("t00", 2), ("t01", 1), ("t02", 1)]
    assert status["repeats"][0]["reason"] == "pod peak-t00 was deleted before it was done"
    assert status["repeated"] == 1, status["repeats"]
    after = results(cluster, "peak", uid)
    assert sorted(after) == ["t00.2.json", "t01.1.json", "t02.1.json"]
    assert before.items() <= after.items(), "what was measured is not measured again"
    assert ("Normal", "Begun") in events(cluster, "peak")
    assert ("Warning", "Repeated") in events(cluster, "peak")
    log = cluster.core.read_namespaced_pod_log(status["report"]["log"], NAMESPACE)
    assert status["result"] in log
    command = [kubectl, "--kubeconfig", str(cluster.kubeconfig), "get", "bm", "peak"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    header, row = shown.splitlines()
    assert header.split() == ["NAME", "WORKLOAD", "PHASE", "RUNS", "RESULT", "VERDICT", "AGE"]
    assert row.split()[:4] == ["peak", "roofline", "Succeeded", "3/3"]
    assert status["result"] in row
    delete(cluster, "peak")


@embedded_only
def test_a_suspended_benchmark_frees_the_machine_and_goes_on(claimed: Cluster) -> None:
    cluster = claimed
    create(cluster, CLAIM, "paused", ROOFLINE, repetitions=1)
    wait(cluster, "paused", lambda _: pods(cluster, "paused"))
    cluster.custom.patch_namespaced_custom_object(*PLACE, "paused", {"spec": {"suspend": True}})
    wait(cluster, "paused", lambda status: status.get("phase") == "Suspended" and not pods(cluster, "paused"))
    cluster.custom.patch_namespaced_custom_object(*PLACE, "paused", {"spec": {"suspend": False}})
    status = wait(cluster, "paused", lambda status: status.get("phase") == "Succeeded")
    assert (status["repeated"], len(status["trials"])) == (0, 1)
    delete(cluster, "paused")


def test_a_run_that_cannot_work_is_explained_and_nothing_is_tried_twice(claimed: Cluster) -> None:
    cluster = claimed
    broken = {"checkpoint": {"run": "default/no-such-job/uid", "digest": "blake3:" + "0" * 64}}
    create(cluster, CLAIM, "broken", {"inference": {"runtime": "torch", "model": broken}}, repetitions=2)
    status = wait(cluster, "broken", lambda status: status.get("phase") == "Failed")
    assert (status["reason"], [one["attempt"] for one in status["repeats"]]) == ("ConfigError", [1])
    assert [pod.metadata.name for pod in pods(cluster, "broken")] == ["broken-t00"]
    delete(cluster, "broken")


def test_a_plan_that_cannot_be_run_is_refused_before_anything_runs(claimed: Cluster) -> None:
    cluster = claimed
    job = {
        "framework": {"flax": {}},
        "model": {"mlp": {"hidden": [8]}},
        "data": {"digits": {}},
        "optimizer": {"adamw": {"learningRate": 0.001}},
        "schedule": {"constant": {}},
        "training": {"steps": 20, "globalBatchSize": 16},
        "workers": {"max": 1},
    }
    create(cluster, CLAIM, "uneven", {"scaling": {"workers": [1, 3]}}, job=job)
    status = wait(cluster, "uneven", lambda status: status.get("phase") == "Invalid")
    assert status["message"] == (
        "spec.job.training: globalBatchSize 16 is not a multiple of virtualRanks 3; choose 15 or 18 (for workers=3, "
        "mode=strong)"
    )
    delete(cluster, "uneven")


@embedded_only
def test_a_spec_that_breaks_a_rule_is_refused_by_the_api_server(claimed: Cluster) -> None:
    with pytest.raises(ApiException) as caught:
        create(claimed, CLAIM, "alone", {"scaling": {"workers": [2, 4]}})
    assert caught.value.status == 422
    for rule in ("holds no 1, which all others are compared with; add 1", "job: is missing"):
        assert rule in caught.value.body
