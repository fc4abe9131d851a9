"""Benchmarks that run TrainingJobs: throughput, scaling, laws and verdicts, from the manifest to the report.

All but one train with the numpy trainer, whose steps take as long as they are told to: what is tested is what becomes
of a step's time, not how long it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.checkpoint.layout import SaveName
from tests.e2e.benchmarks import claim_of_benchmarks, run
from tests.e2e.cluster import NAMESPACE, Cluster, Status

CLAIM = "benchmarks-of-jobs"
REPOSITORY = Path(__file__).parents[2]
embedded_only = pytest.mark.parametrize("cluster", ["embedded"], indirect=True, scope="session")


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


def job(step_seconds: float, steps: int = 8) -> dict[str, Any]:
    """A job of the numpy trainer."""
    environ = {
        "PYTHONPATH": ":".join([str(REPOSITORY), *filter(None, sys.path)]),
        "STEP_SECONDS": str(step_seconds),
        "NARROW": "1",
    }
    container = {
        "name": "trainer",
        "command": [sys.executable, "-m", "tests.support.numpy_supervisor"],
        "env": [{"name": name, "value": value} for name, value in environ.items()],
    }
    return {
        "framework": {"flax": {}},
        "model": {"mlp": {"hidden": [64]}},
        "data": {"digits": {}},
        "optimizer": {"sgd": {"learningRate": 0.1}},
        "schedule": {"constant": {}},
        "training": {"steps": steps, "globalBatchSize": 32, "logEverySteps": 2},
        "workers": {"max": 1, "podPatch": {"spec": {"containers": [container]}}},
    }


def measure(cluster: Cluster, name: str, workload: dict[str, Any], **spec: Any) -> tuple[Status, dict[str, Any]]:
    """Status and result of a Benchmark that has succeeded."""
    status, folder = run(cluster, CLAIM, name, workload, **spec)
    assert (folder / "report.html").stat().st_size > 1000
    return status, json.loads((folder / "result.json").read_bytes())


def values(result: dict[str, Any], metric: str, **labels: str) -> list[float]:
    return [
        value
        for series in result["series"]
        if series["metric"] == metric and labels.items() <= series.get("labels", {}).items()
        for value in series["values"]
    ]


def test_the_throughput_of_a_real_trainer_at_each_batch_size(claimed: Cluster) -> None:
    real = job(0.0, steps=12)
    del real["workers"]["podPatch"]
    status, result = measure(claimed, "throughput", {"training": {"batchSizes": [16, 32], "warmupSteps": 4}}, job=real)
    assert status["progress"]["summary"] == "2/2"
    assert status["result"]
    for size in ("16", "32"):
        (samples_per_second,) = values(result, "samples_per_second", batchSize=size)
        assert samples_per_second > 0
    assert [trial["case"] for trial in status["trials"]].count("batchSize=16") == 1
    assert result["environments"][0]["packages"]["capstan"]
    records = list(claimed.home.glob(f"**/{NAMESPACE}/throughput-t*/*/record.*.r0.json"))
    left = [path.name for record in records for path in record.parent.iterdir() if SaveName.parse(path.name)]
    assert (len(records), left) == (2, []), "runs leave their records in the store, and not their checkpoints"


def test_the_speed_up_of_two_workers_over_one(claimed: Cluster) -> None:
    workload = {"scaling": {"workers": [1, 2], "strong": True, "warmupSteps": 2}}
    _, result = measure(claimed, "speed-up", workload, job=job(0.01))
    rows = {row["workers"]: row for row in result["scaling"]}
    assert rows.keys() == {1, 2}
    assert rows[2]["efficiency"] == pytest.approx(rows[2]["speedup"] / 2)


def test_a_law_of_runs_that_were_made_elsewhere(claimed: Cluster) -> None:
    """Of the form of Hoffmann et al. with round numbers: nothing is left over."""
    points = [
        {"parameters": n, "tokens": d, "loss": 2.0 + 400 / n**0.3 + 600 / d**0.3}
        for n in (1e6, 1e7, 1e8, 1e9)
        for d in (1e7, 1e8, 1e9, 1e10)
    ]
    _, result = measure(claimed, "law-of-points", {"scalingLaw": {"points": points}})
    assert len(result["law"]["points"]) == 16
    fits = {fit["form"]: fit for fit in result["law"]["fits"]}
    assert max(map(abs, fits["chinchilla"]["residuals"])) < 1e-2


@embedded_only
def test_a_law_of_a_grid_of_runs(claimed: Cluster) -> None:
    models = [
        {"name": f"w{width}", "architecture": {"mlp": {"hidden": [width]}}}  # so many features the numpy trainer sees
        for width in (16, 32, 64)
    ]
    workload = {"scalingLaw": {"grid": {"models": models, "steps": [10, 20, 40]}}}
    status, result = measure(claimed, "law-of-a-grid", workload, job=job(0.0))
    assert status["progress"]["summary"] == "9/9"
    found = {(parameters, tokens) for parameters, tokens, _ in result["law"]["points"]}
    assert found == {(10 * (width + 1), 32 * steps) for width in (16, 32, 64) for steps in (10, 20, 40)}


@embedded_only
def test_a_slower_step_is_called_a_regression_and_the_same_step_is_not(claimed: Cluster) -> None:
    workload = {"training": {"warmupSteps": 2}}
    baseline = {"benchmark": {"name": "before", "rerun": True}}
    judged: dict[str, Any] = {"repetitions": 5, "baseline": baseline, "gate": {"minimumEffectPercent": 25}}
    measure(claimed, "before", workload, job=job(0.02))
    slower, told = measure(claimed, "slower", workload, job=job(0.04), **judged)
    assert slower["verdict"] == "Regressed", json.dumps(slower, indent=1)
    assert [each["verdict"] for each in told["comparisons"] if each["metric"] == "samples_per_second"] == ["Regressed"]
    same, _ = measure(claimed, "same", workload, job=job(0.02), **judged)
    assert same["verdict"] in ("Passed", "Inconclusive"), json.dumps(same, indent=1)
