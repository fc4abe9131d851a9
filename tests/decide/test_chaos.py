"""Faults on purpose: only with both consents, on the rank that the seed says, and never twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.recovery_spec import Chaos
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.blueprint import Blueprint, read_blueprint
from capstan_operator.decide.chaos import injections_for, rank_for
from capstan_operator.decide.conditions import find
from capstan_operator.decide.situation import look
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.chaos import Fault, Injection
from tests.support.lives import Life
from tests.support.looks import make_pod

ZERO, ONE = "digits-worker-0", "digits-worker-1"
KILL = {"name": "kill", "fault": "Kill", "step": 60, "rank": 1}
CRASH = {"fence": 1, "code": 137, "signal": "SIGKILL", "failure": "Crash", "message": "", "at": 30.0, "step": 60}


def consenting(stage: str, *chaos: dict[str, Any], is_allowed: bool = True) -> Life:
    life = Life(stage, chaos=list(chaos), training={"steps": 20_000})
    life.seen = replace(life.seen, is_chaos_allowed=is_allowed, settings=OperatorSettings(allow_chaos=is_allowed))
    return life


def handed_out(life: Life) -> dict[str, list[str]]:
    """By pod: the names of the faults its membership tells it to suffer."""
    pushes = life.decision.pushes
    return {push.pod_name: [chaos.name for chaos in push.membership.chaos] for push in pushes}


def faults_of(life: Life, rank: int) -> tuple[Injection, ...]:
    """What the membership of `rank` says now, whether it is pushed or not."""
    blueprint = read_blueprint(life.seen.job, life.seen.settings)
    assert isinstance(blueprint, Blueprint)
    situation = look(life.seen, blueprint, 30.0)
    return injections_for(situation, situation.members[rank])


def test_each_rank_is_told_its_own_faults_and_nobody_is_told_the_operators() -> None:
    stall = {"name": "stall", "fault": "DataStall", "seconds": 5, "rank": 0, "durationSeconds": 3}
    life = consenting("ready", KILL, stall, {"name": "delete", "fault": "DeletePod", "step": 50, "rank": 0})
    life.decide(10.0)
    assert handed_out(life) == {ZERO: ["stall"], ONE: ["kill"]}
    first = life.decision.pushes[0].membership.chaos[0]
    assert (first.fault, first.step, first.seconds, first.duration_seconds) == (Fault.DATA_STALL, None, 5.0, 3.0)


def test_without_consent_nothing_is_handed_out_and_status_says_whose_is_missing() -> None:
    life = consenting("ready", KILL, is_allowed=False)
    life.decide(10.0)
    assert handed_out(life) == {ZERO: [], ONE: []}
    condition = find(life.status, TrainingJobCondition.CHAOS_REFUSED)
    assert condition is not None
    assert condition.message == "spec.chaos: nothing is injected: the operator runs without --allow-chaos"
    life.seen = replace(life.seen, settings=OperatorSettings(allow_chaos=True))
    assert life.decide(11.0) == [
        "ChaosRefused: spec.chaos: nothing is injected: namespace default is not labelled; "
        "kubectl label namespace default capstan.dev/chaos=allowed"
    ]
    assert life.decide(12.0) == []
    life.seen = replace(life.seen, is_chaos_allowed=True)
    assert life.decide(13.0) == ["ChaosAllowed: no fault of spec.chaos is refused"]


def test_a_job_without_chaos_has_no_condition_about_it() -> None:
    life = consenting("running", is_allowed=False)
    life.decide(30.0)
    assert find(life.status, TrainingJobCondition.CHAOS_REFUSED) is None


def test_what_was_injected_is_on_status_before_the_next_attempt_is_told_and_is_not_handed_out_again() -> None:
    life = consenting("running", KILL, KILL | {"name": "again", "step": 90})
    life.say(ONE, injected=[{"name": "kill", "fault": "Kill", "rank": 1, "step": 60, "at": 29.9}])
    life.say(ONE, phase="Exited", step=60, exit=CRASH)
    events = life.decide(30.5)
    assert events[0] == "ChaosInjected: kill: Kill on rank 1 (pod digits-worker-1) at step 60"
    life.decide(31.0)
    assert (life.status.fence, [entry.name for entry in life.status.injected]) == (2, ["kill"])
    assert handed_out(life) == {ZERO: [], ONE: ["again"]}
    # Its pod still says so, and so does a status that another operator reads.
    stored = TrainingJobStatus.parse(life.status.document())
    life.seen = replace(life.seen, job=replace(life.seen.job, status=stored))
    assert "ChaosInjected" not in " ".join(life.decide(32.0))
    assert [entry.name for entry in life.status.injected] == ["kill"]


def test_a_membership_that_is_pushed_again_asks_for_the_same_faults() -> None:
    slow = {"name": "slow", "fault": "SlowRank", "step": 45, "rank": 1}
    life = consenting("running", slow)
    assert [chaos.name for chaos in faults_of(life, 1)] == ["slow"]
    life.say(ONE, injected=[{"name": "slow", "fault": "SlowRank", "rank": 1, "step": 45, "at": 21.0}])
    life.decide(30.0)
    assert [entry.fence for entry in life.status.injected] == [1]
    assert [chaos.name for chaos in faults_of(life, 1)] == ["slow"]


def test_a_pod_is_deleted_at_its_step_once_that_is_on_record() -> None:
    life = consenting("running", {"name": "delete", "fault": "DeletePod", "step": 50, "rank": 1})
    life.say(ZERO, step=49)
    life.decide(30.0)
    assert (life.status.injected, life.decision.delete) == ([], ())
    life.say(ZERO, step=53)
    assert life.decide(31.0) == ["ChaosInjected: delete: DeletePod on rank 1 (pod digits-worker-1) at step 53"]
    assert (life.decision.delete, life.decision.requeue_after) == ((), 0.0)
    life.decide(31.1)
    assert [deletion.name for deletion in life.decision.delete] == [ONE]
    life.delete_pod(ONE, at=31.15)
    life.decide(31.2)
    assert life.status.failure.failure_class == "Lost"
    assert life.recoveries[-1].chaos == "delete"
    life.seen = replace(life.seen, pods=(life.seen.pods[0], make_pod(1, 1, created_at=33.0)))
    life.decide(34.0)
    assert life.decision.delete == ()


def test_a_pod_of_the_same_name_that_came_later_is_left_alone() -> None:
    life = consenting("running", {"name": "delete", "fault": "DeletePod", "step": 50, "rank": 1})
    life.say(ZERO, step=53)
    life.decide(31.0)
    life.change_pod(ONE, created_at=40.0)
    life.decide(41.0)
    assert life.decision.delete == ()


def test_a_pod_is_deleted_so_many_seconds_after_the_first_step_of_the_job() -> None:
    life = consenting("running", {"name": "delete", "fault": "DeletePod", "seconds": 30, "rank": 0})
    assert life.status.first_step_at == "1970-01-01T00:00:20Z"
    life.decide(40.0)
    assert (life.status.injected, life.decision.requeue_after) == ([], 10.0)
    life.decide(50.0)
    assert [entry.pod for entry in life.status.injected] == [ZERO]


def test_seconds_go_on_counting_over_attempts() -> None:
    life = consenting("running", KILL | {"step": None, "seconds": 100})
    del life.seen.job.spec["chaos"][0]["step"]
    life.say(ZERO, phase="Exited", exit=CRASH)
    life.say(ONE, phase="Exited", exit=CRASH)
    life.decide(50.0)
    life.decide(50.1)
    assert life.status.attempt_started_at == "1970-01-01T00:00:50Z"
    (injection,) = life.decision.pushes[1].membership.chaos
    assert injection.seconds == 70.0


def test_a_rank_that_was_to_lose_its_node_and_fell_silent_did_lose_it() -> None:
    """It says so and dies with its supervisor: nobody may have heard it."""
    life = consenting("running", {"name": "dark", "fault": "LoseNode", "step": 60, "rank": 1})
    life.say(step=55)
    silent = {pod.uid: 30.0 for pod in life.seen.pods if pod.name == ONE}
    life.seen = replace(life.seen, silent_since=silent)
    life.decide(46.0)
    assert [(entry.name, entry.rank, entry.at) for entry in life.status.injected] == [
        ("dark", 1, "1970-01-01T00:00:30.000Z")
    ]
    assert (life.recoveries[-1].cause, life.recoveries[-1].chaos) == ("Lost", "dark")
    assert life.recoveries[-1].seconds.detect == 16.0


def test_a_node_that_was_lost_under_an_earlier_attempt_is_not_lost_again() -> None:
    """A peer was blamed for the broken collective before anybody knew of the silence."""
    life = consenting("running", {"name": "dark", "fault": "LoseNode", "step": 60, "rank": 1})
    life.say(step=55)
    life.say(ZERO, phase="Exited", exit={**CRASH, "at": 31.0})
    life.decide(32.0)
    life.decide(32.1)
    assert life.status.fence == 2
    life.seen = replace(life.seen, silent_since={pod.uid: 31.0 for pod in life.seen.pods if pod.name == ONE})
    life.decide(47.0)
    assert [(entry.name, entry.fence, entry.rank) for entry in life.status.injected] == [("dark", 1, 1)]


def test_a_rank_that_falls_silent_long_before_it_was_to_lose_its_node_was_lost_by_itself() -> None:
    life = consenting("running", {"name": "dark", "fault": "LoseNode", "step": 10_000, "rank": 1})
    life.seen = replace(life.seen, silent_since={pod.uid: 30.0 for pod in life.seen.pods if pod.name == ONE})
    life.decide(46.0)
    assert (life.status.injected, life.recoveries[-1].chaos) == ([], None)


@given(st.integers(0, 2**31 - 1), st.text("abc-", min_size=1, max_size=8), st.integers(1, 300))
@settings(max_examples=200)
def test_the_chosen_rank_exists_and_is_always_the_same(seed: int, name: str, world: int) -> None:
    chaos = Chaos.model_construct(name=name, fault=Fault.KILL, step=1, rank=None, seed=seed)
    assert rank_for(chaos, world) == rank_for(chaos, world) < world


def test_seeds_and_names_reach_every_rank() -> None:
    ranks = {rank_for(Chaos(name=f"c{number}", fault=Fault.KILL, step=1), 4) for number in range(40)}
    assert ranks == {0, 1, 2, 3}
    assert {rank_for(Chaos(name="c", fault=Fault.KILL, step=1, seed=seed), 4) for seed in range(40)} == ranks
