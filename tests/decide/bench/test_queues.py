"""A Benchmark whose TrainingJobs wait in a Kueue queue."""

from __future__ import annotations

from typing import Any

from tests.support.bench_cases import full_spec
from tests.support.bench_world import AT, World

JOB = "bench-t00"
WAITING = {"phase": "Pending", "reason": "WaitingForQuota", "queue": {"name": "team-a"}}
QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}
FIRST = "WorkloadEvicted: Preempted to accommodate a workload"


def in_queue(queue: str | None = "team-a") -> World:
    return World(full_spec({"workload": "training"}), queue=queue)


def labels_of_its_job(world: World) -> dict[str, str]:
    while not (made := world.decide().create):
        world.carry_out(world.decide())
    labels: dict[str, str] = made[0]["metadata"]["labels"]
    return {name: value for name, value in labels.items() if name.startswith("kueue")}


def status_once_settled(world: World, **job: Any) -> str:
    world.settle()
    world.set_job(JOB, live_pods=1, **job)
    world.settle()
    return world.status.message or ""


def test_its_jobs_wait_in_the_queue_that_it_names() -> None:
    assert (labels_of_its_job(in_queue()), labels_of_its_job(in_queue(None))) == (QUEUE, {})


def test_the_time_a_job_waits_for_quota_is_not_the_runs() -> None:
    world = in_queue()
    assert status_once_settled(world, **WAITING).startswith("run 1 of 2")
    world.now += 100_000
    world.settle()
    assert world.status.repeats == []
    status_once_settled(world, phase="Running", reason="Training", activeSeconds=3599.0)
    assert world.status.repeats == []
    status_once_settled(world, phase="Running", reason="Training", activeSeconds=3631.0)
    assert world.status.repeats[0].reason.startswith("was not done after 3600 s")


def test_a_run_that_was_preempted_is_repeated() -> None:
    world = in_queue()
    record = {"fence": 2, "at": AT, "cause": "Preempted", "sentence": FIRST}
    status_once_settled(world, phase="Running", reason="Training", recoveries=[record])
    assert [one.reason for one in world.status.repeats] == [
        f"TrainingJob {JOB} was preempted, and saving and resuming would be measured, too"
    ]
