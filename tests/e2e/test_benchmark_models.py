"""Benchmarks of models and of the machine: a checkpoint that a job has just saved, and the roof over two models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import ENDED, GROUP, NAMESPACE, VERSION, Cluster
from tests.e2e.jobs import small_job

BENCHMARKS = "benchmarks"
CLAIM = "benchmarks-of-models"
MODEL = "measured-model"
SECONDS = 240.0


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    cluster.claim(CLAIM)
    yield cluster
    found = cluster.custom.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, BENCHMARKS)["items"]
    for each in found:
        if each["spec"]["results"] == _results():
            cluster.custom.delete_namespaced_custom_object(
                GROUP, VERSION, NAMESPACE, BENCHMARKS, each["metadata"]["name"]
            )
    cluster.core.delete_namespaced_persistent_volume_claim(CLAIM, NAMESPACE)


def _results() -> dict[str, Any]:
    return {"store": {"claim": {"name": CLAIM}}}


def run(cluster: Cluster, name: str, workload: dict[str, Any], phase: str = "Succeeded") -> tuple[dict[str, Any], Path]:
    """Status of a Benchmark of one repetition that has ended in `phase`, and the folder of its results."""
    document = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Benchmark",
        "metadata": {"name": name},
        "spec": {"workload": workload, "results": _results(), "repetitions": 1},
    }
    cluster.custom.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, BENCHMARKS, document)
    deadline = time.monotonic() + SECONDS
    while True:
        found = cluster.custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, BENCHMARKS, name)
        status: dict[str, Any] = found.get("status") or {}
        if status.get("phase") in ENDED or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert status.get("phase") == phase, json.dumps(status, indent=1)
    return status, Path(name) / found["metadata"]["uid"]


def result(cluster: Cluster, folder: Path) -> dict[str, Any]:
    (path,) = cluster.home.glob(f"**/{NAMESPACE}/{folder}/result.json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_the_checkpoint_that_a_job_saved_is_measured_in_either_framework_and_no_other(claimed: Cluster) -> None:
    job = small_job(
        MODEL,
        "flax",
        workers={"max": 1},
        checkpoint={"store": {"claim": {"name": CLAIM}}},
        training={"steps": 10, "globalBatchSize": 64},
    )
    uid = claimed.create_job(job)["metadata"]["uid"]
    root = claimed.wait_phase(MODEL, "Succeeded")["checkpoint"]["root"]

    def inference(digest: str) -> dict[str, Any]:
        model = {"checkpoint": {"run": f"{NAMESPACE}/{MODEL}/{uid}", "digest": digest}}
        return {
            "inference": {"runtime": "torch", "model": model, "batchSizes": [1, 8], "seconds": 0.2, "warmupSeconds": 0}
        }

    status, folder = run(claimed, "checkpoint", inference(root))
    rates = {
        one["labels"]["batchSize"]: one["values"]
        for one in result(claimed, folder)["series"]
        if one["metric"] == "samples_per_second"
    }
    assert {size: [value > 0 for value in values] for size, values in rates.items()} == {"1": [True], "8": [True]}
    assert "samples/s" in status["result"]

    other = f"blake3:{'0' * 64}"
    status, _ = run(claimed, "another-checkpoint", inference(other), "Failed")
    assert "workload.inference.model.checkpoint.digest: " in json.dumps(status)
    assert f"holds no checkpoint {other}" in json.dumps(status)
    claimed.delete_job(MODEL)


def test_models_are_placed_under_the_roof_of_the_machine(claimed: Cluster) -> None:
    mlp = {"architecture": {"mlp": {"hidden": [64]}}, "input": {"vector": {"features": 64, "classes": 10}}}
    cnn = {
        "architecture": {"cnn": {"channels": [8], "groups": 4}},
        "input": {"image": {"height": 8, "width": 8, "channels": 1, "classes": 10}},
    }
    models = [{"name": "mlp", **mlp}, {"name": "cnn", **cnn}]
    workload = {"roofline": {"runtime": "torch", "matrixSizes": [128], "seconds": 0.1, "models": models}}
    status, folder = run(claimed, "roof", workload)
    found = result(claimed, folder)
    roofs = {roof["name"]: roof["median"] for roof in found["roofs"]}
    assert roofs.keys() == {"matmul fp32", "numpy matmul fp32", "memory", "cache"}
    assert {dot["name"]: 0 < dot["share"] <= 1.1 for dot in found["dots"]} == {"mlp": True, "cnn": True}
    assert "FLOP/s" in status["result"]
