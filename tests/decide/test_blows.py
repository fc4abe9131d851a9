"""One blow is charged once; and a pod that is deleted costs no step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.lives import Life
from tests.support.looks import look, make_pod, make_state

ZERO, ONE = "digits-worker-0", "digits-worker-1"
KILLED = {"phase": "Failed", "exit_code": 137, "exit_reason": "Error"}
TRAINED = {"Starting": 10.0, "Training": 20.0}
CRASH = {"fence": 1, "code": 139, "signal": "SIGSEGV", "failure": "Crash", "message": "", "at": 30.0, "step": 47}
STOPPED = {"fence": 1, "code": 80, "failure": "Stopped", "message": "", "at": 33.0, "step": 48}


def test_two_pods_killed_at_once_are_one_restart_in_whichever_order_they_are_seen() -> None:
    for first, second in ((ZERO, ONE), (ONE, ZERO)):
        life = Life()
        life.change_pod(first, **KILLED)
        assert [event.split(":")[0] for event in life.decide(30.0)] == ["Restarting"]
        life.decide(30.1)
        fresh = make_pod(int(first[-1]), 1, phase="Pending", created_at=30.2)
        life.seen = replace(life.seen, pods=(*life.seen.pods, fresh))
        life.change_pod(second, **KILLED)
        assert life.decide(31.0) == []
        assert (life.status.restarts.total, [pod["metadata"]["name"] for pod in life.decision.create]) == (
            1,
            [f"{second}-1"],
        )


def test_a_pod_that_had_gone_before_the_next_attempt_ends_it_without_a_charge() -> None:
    life = Life(workers={"max": 2, "min": 1})
    life.change_pod(ONE, **KILLED)
    life.decide(30.0)
    life.decide(30.1)
    assert (life.status.fence, life.status.world, life.status.restarts.total) == (2, 1, 1)
    life.change_pod(ZERO, **KILLED)
    assert life.decide(30.2) == []
    life.decide(30.3)
    assert (life.status.phase, life.status.restarts.total, life.status.members) == ("Restarting", 1, None)
    pods = [make_pod(0, 1, created_at=31.0), make_pod(1, 1, created_at=31.0)]
    life.seen = look(life.seen.job, pods, {pod.name: make_state(pod) for pod in pods})
    life.decide(40.0)
    (record,) = life.recoveries
    assert (record.fence, life.status.fence, record.seconds.total) == (3, 3, 10.0)
    assert record.sentence == (
        "rank 1 (pod digits-worker-1): its container was killed by SIGKILL; then another of its pods was found gone"
    )


def test_a_pod_that_came_after_the_blow_is_charged_again() -> None:
    life = Life()
    life.change_pod(ONE, **KILLED)
    life.decide(30.0)
    pods = [life.seen.pods[0], life.seen.pods[1], make_pod(1, 1, created_at=32.0, **KILLED)]
    life.seen = replace(life.seen, pods=tuple(pods))
    life.decide(33.0)
    assert life.status.restarts.total == 2


def test_a_rank_that_took_its_place_and_died_then_is_charged() -> None:
    life = Life(workers={"max": 2, "min": 1})
    life.change_pod(ONE, **KILLED)
    life.decide(30.0)
    life.decide(30.1)
    life.say(ZERO, fence=2, world=1, phase="Starting")
    life.change_pod(ZERO, **KILLED)
    life.decide(31.0)
    assert life.status.restarts.total == 2


def test_a_deleted_pod_is_waited_for_until_the_ranks_have_saved() -> None:
    life = Life()
    life.change_pod(ONE, is_deleting=True)
    assert life.decide(30.0) == []
    assert life.status.message == (
        "attempt 1 with 2 workers is training; it saves and stops: pod digits-worker-1 is taken away"
    )
    life.say(ONE, phase="Stopping")
    life.say(
        ZERO,
        phase="Exited",
        step=48,
        timeline=TRAINED,
        exit=STOPPED,
        checkpoint={"step": 48, "root": "sha256:30", "at": 32.9},
    )
    assert life.decide(33.1) == []
    life.delete_pod(ONE, at=33.2)
    assert life.decide(33.3)[0].startswith("Restarting: rank 1 (pod digits-worker-1): its pod was deleted; restart 1")
    assert (life.status.step, life.status.checkpoint.step, life.recoveries[0].step_before) == (48, 48, 48)


def test_a_deleted_pod_is_not_waited_for_when_nothing_can_be_saved() -> None:
    dead = {"fence": 1, "code": 137, "signal": "SIGKILL", "failure": "Crash", "message": "", "at": 30.0}
    for names, words in (([ZERO], {"phase": "Exited", "exit": dead}), ([], {"phase": "Compiling"})):
        life = Life()
        life.say(*names, **words)
        life.change_pod(ONE, is_deleting=True)
        assert life.decide(30.0)[0].startswith("Restarting: rank 1 (pod digits-worker-1): its pod was deleted")


def test_a_deleted_pod_that_does_not_answer_is_not_waited_for() -> None:
    life = Life()
    life.change_pod(ONE, is_deleting=True)
    life.seen = replace(life.seen, silent_since={f"{ONE}-uid": 25.0})
    assert life.decide(30.0)[0].startswith("Restarting: ")


def test_the_step_of_a_suspended_job_is_the_one_it_saved() -> None:
    life = Life()
    life.change_spec(suspend=True)
    life.decide(30.0)
    life.say(
        phase="Exited",
        step=47,
        timeline=TRAINED,
        exit=STOPPED,
        checkpoint={"step": 48, "root": "sha256:30", "at": 32.9},
    )
    life.change_pod(ZERO, is_deleting=True)
    life.decide(33.1)
    assert (life.status.step, life.status.checkpoint.step) == (48, 48)


SAVING = "pod digits-worker-0 still saves what the last attempt has done; the next one begins after that"


@pytest.mark.parametrize("answers", [True, False])
def test_a_job_that_is_resumed_while_its_pods_still_save_takes_the_store_after_that(answers: bool) -> None:
    """A long evaluation comes before the save; a newer attempt would have it refused. Who does not answer is not waited
    for."""
    life = Life()
    life.change_spec(suspend=True)
    life.say(phase="Evaluating", step=60)
    life.decide(30.0)
    old = [replace(pod, is_deleting=True) for pod in life.seen.pods]
    said = {pod.name: life.seen.supervisors[pod.uid].state for pod in old}
    new = [make_pod(worker, 1, created_at=33.0, running_since=34.0) for worker in (0, 1)]
    idle = {pod.name: make_state(pod) for pod in new}
    life.change_spec(suspend=False)
    silent_since = {} if answers else {pod.uid: 31.0 for pod in old}
    life.seen = replace(look(life.seen.job, [*old, *new], said | idle), silent_since=silent_since)
    life.decide(35.0)
    assert (life.status.fence, life.status.message == SAVING) == ((1, True) if answers else (2, False))
    life.seen = look(life.seen.job, new, idle)
    life.decide(40.0)
    assert life.status.fence == 2


def test_pods_that_are_all_new_are_waited_for_together() -> None:
    life = Life(workers={"max": 2, "min": 1})
    life.change_pod(ZERO, **KILLED)
    life.change_pod(ONE, **KILLED)
    life.decide(30.0)
    pods = [make_pod(0, 1, created_at=31.0, running_since=31.5), make_pod(1, 1, created_at=31.0, phase="Pending")]
    life.seen = look(life.seen.job, pods, {pods[0].name: make_state(pods[0])})
    life.decide(33.0)
    assert (life.status.members, life.status.fence) == (None, 1)
    pods[1] = replace(pods[1], phase="Running", running_since=34.0)
    life.seen = look(life.seen.job, pods, {pod.name: make_state(pod) for pod in pods})
    life.decide(34.5)
    assert (life.status.fence, life.status.world) == (2, 2)


def test_a_supervisor_that_takes_no_place_is_charged_every_time_and_replaced() -> None:
    life = Life()
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    assert (life.status.fence, life.status.restarts.total) == (2, 1)
    life.say(ZERO, fence=2, phase="Starting", exit=None)
    life.say(ONE, refused="world: 3 is more than this pod can take")
    told = life.decide(152.0)
    assert told[0] == (
        "Restarting: rank 1 (pod digits-worker-1): its supervisor did not take its place within 120 s: world: 3 is "
        "more than this pod can take; restart 1 of 20 for Lost"
    )
    life.decide(152.1)
    assert ([deletion.name for deletion in life.decision.delete], life.status.restarts.total) == ([ONE], 2)


def test_a_rank_that_never_makes_a_step_is_given_up_when_its_supervisor_does_nothing() -> None:
    life = Life("running", recovery={"deadlines": {"form": 100, "firstStep": 200}})
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    life.say(ZERO, fence=2, phase="Starting", exit=None)
    life.say(ONE, fence=2, phase="Starting", exit=None)
    life.decide(32.0)
    assert life.decide(391.0)[0].startswith(
        "Restarting: rank 0 (pod digits-worker-0): it made no step within 360 s, and its supervisor did not end it"
    )


def test_a_start_in_which_data_still_comes_nearer_is_not_given_up() -> None:
    life = Life("running", recovery={"deadlines": {"form": 100, "firstStep": 200}})
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    life.say(ZERO, fence=2, phase="Starting", exit=None)
    life.say(ONE, fence=2, phase="Starting", exit=None, dataAt=300.0, hasData=False)
    life.decide(391.0)
    assert life.decide(659.0) == []
    assert life.decide(661.0)[0].startswith("Restarting: rank 0 (pod digits-worker-0): it made no step within 360 s")


def test_a_start_in_which_smaller_micro_steps_are_compiled_is_not_given_up() -> None:
    life = Life("running", recovery={"deadlines": {"form": 100, "firstStep": 200}})
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    life.say(ZERO, fence=2, phase="Compiling", exit=None, microSplits=2, splitAt=300.0)
    life.say(ONE, fence=2, phase="Compiling", exit=None)
    life.decide(391.0)
    assert life.status.micro_splits == 2
    assert life.decide(659.0) == []
    assert life.decide(661.0)[0].startswith("Restarting: rank 0 (pod digits-worker-0): it made no step within 360 s")


def test_what_is_measured_before_the_first_step_is_no_time_of_the_start() -> None:
    life = Life("running", recovery={"deadlines": {"form": 100, "firstStep": 200}})
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    times = {"Starting": 32.0, "Restoring": 33.0, "Compiling": 34.0, "Evaluating": 35.0, "Training": None}
    life.say(fence=2, phase="Evaluating", exit=None, timeline=times, seconds={"Evaluating": 1000.0})
    life.decide(1035.0)
    assert (life.decision.requeue_after or 0.0) > 300, "there is nothing to look at every second"
    life.say(phase="Compiling")
    assert life.decide(1036.0) == []
    assert life.decide(1390.0) == []
    assert life.decide(1392.0)[0].startswith("Restarting: rank 0 (pod digits-worker-0): it made no step within 360 s")


def test_a_hang_amid_smaller_micro_steps_does_not_forget_them() -> None:
    life = Life()
    life.say(ZERO, phase="Compiling", microSplits=2)
    hang = CRASH | {"code": 79, "failure": "Hang"}
    life.say(ONE, phase="Exited", microSplits=2, exit=hang)
    life.decide(34.0)
    assert {push.membership.micro_splits for push in life.decision.pushes} == {2}


def test_of_ranks_that_stopped_together_the_one_that_was_asked_is_replaced() -> None:
    life = Life()
    life.say(ONE, phase="Stopping")
    assert life.decide(30.0) == []
    life.say(ZERO, phase="Exited", step=48, timeline=TRAINED, exit=STOPPED)
    assert life.decide(33.0) == []
    life.say(ONE, phase="Exited", step=48, timeline=TRAINED, exit=STOPPED | {"asked": True, "at": 33.2})
    assert life.decide(33.5)[0].startswith("Restarting: rank 1 (pod digits-worker-1): it was stopped from outside")
    life.decide(33.6)
    assert [deletion.name for deletion in life.decision.delete] == [ONE]


def test_what_is_only_in_memory_is_not_called_committed() -> None:
    life = Life()
    life.seen = replace(
        life.seen, job=replace(life.seen.job, status=life.status.model_copy(update={"checkpoint": None}))
    )
    life.say(checkpoint=None)
    restored = {"source": "Memory", "bytes": 10, "seconds": 1.0, "verifySeconds": 0.25}
    resumed = {"step": 44, "root": "sha256:44", "at": 29.0, "verifiedAt": 29.5}
    life.say(phase="Training", step=45, resumedFrom=resumed, restored=restored)
    life.decide(30.0)
    assert (life.status.checkpoint, life.status.resumed_from.step) == (None, 44)
    life.say(restored=restored | {"source": "Store"})
    life.decide(40.0)
    assert life.status.checkpoint.step == 44


def test_the_next_attempt_is_told_the_root_of_the_newest_commit() -> None:
    life = Life()
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    life.decide(31.1)
    told = {(push.membership.floor_step, push.membership.floor_root) for push in life.decision.pushes}
    assert told == {(40, life.status.checkpoint.root)}


def test_a_blow_to_an_attempt_that_had_trained_is_charged_though_all_its_words_are_lost() -> None:
    life = Life()
    life.say(ZERO, phase="Exited", step=47, exit=CRASH)
    life.decide(31.0)
    back = {"Starting": 31.0, "Restoring": 32.0, "Compiling": 33.0, "Training": 34.0}
    life.say(fence=2, phase="Training", step=48, timeline=back, exit=None)
    life.decide(35.0)
    assert life.recoveries[-1].recovered_at is not None
    life.change_pod(ZERO, **KILLED)
    life.change_pod(ONE, **KILLED)
    life.seen = replace(life.seen, supervisors={})
    life.decide(600.0)
    assert (life.status.restarts.total, len(life.recoveries)) == (2, 2)
    assert "its container was killed by SIGKILL" in life.recoveries[-1].sentence
