"""Code of the user's own on a cluster: a program that is killed and loses a pod, and modules in the trainers' loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import NAMESPACE, Cluster


def applied(cluster: Cluster, example: str, **changes: dict[str, Any]) -> str:
    """The example's objects, with sections of its job's spec merged; the job's name."""
    if cluster.name != "embedded":
        pytest.skip("what is tried is in the pods, which are the same on every API server")
    for document in yaml.safe_load_all(Path(f"examples/{example}/job.yaml").read_text()):
        if document["kind"] == "ConfigMap":
            cluster.core.create_namespaced_config_map(NAMESPACE, document)
        elif document["kind"] == "PersistentVolumeClaim":
            cluster.core.create_namespaced_persistent_volume_claim(NAMESPACE, document)
        else:
            for section, change in changes.items():
                known = document["spec"].get(section)
                document["spec"][section] = {**known, **change} if isinstance(known, dict) else change
            cluster.create_job(document)
    return example


def remove(cluster: Cluster, name: str) -> None:
    cluster.delete_job(name)
    cluster.wait_gone(lambda: cluster.pods(name), f"pods of {name}")


def test_a_program_that_is_killed_and_loses_a_pod_goes_on_and_ends_as_it_would_have(cluster: Cluster) -> None:
    faults = [
        {"name": "killed", "fault": "Kill", "step": 120, "rank": 1},
        {"name": "drained", "fault": "DeletePod", "step": 250, "rank": 1},
    ]
    name = applied(cluster, "program-torch", training={"steps": 500}, chaos=faults)
    status = cluster.wait_phase(name, "Succeeded", seconds=180)
    assert status["step"] == 500
    # What plain torch comes to with these samples after 500 steps: 0.02; after 200, 0.13.
    assert status["metrics"]["loss"] < 0.1
    killed = next(one for one in status["recoveries"] if one.get("chaos") == "killed")
    assert (killed["cause"], killed["rank"], killed["verified"]) == ("Crash", 1, True), killed
    assert killed["step"] >= 100, "saved every 50 steps"
    assert {one["worldAfter"] for one in status["recoveries"]} & {1}, "it went on with one worker"
    assert status["metrics"].keys() >= {"samples_per_second", "save_seconds"}
    log = cluster.core.read_namespaced_pod_log(f"{name}-worker-0", NAMESPACE)
    assert "accuracy on what it was trained on: 0.9" in log
    remove(cluster, name)


@pytest.mark.parametrize(
    ("example", "loss"), [("custom-flax", 0.5), pytest.param("custom-torch", 3.3, marks=pytest.mark.full)]
)
def test_a_module_of_ones_own_learns_in_the_trainers_loop(cluster: Cluster, example: str, loss: float) -> None:
    name = applied(cluster, example)
    status = cluster.wait_phase(name, "Succeeded", seconds=240)
    assert status["metrics"]["loss"] < loss
    remove(cluster, name)
