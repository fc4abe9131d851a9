"""How one attempt came to follow another: a record for each, begun when an attempt ends and completed when the next one
has made its first step. How long each part took is in `recovery_parts`.
"""

from collections.abc import Iterator

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.recovery_status import InjectedStatus, RecoverySeconds, RecoveryStatus
from capstan_operator.api.training_job_status import FailureStatus, TrainingJobStatus
from capstan_operator.decide.actions import Action
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.failure import failure_sentence, is_carried
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.progress import has_stepped, last_step
from capstan_operator.decide.queueing import stopped_by_queue
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.recovery_parts import extended, with_attempt_parts, with_seconds
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.times import rfc3339_millis, seconds_since_1970
from capstan_runtime.contract.chaos import Fault
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.state import State

RECOVERIES_KEPT = 20
SENTENCE_LENGTH = 600
RESUMED, PREEMPTED = "Resumed", "Preempted"
GROW, SPEC_CHANGED, MEMBERS_CHANGED = "Grow", "SpecChanged", "MembersChanged"
"""Causes that are no failures."""
VOLUNTARY = frozenset({RESUMED, PREEMPTED, GROW, SPEC_CHANGED})
"""Those of an attempt that ended with a save."""

_OTHER_RANKS = {
    Fault.HANG: {FailureClass.HANG, FailureClass.RETRYABLE},
    Fault.SLOW_RANK: {FailureClass.HANG, FailureClass.RETRYABLE},
    Fault.SLOW_NETWORK: {FailureClass.HANG, FailureClass.RETRYABLE},
    Fault.DATA_STALL: {FailureClass.HANG, FailureClass.RETRYABLE},
    Fault.NAN: {FailureClass.NUMERICAL},
    Fault.GPU_OUT_OF_MEMORY: {FailureClass.GPU_OUT_OF_MEMORY},
}
"""Faults that a rank other than the one that suffers them may fail of first, and how."""
_SLOW = frozenset({Fault.SLOW_RANK, Fault.SLOW_NETWORK, Fault.DATA_STALL})
"""Faults that are no end by themselves: time is counted from the failure, not from them."""


def note_end(situation: Situation, before: TrainingJobStatus) -> TrainingJobStatus:
    """`situation.status`, in which something has just ended that `before` was still on, with the record of what is to
    follow begun, unless nothing is."""
    status = situation.status
    if before.members is not None and is_carried(status, before):
        return _reopened(status)
    if before.members is not None:
        status = _close(situation, status)
    if end_of(status) is not None:
        return _halted(situation.after(status), before)
    if status.active_since is None:
        return status
    failure = status.failure if status.restarts.total > before.restarts.total else None
    open_record = waiting(status)
    if open_record is not None:
        # Something else broke before the next attempt could begin: one attempt follows, so one record tells it.
        then = f"{open_record.sentence}; then {_failure_words(failure)}" if failure else open_record.sentence
        return _with_last(status, open_record.model_copy(update={"sentence": then[:SENTENCE_LENGTH]}))
    if failure is None and before.members is None:
        return status
    return _with_new(status, _begun(situation, before, failure))


def _reopened(status: TrainingJobStatus) -> TrainingJobStatus:
    """The attempt that was to end the recovery never formed: the next one is to, and its pods are waited for anew."""
    last = status.recoveries[-1] if status.recoveries else None
    if last is None or last.recovered_at is not None or last.fence != status.fence:
        return status
    sentence = f"{last.sentence}; then another of its pods was found gone"[:SENTENCE_LENGTH]
    seconds = last.seconds.model_copy(update={"schedule": None})
    record = last.model_copy(update={"fence": status.fence + 1, "sentence": sentence, "seconds": seconds})
    return _with_last(status, with_seconds(record))


def _halted(situation: Situation, before: TrainingJobStatus) -> TrainingJobStatus:
    """A failure that ends the job is part of its story, though no attempt follows."""
    status = situation.status
    if status.failure is None or status.failure == before.failure:
        return status
    if waiting(status) is not None:
        record = status.recoveries[-1]
        words = f"{record.sentence}; then {_failure_words(status.failure)}"[:SENTENCE_LENGTH]
        return _with_last(status, record.model_copy(update={"sentence": words, "action": Action.HALT.value}))
    record = _begun(situation, before, status.failure)
    return _with_new(status, record.model_copy(update={"action": Action.HALT.value}))


def trace(situation: Situation, old: TrainingJobStatus, reason: Reason) -> TrainingJobStatus:
    """`situation.status`, as planned, with its recoveries brought up to date; `reason` is that of the plan."""
    status = _complete(situation, situation.status)
    if old.active_since is None and status.active_since is not None and status.fence > 0:
        record = waiting(old)  # by now its attempt may have begun
        resumed = _resumed(situation, record, _how_resumed(old, status))
        status = _with_last(status, resumed) if record else _with_new(status, resumed)
    record = waiting(status)
    if record is not None and record.seconds.decide is None and reason is not Reason.BACKING_OFF:
        status = _with_last(status, extended(record, "decide", situation.now))
    return _form(situation.after(status), old) if status.fence > old.fence and status.members else status


def waiting(status: TrainingJobStatus) -> RecoveryStatus | None:
    """The record of an attempt that is to follow; None: none is."""
    last = status.recoveries[-1] if status.recoveries else None
    return last if last and status.members is None and last.fence > status.fence else None


def under_way(status: TrainingJobStatus) -> RecoveryStatus | None:
    """The record of an attempt that is to follow, or is on and has made no step yet; None: there is none."""
    last = status.recoveries[-1] if status.recoveries else None
    if last is None or last.recovered_at is not None or end_of(status) is not None:
        return None
    return last if last.fence > status.fence or (last.fence == status.fence and status.members) else None


def completed_since(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[RecoveryStatus]:
    """Records that were completed between two statuses."""
    known = {record.fence for record in old.recoveries if record.recovered_at}
    yield from (record for record in new.recoveries if record.recovered_at and record.fence not in known)


def _begun(situation: Situation, before: TrainingJobStatus, failure: FailureStatus | None) -> RecoveryStatus:
    """The record of what follows the end that was just recorded."""
    status = situation.status
    injected = _cause_in_chaos(status, failure) if failure else None
    was_on = before.members is not None
    at = _end_of_attempt(situation, failure, injected) if was_on else situation.now
    record = RecoveryStatus(
        fence=status.fence + 1,
        at=rfc3339_millis(at),
        cause=failure.failure_class if failure else _voluntary_cause(situation, before),
        sentence=(_failure_words(failure) if failure else _voluntary_words(situation, before))[:SENTENCE_LENGTH],
        rank=failure.rank if failure else None,
        pod=failure.pod if failure else None,
        node=failure.node if failure else None,
        world_before=before.world if was_on else None,
        step_before=_last_step(situation, failure) if was_on else None,
        step_seconds=_step_seconds(status) if was_on else None,
        chaos=injected.name if injected else None,
    )
    return extended(record, "detect", situation.now)


def _step_seconds(status: TrainingJobStatus) -> float | None:
    """Of the attempt that ended or, if it was too short to tell, of the newest one before it that did."""
    told = (record.step_seconds for record in reversed(status.recoveries) if record.step_seconds is not None)
    return status.metrics.get("step_seconds") or next(told, None)


def _how_resumed(old: TrainingJobStatus, new: TrainingJobStatus) -> str:
    """What made a job that rested go on."""
    if old.reason == Reason.WAITING_FOR_QUOTA and new.queue is not None:
        return f"queue {new.queue.name} admitted its pods"
    revived = find(new, TrainingJobCondition.FAILED)
    return revived.message if revived and is_true(old, TrainingJobCondition.FAILED) else "spec.suspend is false again"


def _resumed(situation: Situation, open_record: RecoveryStatus | None, how: str) -> RecoveryStatus:
    """The time of a suspension is the user's: what is lost is counted from the resume."""
    status, at = situation.status, rfc3339_millis(situation.now)
    if open_record is not None:
        sentence = f"{open_record.sentence}; then {how}"[:SENTENCE_LENGTH]
        return open_record.model_copy(update={"at": at, "sentence": sentence, "seconds": RecoverySeconds(decide=0.0)})
    return RecoveryStatus(
        fence=status.fence + 1,
        at=at,
        cause=RESUMED,
        sentence=how,
        step_before=status.step,
        seconds=RecoverySeconds(decide=0.0),
    )


def _form(situation: Situation, old: TrainingJobStatus) -> TrainingJobStatus:
    """The next attempt begins: who was waited for is there."""
    status = situation.status
    last = status.recoveries[-1] if status.recoveries else None
    if last is None or last.fence <= old.fence:
        return status
    update = {"fence": status.fence, "world_after": status.world, "action": _action(last, status)}
    part = "decide" if last.seconds.decide is None else "schedule"
    return _with_last(status, extended(last.model_copy(update=update), part, situation.now))


def _action(record: RecoveryStatus, status: TrainingJobStatus) -> str:
    if record.cause in (RESUMED, PREEMPTED):
        return "Resume"
    before, after = record.world_before, status.world
    if before is not None and after is not None and after < before:
        return Action.SHRINK.value
    failure = status.failure
    if failure is not None and failure.failure_class == record.cause and failure.action:
        # A job that had failed for good goes on with new pods.
        return Action.REPLACE_POD.value if failure.action == Action.HALT else failure.action
    if before is not None and after is not None and after > before:
        return Action.GROW.value
    return Action.RESTART_IN_PLACE.value


def _complete(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The record of the attempt that is on, once its rank 0 has made a step."""
    record, word = under_way(status), _speech(situation, status.fence)
    if record is None or record.fence != status.fence or word is None or not has_stepped(word):
        return status
    return _with_last(status, _completed(record, situation, word))


def _close(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The record of an attempt that has just ended: if it made no step, it keeps how far it came."""
    last = status.recoveries[-1] if status.recoveries else None
    if last is None or last.recovered_at is not None or last.fence != status.fence:
        return status
    word = _speech(situation, status.fence)
    if word is not None and has_stepped(word):
        return _with_last(status, _completed(last, situation, word))
    end = _clamped(word.exit.at, seconds_since_1970(last.at), situation.now) if word and word.exit else situation.now
    return _with_last(status, with_attempt_parts(last, situation, word, end))


def _completed(record: RecoveryStatus, situation: Situation, word: State) -> RecoveryStatus:
    record = with_attempt_parts(record, situation, word, situation.now)
    resumed = situation.status.resumed_from
    step = resumed.step if resumed else 0
    lost = record.step_before - step if record.step_before is not None else None
    if lost is not None and lost < 0:
        # More was saved than was told: how many steps followed the save nobody knows, unless the ranks left after it.
        lost = 0 if record.cause in VOLUNTARY else None
    return record.model_copy(
        update={
            "recovered_at": rfc3339_millis(seconds_since_1970(record.at) + record.seconds.total),
            "step": step,
            "root": resumed.root if resumed else None,
            "verified": resumed.verified_at is not None if resumed else None,
            "source": word.restored.source.value if resumed and word.restored else None,
            "steps_lost": lost,
            "seconds_lost": _seconds_lost(lost, record.step_seconds),
        }
    )


def _seconds_lost(steps: int | None, step_seconds: float | None) -> float | None:
    if not steps:
        return None if steps is None else 0.0
    return round(steps * step_seconds, 3) if step_seconds is not None else None


def _with_last(status: TrainingJobStatus, record: RecoveryStatus) -> TrainingJobStatus:
    return status.model_copy(update={"recoveries": [*status.recoveries[:-1], record]})


def _with_new(status: TrainingJobStatus, record: RecoveryStatus) -> TrainingJobStatus:
    return status.model_copy(update={"recoveries": [*status.recoveries, record][-RECOVERIES_KEPT:]})


def _speech(situation: Situation, fence: int) -> State | None:
    """What rank 0 says, or said last, of attempt `fence`; None: nothing."""
    word = situation.speaker.word if situation.speaker else None
    return word if word is not None and word.fence == fence else None


def _clamped(value: float, low: float, high: float) -> float:
    return max(min(low, high), min(value, high))


def _end_of_attempt(situation: Situation, failure: FailureStatus | None, injected: InjectedStatus | None) -> float:
    """When the attempt ended, as near to the fault as anybody saw, and not before it began."""
    now, began = situation.now, situation.status.attempt_started_at
    exits, silences = [], []
    for worker in situation.workers:
        word = worker.word
        is_culprit = failure is None or (worker.pod is not None and worker.pod.name == failure.pod)
        if word is not None and word.exit is not None and word.exit.fence == situation.status.fence and is_culprit:
            exits.append(word.exit.at)
        elif is_culprit and worker.pod is not None and worker.pod.finished_at is not None:
            exits.append(worker.pod.finished_at)
        if is_culprit and failure is not None and worker.silent_seconds is not None:
            silences.append(now - worker.silent_seconds)
    if injected is not None and Fault(injected.fault) not in _SLOW:
        exits.append(seconds_since_1970(injected.at))
    # A rank that stopped as it was asked was not lost: the world ends when the last has gone.
    found = exits or silences
    at = (min(found) if failure else max(found)) if found else now
    return _clamped(at, seconds_since_1970(began) if began else now, now)


def _last_step(situation: Situation, failure: FailureStatus | None) -> int | None:
    """The last step that anybody told of the attempt that ended."""
    status = situation.status
    words = [worker.word for worker in situation.workers if worker.word and worker.word.fence == status.fence]
    told = [last_step(word) for word in words if has_stepped(word)]
    steps = [step for step in (status.step, failure.step if failure else None, *told) if step is not None]
    return max(steps, default=None)


def _cause_in_chaos(status: TrainingJobStatus, failure: FailureStatus) -> InjectedStatus | None:
    """The newest injection that `failure` can come of and that no record claims yet."""
    claimed = {record.chaos for record in status.recoveries}
    found = [
        entry for entry in status.injected if entry.name not in claimed and _may_cause(entry, failure, status.fence)
    ]
    return found[-1] if found else None


def _may_cause(entry: InjectedStatus, failure: FailureStatus, fence: int) -> bool:
    if entry.pod == failure.pod and entry.fault == Fault.DELETE_POD:
        return True  # in whichever attempt: the pod may go after another one has begun
    if entry.fence != fence:
        return False
    if entry.pod == failure.pod:
        return True
    return FailureClass(failure.failure_class) in _OTHER_RANKS.get(Fault(entry.fault), ())


def _failure_words(failure: FailureStatus | None) -> str:
    if failure is None:
        return ""
    return failure_sentence(failure) + (f"; {failure.remedy}" if failure.remedy else "")


def _voluntary_cause(situation: Situation, old: TrainingJobStatus) -> str:
    if stopped_by_queue(situation.after(old)) is not None:
        return PREEMPTED
    if old.next_world is None:
        return MEMBERS_CHANGED
    return GROW if old.world is not None and old.next_world > old.world else SPEC_CHANGED


def _voluntary_words(situation: Situation, old: TrainingJobStatus) -> str:
    words = stopped_by_queue(situation.after(old))
    if words is not None and old.queue is not None:
        return f"queue {old.queue.name} took its quota back: {words}"
    if old.next_world is None:
        return "its pods were others than those of the attempt"
    return f"the ranks stopped after a checkpoint, for a world of {old.next_world} instead of {old.world}"
