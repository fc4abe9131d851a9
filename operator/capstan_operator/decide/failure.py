"""Who failed first, and what that means: a restart within its budget, or the end of the job."""

from enum import Enum, auto

from capstan_operator.api.training_job import Budgets
from capstan_operator.api.training_job_status import FailureStatus, Restarts, TrainingJobStatus
from capstan_operator.decide.evidence import Evidence, Weight, find_broken_pod, find_evidence
from capstan_operator.decide.reasons import Reason, budget_exhausted
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.times import rfc3339, seconds_after, seconds_since_1970
from capstan_runtime.contract.exit_codes import FailureClass

CASCADE_SECONDS = 3.0
"""How long the ranks that still run may take to tell a better reason than "a peer went away"."""
BACKOFF_SECONDS = (0.0, 1.0, 5.0, 15.0)
"""Pause before restart 1, 2, 3, and every later one, of the same class."""
HEALTHY_SECONDS = 600.0
"""An attempt that lived so long starts the pauses anew."""
MESSAGE_LENGTH = 300
LAST_LINES = 10


class Action(Enum):
    """What a failure leads to."""

    RESTART = auto()
    """A new attempt with the same pods, where they live."""
    REPLACE_POD = auto()
    """A new attempt with a new pod for the rank that failed."""
    FAIL_JOB = auto()
    """No new attempt: it would end in the same way."""


ACTIONS = {
    FailureClass.APPLICATION: Action.RESTART,
    FailureClass.RETRYABLE: Action.RESTART,
    FailureClass.CRASH: Action.RESTART,
    FailureClass.GPU_FAULT: Action.REPLACE_POD,
    FailureClass.HOST_OUT_OF_MEMORY: Action.RESTART,
    FailureClass.GPU_OUT_OF_MEMORY: Action.RESTART,
    FailureClass.LOST: Action.REPLACE_POD,
    FailureClass.HANG: Action.RESTART,
    FailureClass.CORRUPT_CHECKPOINT: Action.RESTART,
    FailureClass.NUMERICAL: Action.RESTART,
    FailureClass.CONFIG: Action.FAIL_JOB,
    FailureClass.DO_NOT_RESTART: Action.FAIL_JOB,
}
FATAL_REASONS = {FailureClass.CONFIG: Reason.CONFIG_ERROR, FailureClass.DO_NOT_RESTART: Reason.DO_NOT_RESTART}


def find_culprit(situation: Situation) -> tuple[Evidence | None, float | None]:
    """(the first failing rank or None, seconds until another look would tell more or None).

    With an attempt: whatever ends it. Without one: a pod that can join none and has not been counted yet.
    """
    status = situation.status
    if status.members is None:
        broken = [found for worker in situation.workers if (found := find_broken_pod(worker, situation))]
        is_counted = any(found.pod and found.pod.name == situation.failed_pod for found in broken)
        return (None if is_counted else _first(broken)), _seconds_until_lost(situation)
    found_in_attempt = [found for worker in situation.workers if (found := find_evidence(worker, situation))]
    culprit = _first(found_in_attempt)
    wait = _seconds_until_lost(situation)
    if culprit is not None and culprit.weight is Weight.CASCADE:
        wait = _seconds_for_a_better_culprit(culprit, len(found_in_attempt), situation, wait)
        return (culprit if wait is None else None), wait
    return culprit, wait


def count_failure(situation: Situation, culprit: Evidence) -> TrainingJobStatus:
    """Status after the attempt ended because of `culprit`: within the budget, one restart more has been used."""
    status = situation.status
    used = dict(status.restarts.by_cause)
    used[culprit.failure.value] = used.get(culprit.failure, 0) + 1
    return status.model_copy(
        update={
            "members": None,
            "failure": describe_failure(situation, culprit),
            "restarts": Restarts(total=status.restarts.total + 1, by_cause=dict(sorted(used.items()))),
        }
    )


def fatal_reason(situation: Situation, culprit: Evidence) -> Reason | None:
    """Why `culprit` ends the job; None: it may be restarted."""
    if ACTIONS[culprit.failure] is Action.FAIL_JOB:
        return FATAL_REASONS[culprit.failure]
    used = situation.status.restarts.by_cause.get(culprit.failure, 0)
    budget = budget_of(situation.blueprint.spec.recovery.budgets, culprit.failure)
    return budget_exhausted(culprit.failure) if used >= budget else None


def budget_of(budgets: Budgets, failure: FailureClass) -> int:
    """Restarts allowed for `failure`; 0 for what is never restarted."""
    return 0 if ACTIONS[failure] is Action.FAIL_JOB else int(getattr(budgets, failure.name.lower()))


def needs_new_pod(situation: Situation, name: str) -> bool:
    """The pod `name` lives, but its failure was counted and asks for another one in its place."""
    failure = situation.status.failure
    return (
        failure is not None
        and name == situation.failed_pod
        and ACTIONS[FailureClass(failure.failure_class)] is Action.REPLACE_POD
    )


def pause_seconds(situation: Situation) -> float:
    """How long from now until the next attempt may begin; 0 or less: now."""
    status = situation.status
    failure = status.failure
    if failure is None or failure.fence != status.fence:
        return 0.0
    if status.attempt_started_at:
        lived = seconds_since_1970(failure.at) - seconds_since_1970(status.attempt_started_at)
        if lived >= HEALTHY_SECONDS:
            return 0.0
    count = status.restarts.by_cause.get(failure.failure_class, 1)
    pause = BACKOFF_SECONDS[min(count, len(BACKOFF_SECONDS)) - 1]
    return pause - seconds_after(failure.at, situation.now)


def describe_failure(situation: Situation, culprit: Evidence) -> FailureStatus:
    """The failure block of status."""
    pod, exit_ = culprit.pod, culprit.exit
    lines = exit_.last_lines if exit_ else list(pod.last_lines) if pod else []
    return FailureStatus(
        rank=culprit.worker,
        pod=pod.name if pod else None,
        node=pod.node if pod else None,
        fence=situation.status.fence,
        exit_code=culprit.exit_code,
        signal=exit_.signal if exit_ else None,
        failure_class=culprit.failure.value,
        message=culprit.message[:MESSAGE_LENGTH],
        last_lines=lines[-LAST_LINES:],
        at=rfc3339(situation.now),
    )


def failure_sentence(failure: FailureStatus) -> str:
    """`rank 1 (pod digits-worker-1) was killed by SIGKILL`."""
    where = f"rank {failure.rank}" + (f" (pod {failure.pod})" if failure.pod else "")
    if failure.signal:
        return f"{where} was killed by {failure.signal}"
    if failure.exit_code:
        return f"{where} exited with {failure.exit_code}: {failure.message}"
    return f"{where}: {failure.message}"


def restart_sentence(situation: Situation) -> str:
    """The failure, and how much of its budget is used."""
    failure = situation.status.failure
    if failure is None:
        return ""
    failure_class = FailureClass(failure.failure_class)
    budget = budget_of(situation.blueprint.spec.recovery.budgets, failure_class)
    used = situation.status.restarts.by_cause.get(failure_class, 0)
    return f"{failure_sentence(failure)}; restart {used} of {budget} for {failure_class}"


def _first(found: list[Evidence]) -> Evidence | None:
    """The evidence nearest to the cause; among equals the earliest report, then the lowest rank."""
    never = float("inf")
    return min(found, key=lambda e: (e.weight, e.exit.at if e.exit else never, e.worker), default=None)


def _seconds_for_a_better_culprit(
    culprit: Evidence, ended: int, situation: Situation, until_lost: float | None
) -> float | None:
    """How long to wait before a rank that only lost its peers is blamed; None: blame it."""
    if until_lost is not None:
        # A silent rank is the likely cause, and no attempt can start before it answers or is given up.
        return until_lost
    if ended == situation.world or culprit.exit is None:
        return None
    elapsed = situation.now - culprit.exit.at
    # The time is the pod's: a clock that is wrong by more than the pause must not make us wait for it.
    return CASCADE_SECONDS - elapsed if 0 <= elapsed < CASCADE_SECONDS else None


def _seconds_until_lost(situation: Situation) -> float | None:
    """When the first of the silent supervisors will count as lost; None: none is silent."""
    waits = [
        situation.silence_limit(worker) - worker.silent_seconds
        for worker in situation.workers
        if worker.is_up and worker.silent_seconds is not None
    ]
    return min((wait for wait in waits if 0 < wait < float("inf")), default=None)
