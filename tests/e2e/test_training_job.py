"""Whole lives of TrainingJobs: to success, through failures, and out of the way again."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from benchmarks import trainer_processes
from tests.e2e.cluster import NAMESPACE, Cluster, Status
from tests.e2e.jobs import FRAMEWORKS, small_job

pytestmark = [pytest.mark.parametrize("framework", FRAMEWORKS), pytest.mark.one_framework_on_the_real_server]

# Long enough to be interrupted on a fast machine, short enough not to bore on a slow one.
LONG = {"flax": 1200, "deepspeed": 500}
SLOW_START = {"flax": 4, "deepspeed": 0}
"""Seconds that a pod waits before it starts: with its imports, so late that the others go on without it, and so soon
that it is back before the run is over."""


def long_job(name: str, framework: str, steps: int | None = None) -> dict[str, Any]:
    steps = steps or LONG[framework]
    training = {"steps": steps, "globalBatchSize": 64, "seed": 3}
    interval = {"interval": {"steps": steps // 20}, "store": {"claim": {"name": name}}}
    return small_job(name, framework, training=training, checkpoint=interval)


def condition(status: Status, kind: str) -> tuple[str, str]:
    """(status, reason) of one condition."""
    found = next(entry for entry in status["conditions"] if entry["type"] == kind)
    return found["status"], found["reason"]


def trainers(uid: str) -> list[psutil.Process]:
    """The trainers of one job on this machine, by worker, without their warm spares."""
    return [found[0] for _, found in sorted(trainer_processes.find(uid).items())]


@pytest.fixture(scope="module")
def undisturbed_metrics() -> dict[str, dict[str, float]]:
    """Final metrics of the long job nobody disturbed, by framework; filled by the first test."""
    return {}


@pytest.fixture
def job_name(cluster: Cluster, framework: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh name with a claim; whatever the test leaves is removed."""
    short = request.function.__name__.removeprefix("test_").replace("_", "-")[:30].strip("-")
    name = f"{short}-{request.node.callspec.id.removeprefix(cluster.name).strip('-')}"
    cluster.claim(name)
    yield name
    cluster.delete_job(name)
    cluster.wait_gone(lambda: cluster.pods(name), f"pods of {name}")


def test_runs_to_the_end_and_says_so(
    cluster: Cluster, framework: str, job_name: str, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    created = cluster.create_job(long_job(job_name, framework))
    status = cluster.wait_phase(job_name, "Succeeded")
    undisturbed_metrics[framework] = status["metrics"]

    assert condition(status, "Succeeded")[0] == "True"
    assert condition(status, "CheckpointVerified")[0] == "True"
    assert status["observedGeneration"] == 1
    assert (status["step"], status["steps"], status["percent"]) == (LONG[framework], LONG[framework], 100)
    assert status["checkpoint"]["step"] == LONG[framework]
    assert status["metrics"]["accuracy"] > 0.9
    assert status["restarts"]["total"] == 0
    assert (status["fence"], status["ranks"]) == (1, "0-1")
    cluster.wait_pods(job_name, ["Succeeded", "Succeeded"])
    reasons = cluster.event_reasons(job_name)
    assert reasons[0] == "Accepted"
    assert reasons[-1] == "Succeeded"
    log = cluster.core.read_namespaced_pod_log(f"{job_name}-worker-0", NAMESPACE)
    assert f"step {LONG[framework]}/{LONG[framework]}" in log
    assert cluster.job(job_name)["spec"]["training"] == created["spec"]["training"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_trainer_costs_a_restart_and_changes_no_number(
    cluster: Cluster, framework: str, job_name: str, rank: int, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    uid = cluster.create_job(long_job(job_name, framework))["metadata"]["uid"]
    cluster.wait_committed(job_name)
    pods_before = {pod.metadata.uid for pod in cluster.pods(job_name)}
    trainers(uid)[rank].send_signal(signal.SIGKILL)

    status = cluster.wait_phase(job_name, "Succeeded")
    assert status["restarts"] == {"total": 1, "byCause": {"Crash": 1}}
    assert status["resumedFrom"]["step"] > 0
    failure = status["failure"]
    assert (failure["rank"], failure["class"], failure["signal"]) == (rank, "Crash", "SIGKILL")
    assert failure["pod"] == f"{job_name}-worker-{rank}"
    # In place: the pods are the same ones, only the processes in them are new.
    assert {pod.metadata.uid for pod in cluster.pods(job_name)} == pods_before
    assert "Restarting" in cluster.event_reasons(job_name)
    final = undisturbed_metrics[framework]
    assert {key: status["metrics"][key] for key in ("loss", "accuracy")} == {
        key: final[key] for key in ("loss", "accuracy")
    }


def test_a_deleted_pod_is_replaced_and_changes_no_number(
    cluster: Cluster, framework: str, job_name: str, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    cluster.create_job(long_job(job_name, framework))
    cluster.wait_committed(job_name)
    cluster.core.delete_namespaced_pod(f"{job_name}-worker-1", NAMESPACE, grace_period_seconds=0)

    status = cluster.wait_phase(job_name, "Succeeded")
    assert status["restarts"] == {"total": 1, "byCause": {"Lost": 1}}
    assert status["resumedFrom"]["step"] > 0
    assert status["metrics"]["loss"] == undisturbed_metrics[framework]["loss"]


def test_a_drained_pod_costs_a_restart_and_no_step(
    cluster: Cluster, framework: str, job_name: str, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    cluster.create_job(long_job(job_name, framework))
    cluster.wait_committed(job_name)
    cluster.core.delete_namespaced_pod(f"{job_name}-worker-0", NAMESPACE)

    status = cluster.wait_phase(job_name, "Succeeded")
    assert status["restarts"] == {"total": 1, "byCause": {"Lost": 1}}
    (record,) = status["recoveries"]
    assert record["sentence"] == f"rank 0 (pod {job_name}-worker-0): its pod was deleted"
    # Nothing that was told is done again. Whether the pods lived to tell of the last step, too, is chance.
    assert record["step"] >= record["stepBefore"]
    assert record.get("stepsLost") in (0, None)
    assert status["metrics"]["loss"] == undisturbed_metrics[framework]["loss"]


def test_a_storm_is_survived_and_told_and_changes_no_number(
    cluster: Cluster, framework: str, job_name: str, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    """The world shrinks when a pod is deleted and grows when it is back; nothing starts from step 0 again."""
    steps = LONG[framework]
    half = steps // 2
    job = long_job(job_name, framework)
    wait = {"name": "wait", "image": "local/host", "command": ["sleep", str(SLOW_START[framework])]}
    job["spec"] |= {
        "workers": {"min": 1, "max": 2, "podPatch": {"spec": {"initContainers": [wait]}}},
        "recovery": {"deadlines": {"hang": 8}},
        "chaos": [
            {"name": "killed", "fault": "Kill", "step": steps // 8, "rank": 1},
            {"name": "stopped", "fault": "Hang", "step": steps // 4, "rank": 0},
            # Slow, so that the pod is gone before the second slowness is due, and back before the run is over. Both end
            # with the attempt that they fall into.
            {"name": "slow", "fault": "SlowRank", "step": half, "rank": 0, "durationSeconds": 120},
            {"name": "deleted", "fault": "DeletePod", "step": half, "rank": 1},
            {"name": "slow-alone", "fault": "SlowRank", "step": half + steps // 7, "rank": 0, "durationSeconds": 120},
        ],
    }
    cluster.create_job(job)
    status = cluster.wait_phase(job_name, "Succeeded", seconds=400)

    assert sorted(entry["name"] for entry in status["injected"]) == sorted(
        entry["name"] for entry in job["spec"]["chaos"]
    )
    told = [
        (record["cause"], record["action"], record.get("chaos"), record["worldBefore"], record["worldAfter"])
        for record in status["recoveries"]
    ]
    assert told == [
        ("Crash", "RestartInPlace", "killed", 2, 2),
        ("Hang", "RestartInPlace", "stopped", 2, 2),
        ("Lost", "Shrink", "deleted", 2, 1),
        ("Grow", "Grow", None, 1, 2),
    ]
    assert status["restarts"] == {"total": 3, "byCause": {"Crash": 1, "Hang": 1, "Lost": 1}}
    for record in status["recoveries"]:
        assert record["step"] > 0
        lost = record["stepBefore"] - record["step"]
        assert record.get("stepsLost") == (lost if lost >= 0 else None)
        parts = {name: value for name, value in record["seconds"].items() if name != "total"}
        assert sum(parts.values()) == pytest.approx(record["seconds"]["total"], abs=0.01)
    assert status["recoveries"][-1]["stepsLost"] == 0
    assert {"ChaosInjected", "Recovered", "Restarting"} <= set(cluster.event_reasons(job_name))
    final = undisturbed_metrics[framework]
    assert {key: status["metrics"][key] for key in ("loss", "accuracy")} == {
        key: pytest.approx(final[key], rel=1e-3) for key in ("loss", "accuracy")
    }


def test_suspend_frees_the_pods_and_resume_goes_on_from_the_checkpoint(
    cluster: Cluster, framework: str, job_name: str, undisturbed_metrics: dict[str, dict[str, float]]
) -> None:
    cluster.create_job(long_job(job_name, framework))
    cluster.wait_committed(job_name)
    cluster.patch_job(job_name, {"spec": {"suspend": True}})
    suspended = cluster.wait_phase(job_name, "Suspended")
    assert cluster.pods(job_name) == []
    assert condition(suspended, "Suspended")[0] == "True"

    kept = {"last": 7}
    cluster.patch_job(job_name, {"spec": {"suspend": False, "checkpoint": {"retention": kept}}})
    status = cluster.wait_phase(job_name, "Succeeded")
    assert condition(status, "Accepted") == ("True", "Valid")
    secret = cluster.core.read_namespaced_secret(f"{job_name}-run", NAMESPACE)
    assert json.loads(base64.b64decode(secret.data["run.json"]))["checkpoint"]["retention"] == kept
    assert status["resumedFrom"]["step"] >= suspended["checkpoint"]["step"] > 0
    assert status["restarts"]["total"] == 0
    assert status["metrics"]["loss"] == undisturbed_metrics[framework]["loss"]


def test_a_killed_operator_is_not_noticed_by_the_job(cluster: Cluster, framework: str, job_name: str) -> None:
    steps = 3 * LONG[framework]
    uid = cluster.create_job(long_job(job_name, framework, steps))["metadata"]["uid"]
    cluster.wait_committed(job_name)
    before = {process.pid for process in trainers(uid)}
    cluster.restart_operator()
    status = cluster.wait(job_name, "further on", lambda status: status["step"] > steps * 0.5)
    assert {process.pid for process in trainers(uid)} <= before
    status = cluster.wait_phase(job_name, "Succeeded")
    assert (status["restarts"]["total"], status["fence"]) == (0, 1)
    assert len(cluster.pods(job_name)) == 2


def test_a_missing_file_fails_the_job_with_the_reason_and_without_a_restart(
    cluster: Cluster, framework: str, job_name: str
) -> None:
    cluster.create_job(small_job(job_name, framework, data={"arrays": {"path": "/data/absent.npz"}}))
    status = cluster.wait_phase(job_name, "Failed")
    assert status["failure"]["class"] == "Config"
    assert "/data/absent.npz" in status["failure"]["message"]
    assert status["restarts"]["total"] == 0
    assert condition(status, "Failed")[0] == "True"
    # The other one's trainer may still have run when the job failed: then its pod goes.
    cluster.wait_gone(lambda: [p for p in cluster.pods(job_name) if p.status.phase != "Failed"], "the running pods")
    log = cluster.core.read_namespaced_pod_log(status["failure"]["pod"], NAMESPACE)
    assert "/data/absent.npz does not exist in the pod" in log


def test_deleting_a_job_removes_all_it_made(cluster: Cluster, framework: str, job_name: str) -> None:
    uid = cluster.create_job(long_job(job_name, framework))["metadata"]["uid"]
    cluster.wait_phase(job_name, "Running")
    processes = trainers(uid)
    assert len(processes) == 2
    cluster.delete_job(job_name)
    cluster.wait_gone(lambda: cluster.pods(job_name), "the pods")
    cluster.wait_gone(lambda: cluster.core.read_namespaced_secret(f"{job_name}-run", NAMESPACE), "the Secret")
    assert not [process for process in processes if process.is_running()]
    claim = cluster.core.read_namespaced_persistent_volume_claim(job_name, NAMESPACE)
    assert claim.metadata.deletion_timestamp is None
