"""Benchmarks of models and of the machine: a checkpoint that a job has just saved, and the roof over two models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.benchmarks import claim_of_benchmarks, create, run, wait_ended
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.jobs import small_job

CLAIM = "benchmarks-of-models"
MODEL = "measured-model"


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
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

    status, folder = run(claimed, CLAIM, "checkpoint", inference(root))
    rates = {
        one["labels"]["batchSize"]: one["values"]
        for one in result(folder)["series"]
        if one["metric"] == "samples_per_second"
    }
    assert {size: [value > 0 for value in values] for size, values in rates.items()} == {"1": [True], "8": [True]}
    assert "samples/s" in status["result"]

    other = f"blake3:{'0' * 64}"
    create(claimed, CLAIM, "another-checkpoint", inference(other), repetitions=1)
    status = wait_ended(claimed, "another-checkpoint", "Failed")
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
    status, folder = run(claimed, CLAIM, "roof", workload)
    found = result(folder)
    roofs = {roof["name"]: roof["median"] for roof in found["roofs"]}
    assert roofs.keys() == {"matmul fp32", "numpy matmul fp32", "memory", "cache"}
    assert {dot["name"]: 0 < dot["share"] <= 1.1 for dot in found["dots"]} == {"mlp": True, "cnn": True}
    assert "FLOP/s" in status["result"]
