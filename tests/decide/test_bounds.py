"""What a status may hold is bounded, however long a job lives and whatever its pods say."""

from __future__ import annotations

from dataclasses import replace

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.training_job import decide_training_job
from capstan_runtime.contract.state import Quarantine
from tests.support.looks import lived_until, look, make_state, root


def test_of_many_quarantined_checkpoints_the_highest_steps_stay_and_nothing_flaps() -> None:
    observed = lived_until("running")
    states = {pod.name: observed.supervisors[pod.uid].state for pod in observed.pods}
    bad = [Quarantine(step=step, root=root(step), reason="x" * 5000) for step in range(1, 101)]
    status = observed.job.status
    for first in (0, 40, 60, 0):  # a pod tells of 40 at a time, the old ones again in the end
        says = states | {
            "digits-worker-0": states["digits-worker-0"].model_copy(update={"quarantined": bad[first : first + 40]})
        }
        seen = look(replace(observed.job, status=status), list(observed.pods), says)
        before, status = status, decide_training_job(seen, 30.0).status
    assert sorted(entry.step for entry in status.quarantined) == list(range(81, 101))
    assert {len(entry.reason) for entry in status.quarantined} == {300}
    assert status == before


def test_of_many_nodes_that_break_ten_are_remembered() -> None:
    observed = lived_until("running")
    faults = [
        {"node": f"node-{number}", "class": "Crash", "count": 1, "at": "1970-01-01T00:01:00Z"}
        for number in range(100, 110)
    ]
    status = TrainingJobStatus.parse(observed.job.status.document() | {"nodeFaults": faults})
    crash = {"fence": 1, "code": 139, "failure": "Crash", "at": 99.0, "message": "x"}
    states = {pod.name: observed.supervisors[pod.uid].state for pod in observed.pods}
    states["digits-worker-1"] = make_state(observed.pods[1], {"fence": 1, "phase": "Exited", "exit": crash})
    seen = look(replace(observed.job, status=status), list(observed.pods), states)
    nodes = [fault.node for fault in decide_training_job(seen, 100.0).status.node_faults]
    assert nodes == [f"node-{number}" for number in range(101, 110)] + ["node-1"]


def test_the_status_of_a_large_job_is_small() -> None:
    observed = lived_until("running", {"workers": {"max": 256}, "training": {"globalBatchSize": 256}})
    assert len(observed.pods) == 256
    assert len(observed.job.status.model_dump_json()) < 4096
