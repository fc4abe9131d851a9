"""Whole lives of jobs, driven by decisions, in a world where anything may go wrong at any moment.

What the operator must never do is asserted in `world.py`, where it would do it; what must come out in the end is here.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from capstan_operator.api.recovery_spec import Budgets
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.exit_codes import FailureClass
from tests.simulate.operator_model import Operator, Trouble
from tests.simulate.trainers import STEPS
from tests.simulate.world import World
from tests.support.looks import SPEC, merged

QUIET = OperatorSettings(progress_seconds=1e9)
"""Progress alone is never written, so that every write that is left is one that matters."""
LIMIT_SECONDS = 4000.0
SEEDS = range(250)


def finish(world: World) -> TrainingJobStatus:
    """Lets the job live to its end, and a while beyond it."""
    world.run(LIMIT_SECONDS, lambda: world.is_finished)
    assert world.is_finished, "the job never ended:\n" + "\n".join(world.transcript[-40:])
    world.run(world.now + 200.0)
    return TrainingJobStatus.parse(world.status)


def disturb(world: World, operator: Operator, faults: int) -> None:
    """Puts `faults` faults of any kind at any time on the clock."""
    rng = world.random
    failures = (
        (137, FailureClass.CRASH, "SIGKILL"),
        (134, FailureClass.CRASH, "SIGABRT"),
        (75, FailureClass.RETRYABLE, None),
        (74, FailureClass.GPU_FAULT, None),
        (1, FailureClass.APPLICATION, None),
        (79, FailureClass.HANG, None),
    )

    def strike() -> None:
        pods = [pod for pod in world.pods.values() if pod.phase == "Running" and not pod.is_deleting]
        if not pods or world.is_finished:
            return
        pod, kind = rng.choice(pods), rng.randrange(7)
        if kind <= 2:
            code, failure, signal = rng.choice(failures)
            world.trainers.kill(pod, code, failure, signal)
        elif kind == 3:
            world.fault(f"somebody deletes {pod.name}")
            world.terminate(pod)
        elif kind == 4:
            world.fault(f"{pod.name} vanishes")
            world.vanish(pod)
        elif kind == 5:
            code, reason = rng.choice([(137, "OOMKilled"), (143, "Evicted"), (1, "Error")])
            world.fault(f"{pod.name} fails: {reason}")
            world.fail_pod(pod, code, reason)
        else:
            world.fault(f"{pod.name} cannot be reached for a while")
            pod.is_reachable = False
            world.at(rng.uniform(1.0, 90.0), lambda: setattr(pod, "is_reachable", True))

    for _ in range(faults):
        world.at(rng.uniform(0.0, 60.0), strike)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_an_undisturbed_life_costs_the_pods_and_five_more_writes(workers: int) -> None:
    for seed in range(10):
        world = World(seed, merged(SPEC, {"workers": {"max": workers}}))
        Operator(world, Trouble(), QUIET)
        status = finish(world)
        assert (status.phase, status.step, status.restarts.total, status.fence) == ("Succeeded", STEPS, 0, 1)
        kinds = Counter(write.split()[0] for write in world.writes)
        assert kinds == {"secret": 1, "create": workers, "status": 4}, world.writes


@pytest.mark.parametrize("seed", SEEDS)
def test_every_disturbed_life_ends_and_breaks_no_rule(seed: int) -> None:
    world = World(seed, merged(SPEC, {"workers": {"max": 1 + seed % 4}, "training": {"globalBatchSize": 60}}))
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, lost_answer=0.05, death_at_write=0.03 * (seed % 3))
    operator = Operator(world, trouble, OperatorSettings())
    disturb(world, operator, faults=world.random.randrange(6))
    status = finish(world)

    budgets = Budgets()
    for failure, used in status.restarts.by_cause.items():
        assert used <= getattr(budgets, FailureClass(failure).name.lower()), f"{used} restarts for {failure}"
    assert sum(status.restarts.by_cause.values()) == status.restarts.total
    if status.phase == "Succeeded":
        assert status.step == STEPS
    else:
        assert status.failure is not None
        assert status.reason in (f"{status.failure.failure_class}BudgetExhausted", "NoProgress"), status.failure
    live = [pod.name for pod in world.pods.values() if pod.phase in ("Pending", "Running")]
    assert live == [], "pods still hold a node long after the end"
    newest = Counter(pod.worker for pod in world.pods.values() if pod.phase == "Succeeded")
    assert all(count == 1 for count in newest.values()), newest


def elastic_world(seed: int, recovery: dict[str, object]) -> World:
    """A job that may shrink, on GPUs that may be too small, with data that may be bad."""
    rng = random.Random(seed)
    largest = rng.choice([2, 4, 8])
    spec = {
        "workers": {"max": largest, "min": rng.choice([1, 2, largest])},
        "training": {"virtualRanks": 8},
        "recovery": {"numerical": {"nonFinite": "rewind", "skipSteps": 3}} | recovery,
    }
    world = World(seed, merged(SPEC, spec))
    world.trainers.most_samples = rng.choice([None, 1, 3])
    world.trainers.bad_batches = set(rng.sample(range(200), rng.randrange(3)))
    return world


def disturb_nodes(world: World, faults: int) -> None:
    """Puts on the clock `faults` nodes that go dark and come back, and trainers that are stopped by a signal."""
    rng = world.random

    def strike() -> None:
        pods = [pod for pod in world.pods.values() if pod.phase == "Running" and not pod.is_deleting]
        if not pods or world.is_finished:
            return
        pod = rng.choice(pods)
        if rng.random() < 0.5 or pod.node is None or pod.node in world.dark_nodes:
            world.trainers.freeze(pod)
            return
        node = pod.node
        world.lose_node(node)
        world.at(rng.uniform(20.0, 200.0), lambda: world.bring_back(node))

    for _ in range(faults):
        world.at(rng.uniform(0.0, 90.0), strike)


PATIENT = {
    "budgets": dict.fromkeys(("application", "retryable", "crash", "gpuFault", "hostOutOfMemory"), 1000)
    | dict.fromkeys(("gpuOutOfMemory", "lost", "hang", "numerical"), 1000),
    "noProgressAttempts": 100,
}


@pytest.mark.parametrize("seed", range(80))
def test_with_enough_patience_an_elastic_life_always_succeeds(seed: int) -> None:
    """Whatever happens, as long as it stops happening: all steps are made, and every rule of `trainers.py` holds."""
    world = elastic_world(seed, PATIENT)
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, lost_answer=0.05, death_at_write=0.03 * (seed % 3))
    operator = Operator(world, trouble, OperatorSettings())
    disturb(world, operator, faults=world.random.randrange(4))
    disturb_nodes(world, faults=world.random.randrange(4))
    status = finish(world)
    assert (status.phase, status.step) == ("Succeeded", STEPS), status.message
    assert sum(status.restarts.by_cause.values()) == status.restarts.total
    left_out = {index for skip in status.skips for index in range(skip.first, skip.first + skip.count)}
    assert world.trainers.bad_batches <= left_out | set(range(STEPS - 1, 300))


@pytest.mark.parametrize("seed", range(40))
def test_an_elastic_life_with_the_usual_patience_ends_for_a_reason(seed: int) -> None:
    world = elastic_world(1000 + seed, {})
    operator = Operator(world, Trouble(lost_event=0.05, lost_answer=0.05), OperatorSettings())
    disturb(world, operator, faults=world.random.randrange(8))
    disturb_nodes(world, faults=world.random.randrange(4))
    status = finish(world)
    budgets = Budgets()
    for failure, used in status.restarts.by_cause.items():
        assert used <= getattr(budgets, FailureClass(failure).name.lower()), f"{used} restarts for {failure}"
    if status.phase != "Succeeded":
        assert status.failure is not None
        assert status.reason in (f"{status.failure.failure_class}BudgetExhausted", "NoProgress"), status.message


@pytest.mark.parametrize("seed", range(40))
def test_a_job_whose_size_is_edited_at_any_moment_loses_nothing(seed: int) -> None:
    """No edit of min and max is a failure, and none takes back a step that was committed."""
    spec = merged(SPEC, {"workers": {"max": 2, "min": 1}, "training": {"virtualRanks": 8}})
    world = World(seed, spec)
    Operator(world, Trouble(lost_event=0.05, repeated_event=0.1, death_at_write=0.03 * (seed % 2)), OperatorSettings())

    def edit() -> None:
        largest = world.random.choice([1, 2, 4, 8])
        least = world.random.choice([size for size in (1, 2, 4, 8) if size <= largest])
        if not world.is_finished:
            world.change_spec(merged(world.spec, {"workers": {"max": largest, "min": least}}))

    for _ in range(world.random.randrange(1, 4)):
        world.at(world.random.uniform(0.0, 40.0), edit)
    status = finish(world)
    assert (status.phase, status.step, status.restarts.total) == ("Succeeded", STEPS, 0)


@pytest.mark.parametrize("seed", range(10))
def test_an_undisturbed_elastic_life_costs_no_more_writes(seed: int) -> None:
    world = World(seed, merged(SPEC, {"workers": {"max": 4, "min": 1}, "training": {"virtualRanks": 8}}))
    Operator(world, Trouble(), QUIET)
    status = finish(world)
    assert (status.phase, status.ranks, status.fence) == ("Succeeded", "0-3", 1)
    kinds = Counter(write.split()[0] for write in world.writes)
    assert kinds == {"secret": 1, "create": 4, "status": 4}, world.writes


@pytest.mark.parametrize("seed", range(40))
def test_a_job_suspended_and_resumed_at_any_moment_loses_nothing(seed: int) -> None:
    world = World(seed, SPEC)
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, death_at_write=0.03 * (seed % 2))
    Operator(world, trouble, OperatorSettings())
    suspend_at = world.random.uniform(0.0, 30.0)
    resume_at = suspend_at + world.random.uniform(0.1, 40.0)
    world.at(suspend_at, lambda: world.change_spec(merged(SPEC, {"suspend": True})))
    world.at(resume_at, lambda: world.change_spec(merged(SPEC, {"suspend": False})))
    status = finish(world)
    assert (status.phase, status.step, status.restarts.total) == ("Succeeded", STEPS, 0)


@pytest.mark.parametrize("seed", range(40))
def test_what_changes_of_the_run_at_any_moment_is_read_by_all_ranks_of_an_attempt_or_by_none(seed: int) -> None:
    """Which no moment of a suspension changes, nor a pod that breaks; `trainers.py` compares what they have read."""
    world = World(seed, merged(SPEC, {"workers": {"max": 4, "min": 1}}))
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, death_at_write=0.03 * (seed % 2))
    operator = Operator(world, trouble, OperatorSettings())

    def change(**spec: object) -> None:
        if not world.is_finished:
            world.change_spec(merged(world.spec, spec))

    def resume() -> None:
        # A pod that is being deleted for the suspension may be taken for one that is left, and then be lost.
        world.fault("the job is resumed")
        change(suspend=False, checkpoint={"interval": {"steps": 7}})

    suspend_at = world.random.uniform(0.0, 30.0)
    resume_at = suspend_at + world.random.choice([0.4, 2.0, 40.0]) * world.random.random()
    world.at(suspend_at, lambda: change(suspend=True))
    world.at(world.random.uniform(0.0, 60.0), lambda: change(workers={"max": 8}))
    world.at(resume_at, resume)
    disturb(world, operator, faults=world.random.randrange(3))
    status = finish(world)
    assert (status.phase, status.step) == ("Succeeded", STEPS), status.message
    assert world.virtual_ranks == status.virtual_ranks


def test_a_change_while_no_pod_is_left_is_read_by_the_pods_that_follow() -> None:
    world = World(0, SPEC)
    Operator(world, Trouble(), OperatorSettings())
    world.at(12.0, lambda: world.change_spec(merged(SPEC, {"suspend": True})))
    world.run(60.0)
    assert world.status["phase"] == "Suspended"
    changed = merged(SPEC, {"checkpoint": {"interval": {"steps": 7}, "retention": {"last": 9}}, "workers": {"max": 4}})
    world.change_spec(changed)
    status = finish(world)
    runs = [pod.run for pod in world.pods.values()]
    assert [run["checkpoint"]["interval"] for run in runs if run] == [{"steps": 7}] * 2
    assert [run["checkpoint"]["retention"]["last"] for run in runs if run] == [9] * 2
    assert [run["training"]["virtualRanks"] for run in runs if run] == [2] * 2
    assert (status.phase, status.step, status.restarts.total) == ("Succeeded", STEPS, 0)
    accepted = next(condition for condition in status.conditions if condition.type == "Accepted")
    assert accepted.message.startswith("workers.min: 4 and max: 4 do not divide virtualRanks 2, which the run keeps")


@pytest.mark.parametrize("seed", range(20))
def test_of_a_job_that_has_failed_the_pods_whose_trainers_ended_stay_for_their_logs(seed: int) -> None:
    world = World(seed, merged(SPEC, {"workers": {"max": 4}}))
    Operator(world, Trouble(lost_event=0.1, repeated_event=0.1, lost_answer=0.1), OperatorSettings())
    world.run(LIMIT_SECONDS, lambda: world.status.get("phase") == "Running")
    dies = world.random.choice(range(4))
    world.trainers.kill(world.pods[f"digits-worker-{dies}"], 78, FailureClass.CONFIG)
    status = finish(world)
    assert (status.phase, status.reason) == ("Failed", "ConfigError")
    assert status.failure is not None
    culprit = world.pods[status.failure.pod or ""]
    assert (culprit.worker, culprit.phase, culprit.exit_code) == (dies, "Failed", 78)
    assert [pod.name for pod in world.pods.values() if pod.phase in ("Pending", "Running")] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_job_whose_pods_always_die_at_the_start_stops_after_its_budget(seed: int) -> None:
    world = World(seed, merged(SPEC, {"recovery": {"budgets": {"application": 2}}}))
    Operator(world, Trouble(death_at_write=0.05), OperatorSettings())
    world.crashing_start_ups = 1000
    status = finish(world)
    assert (status.phase, status.reason) == ("Failed", "ApplicationBudgetExhausted")
    assert status.restarts.by_cause == {"Application": 2}
    # Two to begin with, and for each restart at most both: none is created that was not paid for.
    assert sum(write.startswith("create") for write in world.writes) <= 2 + 2 * 2
