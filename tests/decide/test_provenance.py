"""How one attempt came to follow another: told once it is known, in parts that add up, and never told differently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capstan_operator.api.recovery_status import RecoveryStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.provenance import RECOVERIES_KEPT
from capstan_operator.decide.times import rfc3339_millis, seconds_since_1970
from tests.support.lives import Life
from tests.support.looks import look, make_pod, make_state, merged, root

ZERO, ONE = "digits-worker-0", "digits-worker-1"
CRASH = {"fence": 1, "code": 137, "signal": "SIGKILL", "failure": "Crash", "message": "", "at": 30.0, "step": 47}
BACK = {
    "fence": 2,
    "world": 2,
    "phase": "Training",
    "step": 41,
    "steps": 200,
    "metrics": {"loss": 0.5, "step_seconds": 0.2},
    "resumedFrom": {"step": 40, "root": root(40), "at": 12.5, "verifiedAt": 32.5},
    "restored": {"source": "Memory", "bytes": 10, "seconds": 1.0, "verifySeconds": 0.25},
    "timeline": {"Starting": 30.75, "Restoring": 31.5, "Compiling": 32.5, "Training": 34.0},
    "exit": None,
}


def crash(life: Life) -> None:
    life.say(ZERO, step=47)
    life.say(ONE, phase="Exited", step=47, exit=CRASH)


def told(record: RecoveryStatus) -> dict[str, Any]:
    return record.document()


def test_a_crash_that_was_recovered_from_memory_is_told_whole() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    life.say(**BACK)
    life.decide(34.25)
    assert [told(record) for record in life.recoveries] == [
        {
            "fence": 2,
            "at": "1970-01-01T00:00:30.000Z",
            "recoveredAt": "1970-01-01T00:00:34.000Z",
            "cause": "Crash",
            "sentence": "rank 1 (pod digits-worker-1) was killed by SIGKILL",
            "rank": 1,
            "pod": "digits-worker-1",
            "node": "node-1",
            "action": "RestartInPlace",
            "worldBefore": 2,
            "worldAfter": 2,
            "stepBefore": 47,
            "step": 40,
            "root": root(40),
            "verified": True,
            "source": "Memory",
            "stepsLost": 7,
            "stepSeconds": 0.1,
            "secondsLost": 0.7,
            "seconds": {
                "detect": 0.5,
                "decide": 0.0,
                "drain": 0.25,
                "form": 0.75,
                "restore": 0.75,
                "verify": 0.25,
                "compile": 1.3,
                "firstStep": 0.2,
                "total": 4.0,
            },
        }
    ]
    before = life.status
    life.say(step=60)
    life.decide(50.0)
    assert life.recoveries == before.recoveries


def test_a_record_says_what_is_known_while_it_is_under_way() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    assert told(life.recoveries[0])["seconds"] == {"detect": 0.5, "decide": 0.0, "total": 0.5}
    assert (life.recoveries[0].fence, life.status.fence, life.recoveries[0].action) == (2, 2, "RestartInPlace")
    life.say(**merged(BACK, {"phase": "Restoring", "timeline": {"Compiling": None, "Training": None}}))
    life.decide(32.0)
    assert (life.recoveries[0].recovered_at, life.recoveries[0].seconds.form) == (None, None)


def test_an_evaluation_that_the_attempt_before_owed_is_no_step() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    times = {"Starting": 30.75, "Restoring": 31.5, "Compiling": 32.5, "Evaluating": 33.0}
    life.say(**merged(BACK, {"phase": "Evaluating", "step": 40, "timeline": times | {"Training": None}}))
    life.decide(36.0)
    assert (life.recoveries[0].recovered_at, life.status.step) == (None, 40)
    running = next(each for each in life.status.conditions if each.type == "Running")
    assert (running.status, running.message.partition(",")[0]) == ("False", "attempt 2 with 2 workers is evaluating")
    life.say(phase="Evaluating", step=60, timeline=times | {"Training": 40.0}, seconds={"Evaluating": 6.5})
    life.decide(50.0)
    assert life.recoveries[0].recovered_at == "1970-01-01T00:00:40.000Z"
    assert (life.recoveries[0].step, life.status.step) == (40, 60)
    seconds = life.recoveries[0].seconds
    assert (seconds.evaluate, seconds.compile, seconds.first_step) == (6.5, 0.8, 0.2)
    assert life.status.message == "attempt 2 with 2 workers is evaluating"


@pytest.mark.parametrize(("is_in_store", "newest"), [(True, 45), (False, 40)])
def test_what_was_restored_from_memory_is_the_newest_checkpoint_where_the_store_has_it_too(
    is_in_store: bool, newest: int
) -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    resumed = {"step": 45, "root": root(45), "at": 12.5, "verifiedAt": 32.5}
    life.say(**merged(BACK, {"resumedFrom": resumed, "restored": {"isInStore": is_in_store}}))
    life.decide(36.0)
    checkpoint = life.status.checkpoint
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.verified_at) == (newest, None), "nobody has read it in the store"


def test_pods_whose_clocks_are_wrong_make_no_part_negative_and_none_too_long() -> None:
    life = Life()
    life.say(ONE, phase="Exited", exit=CRASH | {"at": -5000.0})
    life.decide(30.5)
    wrong = {"Starting": 9e6, "Restoring": 1.0, "Compiling": 32.5, "Training": 9e6}
    life.say(**merged(BACK, {"timeline": wrong}))
    life.decide(34.25)
    record = life.recoveries[0]
    assert record.at == "1970-01-01T00:00:10.000Z"  # no attempt ends before it began
    parts = record.seconds.model_dump(exclude={"total"}, exclude_none=True)
    assert min(parts.values()) >= 0.0
    assert round(sum(parts.values()), 3) == record.seconds.total
    assert seconds_since_1970(record.at) + record.seconds.total <= 34.25


def test_a_pause_between_restarts_is_time_to_decide() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    for fence in (2, 3):  # each ends without a newer checkpoint, and the second time there is a pause of one second
        life.say(phase="Starting", fence=fence, exit=None)
        life.decide(10.0 * fence + 20.0)
        lost_peer = {"code": 75, "signal": None, "failure": "Retryable"}
        life.say(phase="Exited", exit=CRASH | lost_peer | {"fence": fence, "at": 10.0 * fence + 20.5})
        life.decide(10.0 * fence + 21.0)
    assert life.status.reason == "BackingOff"
    assert (life.recoveries[-1].fence, life.recoveries[-1].seconds.decide) == (4, None)
    life.decide(52.0)
    assert (life.recoveries[-1].fence, life.status.fence, life.recoveries[-1].seconds.decide) == (4, 4, 1.0)


def test_an_attempt_that_made_no_step_keeps_how_far_it_came() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    timeline = {"Starting": 30.75, "Restoring": 31.5, "Exited": 32.0}
    life.say(**merged(BACK, {"phase": "Exited", "timeline": None, "exit": CRASH | {"fence": 2, "at": 32.0}}))
    life.say(timeline=timeline)
    life.decide(33.0)
    first, second = life.recoveries
    assert (first.recovered_at, first.seconds.restore, first.seconds.total) == (None, 0.5, 2.0)
    assert (second.fence, second.at, second.cause) == (3, "1970-01-01T00:00:32.000Z", "Crash")


def test_what_breaks_while_the_next_attempt_is_prepared_is_added_to_its_record() -> None:
    life = Life()
    life.delete_pod(ONE)
    life.decide(30.0)
    life.decide(30.1)
    assert life.recoveries[0].cause == "Lost"
    life.seen = replace(life.seen, pods=(*life.seen.pods, make_pod(1, 1, created_at=30.5, phase="Failed", exit_code=1)))
    life.decide(31.0)
    assert len(life.recoveries) == 1
    assert life.recoveries[0].sentence.startswith("rank 1 (pod digits-worker-1): its pod was deleted; then ")
    assert life.recoveries[0].cause == "Lost"


def test_a_resumed_job_counts_from_the_resume_and_lost_nothing() -> None:
    life = Life("suspended")
    life.change_spec(suspend=False)
    life.decide(500.0)
    assert (life.recoveries[0].cause, life.recoveries[0].at) == ("Resumed", "1970-01-01T00:08:20.000Z")
    pods = [make_pod(0), make_pod(1)]
    job = life.seen.job
    life.seen = look(job, pods, {pod.name: make_state(pod) for pod in pods})
    life.decide(510.0)
    life.say(**merged(BACK, {"timeline": {"Starting": 511.0, "Restoring": 512.0, "Compiling": 513.0, "Training": 514}}))
    life.decide(515.0)
    record = life.recoveries[0]
    assert (record.action, record.step_before, record.step, record.steps_lost) == ("Resume", 40, 40, 0)
    assert (record.seconds.schedule, record.seconds.total) == (10.0, 14.0)


def test_a_rank_that_chaos_killed_is_told_with_the_name_of_the_injection() -> None:
    chaos = [{"name": "kill-one", "fault": "Kill", "step": 47, "rank": 1}, {"name": "nan", "fault": "NaN", "step": 50}]
    life = Life(chaos=chaos)
    life.seen = replace(life.seen, is_chaos_allowed=True)
    life.say(ONE, injected=[{"name": "kill-one", "fault": "Kill", "rank": 1, "step": 47, "at": 29.75}])
    crash(life)
    life.decide(30.5)
    assert [entry.document() for entry in life.status.injected] == [
        {
            "name": "kill-one",
            "fault": "Kill",
            "fence": 1,
            "rank": 1,
            "pod": "digits-worker-1",
            "step": 47,
            "at": "1970-01-01T00:00:29.750Z",
        }
    ]
    # Time is counted from the fault itself, which nobody but an injection knows.
    assert (life.recoveries[0].chaos, life.recoveries[0].seconds.detect) == ("kill-one", 0.75)
    life.say(**BACK)
    life.decide(34.25)
    life.say(ONE, phase="Exited", step=60, exit=CRASH | {"fence": 2, "at": 40.0, "step": 60})
    life.decide(40.5)
    assert (life.recoveries[1].cause, life.recoveries[1].chaos) == ("Crash", None)


def test_a_nan_is_the_cause_of_another_ranks_numerical_failure() -> None:
    life = Life(chaos=[{"name": "nan", "fault": "NaN", "step": 47, "rank": 1}])
    life.say(ONE, injected=[{"name": "nan", "fault": "NaN", "rank": 1, "step": 47, "at": 29.75}])
    nan = {"code": 77, "signal": None, "failure": "Numerical", "message": "loss is nan", "badBatch": 47}
    life.say(ZERO, phase="Exited", step=47, exit=CRASH | nan)
    life.decide(33.5)
    assert [(record.cause, record.chaos) for record in life.recoveries] == [("Numerical", "nan")]


def elastic(**words: Any) -> Life:
    """Two workers of which one may go on alone, at step 47."""
    life = Life(workers={"min": 1}, **words)
    life.say(step=47)
    life.decide(25.0)
    return life


def test_a_world_that_shrinks_and_grows_tells_both_and_loses_nothing_when_it_grows() -> None:
    life = elastic()
    life.delete_pod(ONE)
    events = life.decide(30.0)
    assert "Shrunk: 1 worker instead of 2: rank 1 (pod digits-worker-1): its pod was deleted" in events
    record = life.recoveries[0]
    assert (record.action, record.world_before, record.world_after, record.step_before) == ("Shrink", 2, 1, 47)
    life.say(ZERO, **merged(BACK, {"world": 1, "timeline": {"Starting": 30.5}}))
    life.decide(35.0)
    fresh = make_pod(1, 1, running_since=31.0)
    states = {pod.name: life.seen.supervisors[pod.uid].state for pod in life.seen.pods if pod.name == ZERO}
    life.seen = look(life.seen.job, [life.seen.pods[0], fresh], states | {fresh.name: make_state(fresh)})
    life.decide(40.0)
    assert life.status.next_world == 2
    stopped = {"fence": 2, "code": 80, "failure": "Stopped", "message": "", "at": 42.0, "step": 60}
    life.say(ZERO, phase="Exited", step=60, exit=stopped, leaveAtCheckpoint=True)
    life.say(ZERO, checkpoint={"step": 60, "root": root(60), "at": 41.9})
    events = life.decide(42.5)
    assert "Grown: 2 workers instead of 1" in events
    life.say(**merged(BACK, {"fence": 3, "step": 61, "resumedFrom": {"step": 60, "root": root(60)}, "timeline": None}))
    life.say(ZERO, timeline={"Starting": 43.0, "Restoring": 44.0, "Compiling": 45.0, "Training": 46.0}, exit=None)
    life.decide(47.0)
    grown = life.recoveries[1]
    assert (grown.cause, grown.action, grown.at) == ("Grow", "Grow", "1970-01-01T00:00:42.000Z")
    assert (grown.step_before, grown.step, grown.steps_lost, grown.seconds_lost) == (60, 60, 0, 0.0)
    assert (grown.world_before, grown.world_after, life.status.restarts.total) == (1, 2, 1)


def test_only_the_newest_records_are_kept() -> None:
    life = Life()
    old = [
        RecoveryStatus(fence=-number, at=rfc3339_millis(0.0), recovered_at=rfc3339_millis(1.0), cause="x", sentence="")
        for number in range(RECOVERIES_KEPT, 0, -1)
    ]
    status = life.status.model_copy(update={"recoveries": old})
    life.seen = replace(life.seen, job=replace(life.seen.job, status=status))
    crash(life)
    life.decide(30.5)
    assert len(life.recoveries) == RECOVERIES_KEPT
    assert life.recoveries[-1].fence == 2


def test_a_restarted_operator_completes_what_another_began() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    stored = TrainingJobStatus.parse(life.status.document())
    assert stored == life.status
    life.say(**merged(BACK, {"step": 90}))
    life.decide(300.0)  # long after the first step
    assert (life.recoveries[0].recovered_at, life.recoveries[0].seconds.total) == ("1970-01-01T00:00:34.000Z", 4.0)


def test_the_failure_that_ends_the_job_is_the_last_of_its_story() -> None:
    life = Life(recovery={"budgets": {"crash": 0}})
    crash(life)
    life.decide(33.5)
    assert life.status.phase == "Failed"
    assert [told(record) for record in life.recoveries] == [
        {
            "fence": 2,
            "at": "1970-01-01T00:00:30.000Z",
            "cause": "Crash",
            "sentence": "rank 1 (pod digits-worker-1) was killed by SIGKILL",
            "rank": 1,
            "pod": "digits-worker-1",
            "node": "node-1",
            "action": "Halt",
            "worldBefore": 2,
            "stepBefore": 47,
            "stepSeconds": 0.1,
            "seconds": {"detect": 3.5, "decide": 0.0, "total": 3.5},
        }
    ]


def test_when_more_was_saved_than_was_told_nobody_knows_how_much_was_lost() -> None:
    life = Life()
    life.say(ONE, phase="Exited", step=47, exit=CRASH)
    life.decide(30.5)
    life.say(**merged(BACK, {"step": 61, "resumedFrom": {"step": 60, "root": root(60)}}))
    life.decide(34.25)
    record = life.recoveries[0]
    assert (record.step_before, record.step, record.steps_lost, record.seconds_lost) == (47, 60, None, None)


def test_what_any_rank_tells_of_its_last_step_counts() -> None:
    life = Life()
    life.say(ZERO, step=52)
    life.say(ONE, phase="Exited", step=47, exit=CRASH | {"step": 53})
    life.decide(30.5)
    assert life.recoveries[0].step_before == 53


def test_steps_of_an_attempt_too_short_to_be_timed_are_priced_as_those_before() -> None:
    life = Life()
    crash(life)
    life.decide(30.5)
    life.say(**merged(BACK, {"step": 48, "metrics": {"step_seconds": None}}))
    life.decide(34.25)
    life.say(ONE, phase="Exited", step=50, exit=CRASH | {"fence": 2, "at": 40.0, "step": 50})
    life.decide(40.5)
    assert [record.step_seconds for record in life.recoveries] == [0.1, 0.1]


def test_a_container_that_left_no_words_ended_when_its_node_says() -> None:
    life = Life()
    life.change_pod(ONE, phase="Failed", exit_code=137, exit_reason="Error", finished_at=28.0)
    life.decide(30.5)
    assert (life.recoveries[0].at, life.recoveries[0].seconds.detect) == ("1970-01-01T00:00:28.000Z", 2.5)
