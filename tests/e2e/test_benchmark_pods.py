"""Benchmarks whose runs are pods of their own: ranks that must find each other, and a disk that all may write to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.bench.result import BenchmarkResult
from tests.e2e.benchmarks import claim_of_benchmarks, run
from tests.e2e.cluster import Cluster

CLAIM = "benchmarks-of-pods"


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


def measure(cluster: Cluster, name: str, workload: dict[str, Any]) -> tuple[BenchmarkResult, Path]:
    """The result of one repetition, at the first attempt, and the folder that it is in."""
    status, folder = run(cluster, CLAIM, name, workload)
    assert status["repeated"] == 0, status
    return BenchmarkResult.model_validate_json((folder / "result.json").read_bytes()), folder


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_two_pods_meet_and_what_they_move_is_right_and_measured(claimed: Cluster, framework: str) -> None:
    if framework == "flax" and claimed.name != "embedded":
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
    result, _ = measure(claimed, f"between-{framework}", {"collectives": collectives})
    assert {(one.metric, *one.labels.values()) for one in result.figures if one.is_headline} == {
        ("bus_bandwidth_bytes_per_second", operation, "64KiB") for operation in operations
    }
    assert all(one.median > 0 for one in result.figures if one.is_headline)
    backend = "torch" if framework == "deepspeed" else "JAX"
    assert any(f"2 ranks, fp32, backend gloo of {backend}" in note for note in result.notes)


def test_checkpoints_are_measured_beside_torchs_and_none_is_left(claimed: Cluster) -> None:
    workload = {"checkpoint": {"state": "1MiB", "beside": ["TorchDCP"]}}
    result, folder = measure(claimed, "disk", workload)
    saved = {one.labels["library"]: one.median for one in result.figures if one.metric == "save_bytes_per_second"}
    assert saved.keys() == {"Capstan", "TorchDCP"}
    assert all(rate > 0 for rate in saved.values())
    kept = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert "scratch" not in kept
    assert {"trials", "result.json", "report.md", "report.html", "metrics.prom"} <= kept
