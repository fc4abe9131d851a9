"""What is told besides: slow ranks, notes, recoveries, and a claim that is not there."""

from __future__ import annotations

from dataclasses import replace

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.decide.conditions import find
from capstan_operator.decide.notes import NOTES_KEPT
from capstan_runtime.contract.data_quality import DataReport
from tests.support.lives import Life
from tests.support.looks import make_pod, root

ZERO, ONE = "digits-worker-0", "digits-worker-1"
FOUR = {"workers": {"max": 4}}
CRASH = {"fence": 1, "code": 137, "signal": "SIGKILL", "failure": "Crash", "message": "", "at": 30.0, "step": 47}


def busy(life: Life, *ranks: tuple[float, ...]) -> None:
    by_uid = {pod.uid: seconds for pod, seconds in zip(life.seen.pods, ranks, strict=True)}
    supervisors = {
        uid: replace(supervisor, busy_seconds=by_uid[uid]) for uid, supervisor in life.seen.supervisors.items()
    }
    life.seen = replace(life.seen, supervisors=supervisors)


def straggling(life: Life) -> tuple[str, str] | None:
    condition = find(life.status, TrainingJobCondition.STRAGGLING)
    return (condition.status, condition.message) if condition else None


SLOW = (
    "True",
    "rank 2 (pod digits-worker-2 on node node-2) is busy for 1.8 times as long per step as the median of the others, "
    "who wait for it",
)


def test_a_rank_that_is_slow_at_six_looks_is_named_once_and_not_restarted() -> None:
    life = Life(**FOUR)
    even = (0.1,) * 6
    busy(life, even, even, (0.19,) * 4 + (0.18,), even)
    assert (life.decide(30.0), straggling(life)) == ([], None)
    busy(life, even, even, (0.19,) * 4 + (0.18, 0.2), even)
    assert life.decide(31.0) == [f"Straggling: {SLOW[1]}"]
    assert straggling(life) == SLOW
    busy(life, even, even, (0.25,) + (0.3,) * 5, even)
    assert (life.decide(32.0), straggling(life), life.status.restarts.total) == ([], SLOW, 0)


def test_a_slow_rank_is_forgotten_when_it_keeps_up_again_and_not_before() -> None:
    life = Life(**FOUR)
    busy(life, *[(0.1,) * 6] * 2, (0.18,) * 6, (0.1,) * 6)
    life.decide(30.0)
    busy(life, *[(0.1,) * 6] * 2, (0.14,) * 6, (0.1,) * 6)
    assert (life.decide(31.0), straggling(life)) == ([], SLOW)
    busy(life, *[(0.1,) * 6] * 2, (0.12,) * 6, (0.1,) * 6)
    assert life.decide(32.0) == ["RanksAreEven: no rank is much slower than the others"]


def test_noise_and_the_half_of_two_are_no_stragglers() -> None:
    life = Life(**FOUR)
    busy(life, *[(0.01,) * 6] * 3, (0.029,) * 6)
    assert (life.decide(30.0), straggling(life)) == ([], None)
    life = Life(**FOUR)
    busy(life, *[(0.1,) * 6] * 2, *[(0.2,) * 6] * 2)
    life.decide(30.0)  # the median of the others is 0.1: of four, two may be slow
    assert straggling(life) is not None


def test_what_all_ranks_note_is_told_once() -> None:
    life = Life()
    life.say(notes=["step 43: update dropped: the gradient is not finite"])
    assert life.decide(30.0) == ["Noted: rank 0: step 43: update dropped: the gradient is not finite"]
    assert life.decide(31.0) == []
    life.say(ONE, notes=["step 43: update dropped: the gradient is not finite", "no room in memory"])
    assert life.decide(32.0) == ["Noted: rank 1: no room in memory"]


def test_what_was_found_in_the_data_is_on_status_and_stays() -> None:
    life = Life()
    found = DataReport(samples=200, scanned=200, bad=1, duplicates=0, warnings=["1 of 200 samples is bad"])
    life.say(data=found.document())
    life.decide(30.0)
    assert life.status.data == found
    life.say(data=None)
    life.decide(31.0)
    assert life.status.data == found


def test_notes_are_bounded_and_none_is_told_twice() -> None:
    life = Life(**FOUR)
    told = []
    for look in range(60):
        for pod in life.seen.pods:
            life.say(pod.name, notes=[f"{pod.name} {number}" for number in range(look, look + 5)])
        told += [event for event in life.decide(30.0 + look) if event.startswith("Noted")]
        told += [event for event in life.decide(30.5 + look) if event.startswith("Noted")]
    assert len(life.status.notes) == NOTES_KEPT
    assert len(told) == len(set(told))
    assert {f"Noted: rank 0: {ZERO} {number}" for number in range(64)} <= set(told)


def test_a_recovery_from_memory_is_one_event() -> None:
    life = Life()
    life.say(ZERO, step=47)
    life.say(ONE, phase="Exited", step=47, exit=CRASH)
    life.decide(30.5)
    resumed = {"resumedFrom": {"step": 40, "root": root(40), "at": 32.5}}
    restored = {"source": "Memory", "bytes": 10, "seconds": 1.0, "verifySeconds": 0.25}
    timeline = {"Starting": 30.75, "Restoring": 31.5, "Compiling": 32.5, "Training": 34.0}
    life.say(fence=2, phase="Training", step=41, **resumed, restored=restored, timeline=timeline, exit=None)
    message = (
        "attempt 2 trains 4.0 s after the end before it, since step 40 (root 00000028) from memory; 7 steps have "
        "to be done again"
    )
    assert life.decide(34.2) == [f"Recovered: {message}"]
    assert life.decide(34.3) == []


def test_a_claim_that_is_not_there_is_told_by_its_field() -> None:
    life = Life("created")
    why = 'Unschedulable: 0/1 nodes are available: persistentvolumeclaim "checkpoints" not found.'
    pods = tuple(make_pod(worker, phase="Pending", ip=None, waiting=why) for worker in range(2))
    life.seen = replace(life.seen, pods=pods)
    life.decide(10.0)
    assert (life.status.reason, life.status.message) == (
        "Unschedulable",
        "spec.checkpoint.store.claim.name: checkpoints is no PersistentVolumeClaim of namespace default; create it",
    )


def test_a_job_that_makes_no_steps_tells_no_speed() -> None:
    life = Life()
    speed = {"samples_per_second": 80.0, "tokens_per_second": 640.0, "model_flops_per_second": 1e15, "mfu": 0.5}
    life.say(ZERO, step=60, metrics={"loss": 0.5, "step_seconds": 0.1, **speed})
    life.decide(30.0)
    assert life.status.metrics == {"loss": 0.5, "step_seconds": 0.1, **speed}
    life.say(ONE, phase="Exited", exit=CRASH | {"step": 60})
    life.decide(31.0)
    assert life.status.metrics == {"loss": 0.5}
