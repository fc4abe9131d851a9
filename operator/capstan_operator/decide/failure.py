"""Who failed first, and how it is counted and told. What follows from it is in `actions.py`."""

from capstan_operator.api.training_job_status import FailureStatus, Restarts, TrainingJobStatus
from capstan_operator.decide.actions import (
    Action,
    attempts_without_progress,
    budget_of,
    choose_action,
    used_of,
)
from capstan_operator.decide.evidence import (
    MESSAGE_LENGTH,
    Evidence,
    Weight,
    find_broken_pod,
    find_evidence,
    has_left,
    has_stopped,
    is_saving,
)
from capstan_operator.decide.nodes import note_fault
from capstan_operator.decide.remedies import skip_batches, split_micro_batch
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.times import rfc3339
from capstan_runtime.contract.exit_codes import FailureClass

CASCADE_SECONDS = 3.0
"""How long the ranks that still run may take to tell a better reason than "a peer went away"."""
HEARING_SECONDS = 10.0
"""How long a rank that has not been heard since may be the cause for which a peer's collective broke. After that it has
answered, or is known to be silent."""
LAST_LINES = 10


def find_culprit(situation: Situation) -> tuple[Evidence | None, float | None]:
    """(the first failing rank or None, seconds until another look would tell more or None).

    With an attempt: whatever ends it. Without one: a pod that can join none, that has not been counted yet, and without
    which no valid world can be had; if one can, the job goes on without that pod, and it is replaced in peace.
    """
    if situation.status.members is None:
        return _broken_pod(situation), _seconds_until_lost(situation)
    members = situation.members
    found = [evidence for worker in members if (evidence := find_evidence(worker, situation))]
    if _saves_first(situation, found):
        return None, None  # its last answer, or the end of its pod, is news
    if any(has_left(worker, situation) for worker in members):
        # Who still waits for a rank that has left as it was asked to, is not failing.
        found = [evidence for evidence in found if evidence.weight is not Weight.CASCADE]
    culprit = _first(found)
    wait = _seconds_until_lost(situation)
    if culprit is not None and culprit.weight in (Weight.WAITING, Weight.CASCADE):
        wait = _seconds_for_a_better_culprit(culprit, len(found), situation, wait)
        return (culprit if wait is None else None), wait
    return culprit, wait


def count_failure(situation: Situation, culprit: Evidence) -> TrainingJobStatus:
    """Status after the attempt ended because of `culprit`: within the budget, one restart more has been used, and what
    is to be done differently is on record."""
    status = situation.status
    action = choose_action(situation, culprit)
    remedy, words = remedies(situation, culprit)
    node = culprit.pod.node if culprit.pod else None
    if action is Action.REPLACE_NODE and node is not None:
        words = f"new pods keep away from node {node}"
    used = status.restarts.by_cause | {culprit.failure.value: used_of(status, culprit.failure) + 1}
    failure = describe_failure(situation, culprit).model_copy(update={"action": action.value, "remedy": words})
    return status.model_copy(
        update={
            "members": None,
            "next_world": None,
            "failure": failure,
            "restarts": Restarts(total=status.restarts.total + 1, by_cause=dict(sorted(used.items()))),
            "attempts_without_progress": attempts_without_progress(situation, culprit),
            "node_faults": note_fault(situation, culprit, action is Action.REPLACE_NODE),
        }
        | remedy
    )


def is_of_the_last_failure(situation: Situation, culprit: Evidence) -> bool:
    """What ends the attempt that is on had happened before it began, to a rank that never took its place in it: the
    blow that ended the attempt before broke more than was seen at first."""
    status = situation.status
    record = status.recoveries[-1] if status.recoveries else None
    if record is None or record.fence != status.fence or record.recovered_at is not None:
        return False  # it has trained since
    worker = next((worker for worker in situation.members if worker.index == culprit.worker), None)
    return worker is not None and situation.is_of_the_same_blow(worker)


def carry_failure(situation: Situation) -> TrainingJobStatus:
    """Status after an attempt that ended of the failure before it: nothing is charged a second time."""
    status = situation.status
    failure = status.failure.model_copy(update={"fence": status.fence}) if status.failure else None
    return status.model_copy(update={"members": None, "next_world": None, "failure": failure})


def is_carried(status: TrainingJobStatus, before: TrainingJobStatus) -> bool:
    """`carry_failure` led from `before` to `status`."""
    failure = before.failure
    if failure is None or failure.fence == before.fence:
        return False
    return status.failure == failure.model_copy(update={"fence": before.fence})


def describe_failure(situation: Situation, culprit: Evidence) -> FailureStatus:
    """The failure block of status."""
    pod, exit_ = culprit.pod, culprit.exit
    lines = exit_.last_lines if exit_ else list(pod.last_lines) if pod else []
    worker = next((worker for worker in situation.members if worker.index == culprit.worker), None)
    return FailureStatus(
        rank=situation.rank_of(worker) if worker else None,
        pod=pod.name if pod else None,
        node=pod.node if pod else None,
        fence=situation.status.fence,
        exit_code=culprit.exit_code,
        signal=culprit.signal,
        failure_class=culprit.failure.value,
        message=culprit.message[:MESSAGE_LENGTH],
        last_lines=lines[-LAST_LINES:],
        step=exit_.step if exit_ else None,
        section=exit_.section.value if exit_ and exit_.section else None,
        at=rfc3339(situation.now),
        newest_pod_at=_newest_pod_at(situation) if worker else None,
    )


def _newest_pod_at(situation: Situation) -> str | None:
    return rfc3339(max((pod.created_at for pod in situation.observed.pods), default=0.0))


def failure_sentence(failure: FailureStatus) -> str:
    """`rank 1 (pod digits-worker-1) was killed by SIGKILL`."""
    if failure.rank is None:
        where = f"pod {failure.pod}"
    else:
        where = f"rank {failure.rank}" + (f" (pod {failure.pod})" if failure.pod else "")
    failure_class = FailureClass(failure.failure_class)
    if failure_class is FailureClass.HANG:
        return f"{where} hung: {failure.message}"
    if failure_class in (FailureClass.LOST, FailureClass.HOST_OUT_OF_MEMORY):
        return f"{where}: {failure.message}"
    if failure.signal:
        return (
            f"{where}: {failure.message}"
            if failure.signal in failure.message
            else f"{where} was killed by {failure.signal}"
        )
    if failure.exit_code:
        return f"{where} exited with {failure.exit_code}: {failure.message}"
    return f"{where}: {failure.message}"


def restart_sentence(situation: Situation) -> str:
    """The failure, how much of its budget is used, and what is done differently."""
    failure = situation.status.failure
    if failure is None:
        return ""
    failure_class = FailureClass(failure.failure_class)
    budget = budget_of(situation.blueprint.spec.recovery.budgets, failure_class)
    used = used_of(situation.status, failure_class)
    remedy = f"; {failure.remedy}" if failure.remedy else ""
    count = f"; restart {used} of {budget} for {failure_class}" if budget else ""
    return f"{failure_sentence(failure)}{count}{remedy}"


def remedies(situation: Situation, culprit: Evidence) -> tuple[dict[str, object], str | None]:
    """(what changes in status so that the next attempt is another one, that in words)."""
    if culprit.failure is FailureClass.GPU_OUT_OF_MEMORY:
        return split_micro_batch(situation)
    if culprit.failure is FailureClass.NUMERICAL and culprit.exit is not None and culprit.exit.bad_batch is not None:
        count = situation.blueprint.spec.recovery.numerical.skip_steps
        skips, words = skip_batches(situation.status, culprit.exit.bad_batch, count)
        return {"skips": skips}, words
    return {}, None


def _saves_first(situation: Situation, found: list[Evidence]) -> bool:
    """A member's pod is being deleted, and nothing stands in the way of the save that all ranks make before it goes."""
    leaving = {worker.index for worker in situation.members if is_saving(worker, situation)}
    others = [evidence for evidence in found if evidence.worker not in leaving]
    return bool(leaving) and all(evidence.exit is not None and has_stopped(evidence.exit) for evidence in others)


def _broken_pod(situation: Situation) -> Evidence | None:
    broken = [(worker, found) for worker in situation.workers if (found := find_broken_pod(worker, situation))]
    if len(situation.workers) - len(broken) >= situation.worlds[0]:
        return None
    is_counted = any(found.pod and found.pod.name == situation.failed_pod for _, found in broken)
    new = [found for worker, found in broken if not situation.is_of_the_same_blow(worker)]
    return None if is_counted else _first(new)


def _first(found: list[Evidence]) -> Evidence | None:
    """The evidence nearest to the cause; among equals the earliest report, then the lowest worker."""
    return min(found, key=lambda evidence: evidence.nearness, default=None)


def _seconds_for_a_better_culprit(
    culprit: Evidence, ended: int, situation: Situation, until_lost: float | None
) -> float | None:
    """How long to wait before a rank that may only have lost its peers is blamed; None: blame it."""
    if until_lost is not None:
        # A silent rank is the likely cause, and no attempt can start before it answers or is given up.
        return until_lost
    if ended == situation.world or culprit.exit is None:
        return None
    elapsed = situation.now - culprit.exit.at
    # The time is the pod's: a clock that is wrong by more than the pause must not make us wait for it.
    if not 0 <= elapsed < HEARING_SECONDS:
        return None
    if elapsed < CASCADE_SECONDS:
        return CASCADE_SECONDS - elapsed
    at = culprit.exit.at
    unheard = [worker for worker in situation.members if worker.heard_at is not None and worker.heard_at < at]
    return HEARING_SECONDS - elapsed if unheard else None


def _seconds_until_lost(situation: Situation) -> float | None:
    """When the first of the silent supervisors will count as lost; None: none is silent."""
    waits = [
        situation.silence_limit(worker) - worker.silent_seconds
        for worker in situation.workers
        if worker.is_up and worker.silent_seconds is not None
    ]
    return min((wait for wait in waits if 0 < wait < float("inf")), default=None)
