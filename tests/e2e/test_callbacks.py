"""A job that is watched from inside: traced when somebody asks, tracked, and ended early, on both API servers."""

from __future__ import annotations

import csv

import pytest

from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.jobs import small_job

JOB = "watched"


@pytest.mark.full
def test_a_job_is_traced_when_asked_tracked_and_ended_early(cluster: Cluster) -> None:
    training = {"steps": 1_000_000, "globalBatchSize": 64, "logEverySteps": 100, "evaluation": {"everySteps": 200}}
    job = small_job(
        JOB,
        "flax",
        schedule={"constant": {}},
        training=training,
        callbacks={
            "earlyStopping": {"patience": 20, "minDelta": 0.001},
            "systemMonitor": {"everySeconds": 1},
            "profiler": {"annotation": {"count": 5}},
        },
        tracking={"csv": {}, "tensorboard": {}},
        checkpoint={"store": {"claim": {"name": JOB}}, "interval": {"steps": 1000}},
    )
    cluster.claim(JOB)
    uid = cluster.create_job(job)["metadata"]["uid"]
    try:
        cluster.wait(JOB, "training", lambda status: status.get("reason") == "Training")
        cluster.patch_job(JOB, {"metadata": {"annotations": {"capstan.dev/profile": "why is it slow"}}})
        status = cluster.wait_phase(JOB, "Succeeded")
        (run,) = cluster.home.glob(f"**/volumes/*/*/{NAMESPACE}/{JOB}/{uid}")
        events = cluster.event_reasons(JOB)
    finally:
        cluster.delete_job(JOB)
        cluster.wait_gone(lambda: cluster.pods(JOB), f"pods of {JOB}")
    assert status["reason"] == "StoppedEarly"
    assert status["message"].startswith(f"stopped early after step {status['step']}: 20 evaluations in a row found ")
    assert (status["steps"], status["checkpoint"]["step"]) == (1_000_000, status["step"])
    profile = status["profile"]
    assert (profile["request"], profile["lastStep"] - profile["firstStep"]) == ("why is it slow", 4)
    assert list((run / "profile").glob("*/**/*.xplane.pb"))
    assert "Profiled" in events
    with (run / "tracking" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = [int(row["step"]) for row in rows if row.get("validation_loss")]
    assert evaluated == list(range(200, status["step"] + 1, 200))
    assert any(row.get("system/cpu_cores") for row in rows)
