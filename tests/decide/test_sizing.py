"""How large the next world is: laws that hold for every job and whatever is lost of it."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.blueprint import Blueprint, read_blueprint
from capstan_operator.decide.ranks import rank_of, read_ranks, write_ranks
from capstan_operator.decide.situation import valid_worlds
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.run_config import Membership
from tests.support.lives import Life
from tests.support.looks import lived_until, look, make_job, make_pod, make_state

SIZES = (1, 2, 4, 8)


@given(st.sets(st.integers(0, 40)))
def test_ranks_are_positions_among_the_workers(workers: set[int]) -> None:
    ranks = read_ranks(write_ranks(sorted(workers)))
    assert ranks == tuple(sorted(workers))
    assert [rank_of(worker, ranks) for worker in ranks] == list(range(len(ranks)))
    assert all(rank_of(worker, ranks) is None for worker in range(42) if worker not in workers)


def worlds_of(spec: dict[str, object], status: TrainingJobStatus) -> tuple[int, ...]:
    blueprint = read_blueprint(make_job(spec), OperatorSettings())
    assert isinstance(blueprint, Blueprint)
    return valid_worlds(status, blueprint)


def test_valid_worlds_lie_between_min_and_max_and_divide_the_virtual_ranks() -> None:
    spec = {"workers": {"min": 2, "max": 6}, "training": {"virtualRanks": 12, "globalBatchSize": 24}}
    assert worlds_of(spec, TrainingJobStatus()) == (2, 3, 4, 6)


def test_the_virtual_ranks_are_those_the_run_was_started_with() -> None:
    status = TrainingJobStatus(virtual_ranks=4, run_digest="sha256:0", world=4)
    assert worlds_of({"workers": {"min": 1, "max": 8}}, status) == (1, 2, 4)
    # No size between 8 and 8 divides four virtual ranks: the largest there is must do.
    assert worlds_of({"workers": {"max": 8}}, status) == (4,)


@given(st.integers(1, 64), st.data())
def test_a_later_size_is_followed_or_why_not_is_said_with_one_that_is(started: int, data: st.DataObject) -> None:
    """Of every spec that is valid by itself: the sizes that are named as the fix are followed without a word."""
    life = Life("created", workers={"max": started, "min": 1}, training={"globalBatchSize": 64 * started})
    largest = data.draw(st.sampled_from([size for size in range(1, 129) if 64 * started % size == 0]))
    least = data.draw(st.sampled_from([size for size in range(1, largest + 1) if largest % size == 0]))

    def said_of(least: int, largest: int) -> str:
        life.change_spec(workers={"max": largest, "min": least})
        assert isinstance(read_blueprint(life.seen.job, OperatorSettings()), Blueprint)
        life.decide(2.0)
        return next(each.message for each in life.status.conditions if each.type == "Accepted")

    message = said_of(least, largest)
    assert (message == "the spec is valid") == (started % largest == 0)
    for size in map(int, re.findall(r"(?:max|or) to (\d+)", message)):
        assert started % size == 0
        assert said_of(size if "set min and max" in message else min(least, size), size) == "the spec is valid"


def test_a_run_whose_virtual_ranks_nobody_noted_keeps_its_size() -> None:
    status = TrainingJobStatus(run_digest="sha256:0", world=4)
    assert worlds_of({"workers": {"min": 1, "max": 8}}, status) == (4,)


@settings(max_examples=60)
@given(st.sampled_from(SIZES), st.data())
def test_what_is_left_goes_on_at_once_in_the_largest_valid_world(largest: int, data: st.DataObject) -> None:
    least = data.draw(st.sampled_from([size for size in SIZES if size <= largest]))
    lost = data.draw(st.sets(st.integers(0, largest - 1), min_size=1))
    spec = {"workers": {"min": least, "max": largest}, "training": {"virtualRanks": 8}}
    observed = lived_until("running", spec)
    left = [pod for pod in observed.pods if pod.worker not in lost]
    states = {pod.name: observed.supervisors[pod.uid].state for pod in left}
    decision = decide_training_job(look(observed.job, left, states), 100.0)

    expected = max((size for size in SIZES if least <= size <= len(left)), default=None)
    status = decision.status
    assert status.restarts.total == 1
    if expected is None:
        assert (status.members, decision.pushes) == (None, ())
        return
    assert (status.world, status.fence) == (expected, 2)
    ranks = read_ranks(status.ranks or "")
    assert set(ranks) <= {pod.worker for pod in left}
    assert [push.membership.rank for push in decision.pushes] == list(range(expected))
    assert [push.pod_name for push in decision.pushes] == [f"digits-worker-{worker}" for worker in ranks]


def test_a_membership_tells_all_there_is_to_know() -> None:
    observed = lived_until("ready", {"workers": {"max": 2}, "training": {"virtualRanks": 8}})
    status = observed.job.status.model_copy(update={"micro_splits": 2, "fence": 3})
    status = TrainingJobStatus.parse(status.document() | {"skips": [{"first": 7, "count": 2}]})
    decision = decide_training_job(replace(observed, job=replace(observed.job, status=status)), 10.0)
    assert decision.pushes[1].membership == Membership.parse(
        {
            "fence": 4,
            "rank": 1,
            "world": 2,
            "coordinator": "10.0.0.1:8475",
            "floorStep": 0,
            "microSplits": 2,
            "skips": [{"first": 7, "count": 2}],
            "peers": ["10.0.0.1:8470", "10.0.0.2:8470"],
        }
    )


def test_an_attempt_is_not_stopped_for_a_worker_that_still_imports() -> None:
    life = Life("running", workers={"min": 1, "max": 2})
    life.delete_pod("digits-worker-1")
    life.decide(30.0)
    life.say("digits-worker-0", fence=2, world=1, phase="Training", exit=None)
    life.decide(31.0)
    fresh = make_pod(1, 1, created_at=31.0, running_since=31.0)
    states = {pod.name: life.seen.supervisors[pod.uid].state for pod in life.seen.pods if pod.worker == 0}
    for is_warm, now, next_world in ((False, 40.0, None), (False, 150.9, None), (True, 40.0, 2), (False, 151.0, 2)):
        told = states | {fresh.name: make_state(fresh, {"isWarm": is_warm})}
        life.seen = look(life.seen.job, [life.seen.pods[0], fresh], told)
        decision = decide_training_job(life.seen, now)
        assert decision.status.next_world == next_world


DECODER = {
    "framework": {"flax": {}},
    "model": {"mlp": None, "transformer": {"layers": 2, "dim": 32, "heads": 4, "experts": {"count": 4}}},
    "data": {"digits": None, "text": {"path": "/data/a.txt", "sequenceLength": 16}},
}


def test_a_world_is_valid_when_it_makes_whole_replicas_that_divide_the_virtual_ranks() -> None:
    def worlds(**changes: object) -> tuple[int, ...]:
        return worlds_of({**DECODER, **changes}, TrainingJobStatus())

    batch = {"globalBatchSize": 32, "virtualRanks": 8}
    assert worlds(workers={"max": 16, "min": 2}, parallelism={"tensor": 2}, training=batch) == (2, 4, 8, 16)
    shared = {"tensor": 2, "expert": 2}
    assert worlds(workers={"max": 16, "min": 4}, parallelism=shared, training=batch) == (4, 8, 16)
    large = {"max": 4, "min": 1, "gpus": 8}
    assert worlds(workers=large, parallelism=shared, training=batch) == (1, 2, 4), "each worker holds four replicas"


def test_a_pipeline_with_fewer_micro_steps_than_stages_is_accepted_with_what_it_costs() -> None:
    decoder = {**DECODER, "parallelism": {"pipeline": 2}, "workers": {"max": 4}}
    for virtual_ranks, said in (
        (
            2,
            "the spec is valid; pipeline 2 with 1 micro-step a replica keeps 1 of 2 turns of each stage busy; in a new "
            "job set training.virtualRanks to 4 or more",
        ),
        (4, "the spec is valid"),
    ):
        training = {"globalBatchSize": 32, "virtualRanks": virtual_ranks}
        life = Life("created", **decoder, training=training)
        life.decide(1.0)
        assert [each.message for each in life.status.conditions if each.type == "Accepted"] == [said]


def test_a_run_keeps_its_replicas_until_pods_read_another() -> None:
    """Whoever changes parallelism while it runs gets no world that its pods, which know nothing of it, cannot form."""
    life = Life("running", **DECODER, workers={"max": 4, "min": 1}, training={"globalBatchSize": 32})
    life.decide(20.0)
    assert life.status.valid_worlds == [1, 2, 4]
    life.change_spec(parallelism={"tensor": 2}, workers={"max": 8, "min": 2})
    life.decide(30.0)
    assert life.status.valid_worlds == [2, 4], "virtual ranks are 4, and every worker holds a replica"
    (accepted,) = [each.message for each in life.status.conditions if each.type == "Accepted"]
    assert "parallelism" in accepted
    life.change_spec(suspend=True)
    life.decide(40.0)
    life.seen = replace(life.seen, pods=(), supervisors={})
    life.decide(50.0)
    life.change_spec(suspend=False)
    life.decide(60.0)
    assert (life.status.valid_worlds, life.status.workers_per_replica) == ([2, 4, 8], 2)


def test_a_run_that_a_later_spec_has_no_room_for_goes_on_as_it_is() -> None:
    status = TrainingJobStatus(virtual_ranks=1, run_digest="sha256:0", world=4, workers_per_replica=4)
    assert worlds_of({**DECODER, "workers": {"max": 2}}, status) == (4,)
