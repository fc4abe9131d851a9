"""Benchmarks whose runs are pods of their own: ranks that must find each other, and a disk that all may write to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.bench.result import BenchmarkResult
from tests.e2e.cluster import ENDED, GROUP, NAMESPACE, VERSION, Cluster

PLURAL = "benchmarks"
SECONDS = 240.0
"""Until the report is there, on a machine that has other things to do."""


def measure(cluster: Cluster, name: str, workload: dict[str, Any]) -> tuple[BenchmarkResult, Path]:
    """The result of one repetition, and the folder that it is in. Everything but that folder is removed."""
    cluster.claim(name)
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Benchmark",
        "metadata": {"name": name},
        "spec": {"workload": workload, "repetitions": 1, "results": {"store": {"claim": {"name": name}}}},
    }
    cluster.custom.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, body)
    deadline = time.monotonic() + SECONDS
    while True:
        found = cluster.custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name)
        status = found.get("status") or {}
        if status.get("phase") in ENDED:
            break
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    assert (status["phase"], status["repeated"]) == ("Succeeded", 0), status
    (folder,) = cluster.home.glob(f"**/volumes/*/*/{NAMESPACE}/{name}/{found['metadata']['uid']}")
    cluster.custom.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name)
    selector = f"capstan.dev/benchmark={name}"
    cluster.wait_gone(
        lambda: cluster.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items, f"pods of {name}"
    )
    return BenchmarkResult.model_validate_json((folder / "result.json").read_bytes()), folder


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_two_pods_meet_and_what_they_move_is_right_and_measured(cluster: Cluster, framework: str) -> None:
    if framework == "flax" and cluster.name != "embedded":
        pytest.skip("one framework shows that pods meet there, too")
    operations = ["allReduce", "allToAll"]
    collectives = {
        "framework": {framework: {}},
        "operations": operations,
        "smallest": "4KiB",
        "largest": "64KiB",
        "factor": 16,
        "iterations": 5,
    }
    result, _ = measure(cluster, f"between-{framework}", {"collectives": collectives})
    assert {(one.metric, *one.labels.values()) for one in result.figures if one.is_headline} == {
        ("bus_bandwidth_bytes_per_second", operation, "64KiB") for operation in operations
    }
    assert all(one.median > 0 for one in result.figures if one.is_headline)
    backend = "torch" if framework == "deepspeed" else "JAX"
    assert any(f"2 ranks, fp32, backend gloo of {backend}" in note for note in result.notes)


def test_checkpoints_are_measured_beside_torchs_and_none_is_left(cluster: Cluster) -> None:
    workload = {"checkpoint": {"state": "1MiB", "beside": ["TorchDCP"]}}
    result, folder = measure(cluster, "disk", workload)
    saved = {one.labels["library"]: one.median for one in result.figures if one.metric == "save_bytes_per_second"}
    assert saved.keys() == {"Capstan", "TorchDCP"}
    assert all(rate > 0 for rate in saved.values())
    kept = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert "scratch" not in kept
    assert {"trials", "result.json", "report.md", "report.html", "metrics.prom"} <= kept
