"""What ends: an attempt, an activation, the job. Only bookkeeping; what follows from it is planned afterwards."""

from collections.abc import Callable

from capstan_operator.api.meta import Condition, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.actions import Action, attempts_without_progress, fatal_clause, fatal_reason
from capstan_operator.decide.conditions import find, put
from capstan_operator.decide.evidence import has_ended_with_a_peer, has_left
from capstan_operator.decide.failure import (
    carry_failure,
    count_failure,
    describe_failure,
    failure_sentence,
    find_culprit,
    is_of_the_last_failure,
    remedies,
)
from capstan_operator.decide.membership import has_members
from capstan_operator.decide.queueing import stopped_by_queue
from capstan_operator.decide.reasons import Reason, is_budget
from capstan_operator.decide.remedies import forget_splits
from capstan_operator.decide.situation import Situation, has_changed_pods, is_changed
from capstan_operator.decide.times import rfc3339, seconds_since_1970
from capstan_runtime.contract.state import EarlyStop


def record_end(situation: Situation) -> TrainingJobStatus | None:
    """Status with what has just ended written into it; None: nothing has.

    The checks stand in order of precedence: who has finished is not failed, who is suspended is not restarted.
    """
    found = (check(situation) for check in _ENDINGS)
    return next((status for status in found if status is not None), None)


def forget_run(situation: Situation) -> TrainingJobStatus:
    """Status of a job that was changed while it is suspended: with its last pod, nobody is left who has read the run as
    it was, and whoever is started next may read it as it is now. The virtual ranks stay: the order of the data, and so
    every checkpoint, hangs on them."""
    status, blueprint = situation.status, situation.blueprint
    if status.active_since is not None or situation.observed.pods:
        return status
    status = forget_splits(situation)
    if has_changed_pods(status, blueprint):
        status = status.model_copy(update={"pods_digest": None})
    if status.virtual_ranks is not None and is_changed(status, blueprint):
        status = status.model_copy(update={"run_digest": None})
    return status


def end_of(status: TrainingJobStatus) -> Condition | None:
    """The condition that says how the job ended; None: it has not."""
    for kind in (TrainingJobCondition.SUCCEEDED, TrainingJobCondition.FAILED):
        condition = find(status, kind)
        if condition is not None and condition.status == "True":
            return condition
    return None


def seconds_until_deadline(situation: Situation) -> float | None:
    """Seconds of activity left; None: no deadline, or not active."""
    deadline = situation.blueprint.spec.active_deadline_seconds
    if deadline is None or situation.status.active_since is None:
        return None
    return deadline - active_seconds(situation.status, situation.now)


def active_seconds(status: TrainingJobStatus, now: float) -> float:
    """Seconds the job has been active in all; time in which it was suspended or waited for quota is not counted."""
    since = status.active_since
    current = now - seconds_since_1970(since) if since else 0.0
    return round((status.active_seconds or 0.0) + max(0.0, current), 3)


def deactivate(situation: Situation) -> TrainingJobStatus:
    """Status of a job whose time of activity stands still."""
    return situation.status.model_copy(
        update={"active_seconds": active_seconds(situation.status, situation.now), "active_since": None}
    )


def _succeeded(situation: Situation) -> TrainingJobStatus | None:
    status = situation.status
    # Before the first attempt, and after it, only a program of the user's own can have finished: all pods run it.
    crew = situation.members or situation.workers
    if not all(worker.has_finished(status.fence) for worker in crew):
        return None
    early = _early_stop(situation)
    if early is not None:
        return _finish(situation, TrainingJobCondition.SUCCEEDED, Reason.STOPPED_EARLY, f"{early}")
    steps = f"all {status.steps} steps are done" if status.fence and status.steps else "all pods have finished"
    return _finish(situation, TrainingJobCondition.SUCCEEDED, Reason.COMPLETED, steps)


def _early_stop(situation: Situation) -> EarlyStop | None:
    """Why the run ended before its last step; None: it did not, or nobody is left who could tell."""
    words = [worker.word for worker in situation.members]
    stops = (word.early_stop for word in words if word is not None and word.fence == situation.status.fence)
    return next((stop for stop in stops if stop is not None), None)


def _deadline_passed(situation: Situation) -> TrainingJobStatus | None:
    left = seconds_until_deadline(situation)
    if left is None or left > 0:
        return None
    message = (
        f"ran for longer than spec.activeDeadlineSeconds: {situation.blueprint.spec.active_deadline_seconds}; "
        f"raise it to go on from the newest checkpoint"
    )
    return _finish(situation, TrainingJobCondition.FAILED, Reason.DEADLINE_EXCEEDED, message)


def _suspended(situation: Situation) -> TrainingJobStatus | None:
    status = situation.status
    if not situation.blueprint.spec.suspend or (status.members is None and status.active_since is None):
        return None
    return deactivate(situation).model_copy(update={"members": None, "world": None, "next_world": None})


def _members_changed(situation: Situation) -> TrainingJobStatus | None:
    """The supervisors follow an attempt that this status does not know, or the members' pods are others."""
    status, members = situation.status, situation.members
    if not members:
        return None
    is_ahead = any(w.answer is not None and w.answer.fence > status.fence for w in situation.workers)
    is_replaced = all(w.is_up for w in members) and not has_members(situation)
    return status.model_copy(update={"members": None, "next_world": None}) if is_ahead or is_replaced else None


def _left(situation: Situation) -> TrainingJobStatus | None:
    """All members have saved and stopped, so that the world may change: no failure."""
    members = situation.members
    if not any(has_left(worker, situation) for worker in members):
        return None
    if not all(has_left(worker, situation) or has_ended_with_a_peer(worker, situation) for worker in members):
        return None
    return situation.status.model_copy(update={"members": None, "next_world": None})


def _preempted(situation: Situation) -> TrainingJobStatus | None:
    """Kueue took quota back, and the ranks have saved, or cannot: no failure, whoever is seen to go first."""
    if not situation.members or stopped_by_queue(situation) is None:
        return None
    culprit, _ = find_culprit(situation)
    return None if culprit is None else situation.status.model_copy(update={"members": None, "next_world": None})


def _failed(situation: Situation) -> TrainingJobStatus | None:
    if situation.blueprint.spec.suspend:
        return None
    culprit, _ = find_culprit(situation)
    if culprit is None:
        return None
    if is_of_the_last_failure(situation, culprit):
        return carry_failure(situation)
    reason = fatal_reason(situation, culprit)
    if reason is None:
        return count_failure(situation, culprit)
    # A raised budget lets it go on: then what would be done now is done.
    remedy, words = remedies(situation, culprit) if is_budget(reason) else ({}, None)
    failure = describe_failure(situation, culprit).model_copy(update={"action": Action.HALT.value, "remedy": words})
    newest = situation.status.checkpoint
    kept = f"; the newest checkpoint is {newest.summary}" if newest else ""
    message = f"{failure_sentence(failure)}; {fatal_clause(situation, culprit, reason)}{kept}"
    finished = _finish(situation, TrainingJobCondition.FAILED, reason, message)
    attempts = attempts_without_progress(situation, culprit)
    return finished.model_copy(update={"failure": failure, "attempts_without_progress": attempts} | remedy)


_ENDINGS: tuple[Callable[[Situation], TrainingJobStatus | None], ...] = (
    _succeeded,
    _deadline_passed,
    _suspended,
    _members_changed,
    _left,
    _preempted,
    _failed,
)


def _finish(situation: Situation, kind: TrainingJobCondition, reason: Reason, message: str) -> TrainingJobStatus:
    status = put(situation, deactivate(situation), kind, True, reason, message)
    ended = {"members": None, "world": None, "next_world": None, "finished_at": rfc3339(situation.now)}
    return status.model_copy(update=ended)
