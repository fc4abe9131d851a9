"""A replica that two workers hold together, on the embedded cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import trainer_processes
from tests.e2e.cluster import Cluster, Status

EXAMPLE = Path("examples/text-parallel/job.yaml")


def run_through_a_kill(cluster: Cluster, job: dict[str, Any], rank: int) -> Status:
    """The status of `job` at its end, with one trainer killed after the first checkpoint."""
    name = job["metadata"]["name"]
    cluster.claim(name)
    uid = cluster.create_job(job)["metadata"]["uid"]
    cluster.wait_committed(name)
    (trainer, *_) = trainer_processes.find(uid)[rank]
    trainer.send_signal(signal.SIGKILL)
    status = cluster.wait_phase(name, "Succeeded", seconds=300)
    cluster.delete_job(name)
    cluster.wait_gone(lambda: cluster.pods(name), f"pods of {name}")
    return status


def test_a_model_over_two_workers_loses_one_and_goes_on_alike_in_both_frameworks(cluster: Cluster) -> None:
    if cluster.name != "embedded":
        pytest.skip("what the API server does with it is tested elsewhere; this is about trainers")
    _, example = yaml.safe_load_all(EXAMPLE.read_text())
    spread = {
        "deepspeed": ({"deepspeed": {"zeroStage": 1}}, {"tensor": 2}, 1),
        "flax": ({"flax": {}}, {"sequence": 2}, 0),
    }
    ends = {}
    for kind, (framework, parallelism, rank) in spread.items():
        name = f"text-parallel-{kind}"
        spec = {**example["spec"], "framework": framework, "parallelism": parallelism}
        spec["checkpoint"] = {**spec["checkpoint"], "store": {"claim": {"name": name}}}
        status = run_through_a_kill(cluster, {**example, "metadata": {"name": name}, "spec": spec}, rank)
        assert (status["validWorlds"], status["virtualRanks"], status["ranks"]) == ([2], 1, "0-1")
        assert status["restarts"] == {"total": 1, "byCause": {"Crash": 1}}
        assert status["resumedFrom"]["step"] > 0
        ends[kind] = status["metrics"]["validation_loss"]
    assert ends["flax"] == pytest.approx(ends["deepspeed"], rel=1e-3)
    assert ends["flax"] < 3.3, "what knowing only the bytes' frequencies gives"
