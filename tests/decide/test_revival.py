"""A job that failed goes on once its user takes back what ended it; until then it stays as it ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.lives import Life
from tests.support.looks import look, make_pod, make_state

ONE = "digits-worker-1"
CRASH = {"fence": 1, "code": 139, "signal": "SIGSEGV", "failure": "Crash", "message": "", "at": 30.0, "step": 47}
BAD_CONFIG = {"fence": 1, "code": 78, "failure": "Config", "message": "no such file", "at": 30.0, "step": 47}


def failed(exit_: dict[str, object], **spec: object) -> Life:
    """A job that has failed for good, with no pod left."""
    life = Life(**spec)
    life.say(ONE, phase="Exited", step=47, exit=exit_)
    life.decide(33.5)
    life.decide(33.6)
    assert (life.status.phase, [each.name for each in life.decision.delete]) == ("Failed", ["digits-worker-0"])
    life.seen = replace(life.seen, pods=(), supervisors={})
    return life


def test_a_raised_budget_lets_the_job_go_on_and_is_charged() -> None:
    life = failed(CRASH, recovery={"budgets": {"crash": 0}})
    assert life.status.message == (
        "rank 1 (pod digits-worker-1) was killed by SIGSEGV; 0 of 0 restarts for Crash are used; raise "
        "spec.recovery.budgets.crash to go on; the newest checkpoint is 40@00000028"
    )
    life.change_spec(recovery={"budgets": {"crash": 1}})
    assert life.decide(1000.0) == [
        "Restarting: rank 1 (pod digits-worker-1) was killed by SIGSEGV; restart 1 of 1 for Crash",
        "Revived: spec.recovery.budgets was raised",
    ]
    # It is on record before anything follows from it.
    assert (life.decision.create, life.decision.apply, life.decision.requeue_after) == ((), (), 0.0)
    life.decide(1000.1)
    assert [pod["metadata"]["name"] for pod in life.decision.create] == ["digits-worker-0", "digits-worker-1-1"]
    assert len(life.decision.apply) == 1
    assert (life.status.phase, life.status.finished_at) == ("Restarting", None)
    failed_now = next(condition for condition in life.status.conditions if condition.type == "Failed")
    assert (failed_now.status, failed_now.message) == ("False", "spec.recovery.budgets was raised")
    assert life.status.restarts.by_cause == {"Crash": 1}


def test_the_pods_that_were_kept_for_their_logs_are_not_charged_when_the_job_goes_on() -> None:
    life = Life(recovery={"budgets": {"crash": 0}})
    life.say(ONE, phase="Exited", step=47, exit=CRASH)
    life.say("digits-worker-0", phase="Exited", step=47, exit=CRASH | {"code": 134, "signal": "SIGABRT"})
    life.decide(33.5)
    life.decide(33.6)
    assert ([push.pod_name for push in life.decision.pushes], life.decision.delete) == (["digits-worker-0", ONE], ())
    for name in ("digits-worker-0", ONE):
        said = next(life.seen.supervisors[pod.uid].state for pod in life.seen.pods if pod.name == name)
        life.change_pod(name, phase="Failed", exit_code=139, exit_reason="Error", final=said)
    before = life.status
    life.decide(1000.0)
    assert (life.status, life.decision.delete, life.decision.pushes) == (before, (), ())
    life.change_spec(recovery={"budgets": {"crash": 1}})
    life.decide(1001.0)
    life.decide(1001.1)
    assert [pod["metadata"]["name"] for pod in life.decision.create] == ["digits-worker-0-1"]
    life.seen = replace(life.seen, pods=(*life.seen.pods, make_pod(0, 1, created_at=1001.2)))
    life.decide(1001.3)
    assert [pod["metadata"]["name"] for pod in life.decision.create] == ["digits-worker-1-1"]
    assert (life.status.phase, life.status.restarts.by_cause) == ("Restarting", {"Crash": 1})


def test_the_next_attempt_of_a_revived_job_ends_the_story_of_its_failure() -> None:
    life = failed(CRASH, recovery={"budgets": {"crash": 0}})
    life.change_spec(recovery={"budgets": {"crash": 1}})
    life.decide(1000.0)
    pods = [make_pod(0, 1, created_at=1001.0), make_pod(1, 1, created_at=1001.0)]
    life.seen = look(life.seen.job, pods, {pod.name: make_state(pod) for pod in pods})
    life.decide(1005.0)
    (record,) = life.recoveries
    assert (record.fence, life.status.fence, record.at) == (2, 2, "1970-01-01T00:16:40.000Z")
    assert record.sentence.endswith("was killed by SIGSEGV; then spec.recovery.budgets was raised")
    assert life.status.floor_step == 40
    assert life.status.goodput is not None
    assert sum(life.status.goodput.seconds.model_dump().values()) == pytest.approx(1005.0, abs=0.01)
    assert life.status.goodput.seconds.idle >= 960.0


def test_a_budget_that_is_raised_for_another_cause_changes_nothing() -> None:
    life = failed(CRASH, recovery={"budgets": {"crash": 0}})
    before = life.status
    life.change_spec(recovery={"budgets": {"lost": 50}})
    assert life.decide(1000.0) == []
    assert life.status == before


def test_more_attempts_without_progress_may_be_granted() -> None:
    life = Life(recovery={"noProgressAttempts": 1})
    life.say(ONE, phase="Exited", step=47, exit=CRASH)
    life.say(checkpoint=None)
    life.seen = replace(life.seen, job=replace(life.seen.job, status=life.status.model_copy(update={"base_step": 40})))
    life.decide(33.5)
    assert (life.status.reason, life.status.attempts_without_progress) == ("NoProgress", 1)
    life.change_spec(recovery={"noProgressAttempts": 2})
    life.decide(40.0)
    assert (life.status.phase, life.status.restarts.by_cause) == ("Restarting", {"Crash": 1})


def test_a_longer_deadline_lets_the_job_go_on() -> None:
    life = Life(activeDeadlineSeconds=100)
    life.decide(500.0)
    assert life.status.reason == "DeadlineExceeded"
    life.change_spec(activeDeadlineSeconds=1000)
    life.decide(510.0)
    assert (life.status.phase, life.status.fence, life.status.restarts.total) == ("Starting", 2, 0)
    assert life.status.active_since == "1970-01-01T00:08:30Z"


def test_what_only_a_change_from_outside_can_help_goes_on_after_a_suspension() -> None:
    life = failed(BAD_CONFIG)
    assert "set spec.suspend to true and to false again" in (life.status.message or "")
    life.change_spec(suspend=True)
    life.decide(100.0)
    assert (life.status.phase, life.status.finished_at, life.status.failure.failure_class) == (
        "Suspended",
        None,
        "Config",
    )
    life.change_spec(suspend=False)
    assert "Resumed: spec.suspend is false again" in life.decide(200.0)
    assert (life.status.phase, life.status.restarts.total) == ("Restarting", 0)


def test_a_job_that_succeeded_never_starts_again() -> None:
    life = Life()
    life.say(phase="Succeeded", step=200)
    life.decide(30.0)
    before = life.status
    assert before.phase == "Succeeded"
    life.change_spec(suspend=True)
    life.decide(31.0)
    assert life.status == before


def test_a_job_whose_remains_were_cleared_away_goes_on_with_the_spec_as_it_is_now() -> None:
    life = failed(CRASH, recovery={"budgets": {"crash": 0}}, ttlSecondsAfterFinished=60)
    life.decide(100.0)
    assert life.status.cleaned_up_at is not None
    life.change_spec(recovery={"budgets": {"crash": 1}, "deadlines": {"hang": 300}})
    life.decide(1000.0)
    life.decide(1000.1)
    assert (len(life.decision.apply), life.status.cleaned_up_at) == (1, None)
    accepted = next(condition for condition in life.status.conditions if condition.type == "Accepted")
    assert accepted.reason == "Valid"


def test_a_raised_numerical_budget_leaves_out_the_batch_that_did_the_harm() -> None:
    nan = {"fence": 1, "code": 76, "failure": "Numerical", "message": "nan", "at": 30.0, "step": 47, "badBatch": 46}
    life = failed(nan, recovery={"budgets": {"numerical": 0}, "numerical": {"nonFinite": "rewind"}})
    assert life.status.reason == "NumericalBudgetExhausted"
    life.change_spec(recovery={"budgets": {"numerical": 1}})
    life.decide(1000.0)
    assert [(skip.first, skip.count) for skip in life.status.skips] == [(46, 1)]


def test_a_raised_deadline_is_told_as_what_it_is() -> None:
    life = Life(activeDeadlineSeconds=100)
    life.decide(500.0)
    life.seen = replace(life.seen, pods=(), supervisors={})
    life.change_spec(activeDeadlineSeconds=1000)
    assert life.decide(510.0) == ["Revived: spec.activeDeadlineSeconds was raised"]
    (record,) = life.recoveries
    assert (record.cause, record.sentence) == ("Resumed", "spec.activeDeadlineSeconds was raised")
    life.decide(510.1)
    assert len(life.decision.create) == 2


def test_a_deadline_raised_to_less_than_was_used_changes_nothing() -> None:
    life = Life(activeDeadlineSeconds=100)
    life.decide(500.0)
    used = life.status.active_seconds
    assert used is not None
    life.change_spec(activeDeadlineSeconds=int(used))
    before = life.status
    life.decide(510.0)
    assert life.status == before
