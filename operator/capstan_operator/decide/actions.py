"""What a failure leads to: by its class, by what happened before, and within budgets."""

from enum import StrEnum

from pydantic.alias_generators import to_camel

from capstan_operator.api.recovery_spec import Budgets
from capstan_operator.api.training_job import FROZEN
from capstan_operator.api.training_job_status import FailureStatus, TrainingJobStatus
from capstan_operator.decide.evidence import MESSAGE_LENGTH, Evidence
from capstan_operator.decide.nodes import has_other_nodes, is_repeated
from capstan_operator.decide.progress import made_progress
from capstan_operator.decide.reasons import Reason, budget_exhausted
from capstan_operator.decide.remedies import largest_splits_reached
from capstan_operator.decide.situation import ENDED, Situation
from capstan_operator.decide.times import seconds_after, seconds_since_1970
from capstan_runtime.contract.exit_codes import FailureClass

BACKOFF_SECONDS = (0.0, 1.0, 5.0, 15.0)
"""Pause before the next attempt after 1, 2, 3 and more failures in a row without a newer checkpoint."""
HEALTHY_SECONDS = 600.0
"""An attempt that lived so long starts the pauses anew."""


class Action(StrEnum):
    """What is done about a failure, or about the size of the world."""

    RESTART_IN_PLACE = "RestartInPlace"
    """A new attempt with the same pods, where they live."""
    REPLACE_POD = "ReplacePod"
    """A new pod for the rank that failed."""
    REPLACE_NODE = "ReplaceNode"
    """The same, kept away from the node."""
    ROLL_BACK = "RollBack"
    """A new attempt with the same pods from an older checkpoint, or past the batch that did the harm."""
    SHRINK = "Shrink"
    """A new attempt of those workers that are left."""
    GROW = "Grow"
    """A new attempt with workers that have come since, after a checkpoint."""
    HALT = "Halt"
    """No new attempt: it would end in the same way."""


ACTIONS = {
    FailureClass.APPLICATION: Action.RESTART_IN_PLACE,
    FailureClass.RETRYABLE: Action.RESTART_IN_PLACE,
    FailureClass.CRASH: Action.RESTART_IN_PLACE,
    FailureClass.GPU_FAULT: Action.REPLACE_NODE,
    FailureClass.HOST_OUT_OF_MEMORY: Action.RESTART_IN_PLACE,
    FailureClass.GPU_OUT_OF_MEMORY: Action.RESTART_IN_PLACE,
    FailureClass.LOST: Action.REPLACE_POD,
    FailureClass.HANG: Action.RESTART_IN_PLACE,
    FailureClass.CORRUPT_CHECKPOINT: Action.ROLL_BACK,
    FailureClass.NUMERICAL: Action.ROLL_BACK,
    FailureClass.CONFIG: Action.HALT,
    FailureClass.DO_NOT_RESTART: Action.HALT,
}
"""What a failure of a class leads to, if nothing else is known. STOPPED is missing: what we did not ask for is LOST,
and what we did is no failure."""
FATAL_REASONS = {FailureClass.CONFIG: Reason.CONFIG_ERROR, FailureClass.DO_NOT_RESTART: Reason.DO_NOT_RESTART}
NO_PROGRESS_FIELD = "spec.recovery.noProgressAttempts"
AGAIN = "set spec.suspend to true and to false again"
"""How a user has a job go on that nothing but a change from outside can help."""
_FIXED = (*FROZEN, "checkpoint.store", "checkpoint.sign")
NEW_POD = frozenset({Action.REPLACE_POD, Action.REPLACE_NODE})


def choose_action(situation: Situation, culprit: Evidence) -> Action:
    """What a failure that is not fatal leads to. What goes wrong on one node again and again is tried on another, if
    the job is known to have been given others."""
    node = culprit.pod.node if culprit.pod else None
    if is_repeated(situation, culprit) and has_other_nodes(situation, node):
        return Action.REPLACE_NODE
    action = ACTIONS[culprit.failure]
    has_pod = culprit.pod is not None and culprit.pod.phase not in ENDED and not culprit.pod.is_deleting
    return action if has_pod or action is not Action.RESTART_IN_PLACE else Action.REPLACE_POD


def fatal_reason(situation: Situation, culprit: Evidence) -> Reason | None:
    """Why `culprit` ends the job; None: it may be restarted."""
    failure = culprit.failure
    if ACTIONS[failure] is Action.HALT:
        return FATAL_REASONS[failure]
    if failure is FailureClass.NUMERICAL and (culprit.exit is None or culprit.exit.bad_batch is None):
        return Reason.NUMERICAL_FAILURE
    if failure is FailureClass.GPU_OUT_OF_MEMORY and largest_splits_reached(situation):
        return Reason.GPU_OUT_OF_MEMORY
    if _is_same_exception(situation.status.failure, culprit):
        return Reason.SAME_EXCEPTION
    if used_of(situation.status, failure) >= budget_of(situation.blueprint.spec.recovery.budgets, failure):
        return budget_exhausted(failure)
    if attempts_without_progress(situation, culprit) >= situation.blueprint.spec.recovery.no_progress_attempts:
        return Reason.NO_PROGRESS
    return None


def fatal_clause(situation: Situation, culprit: Evidence, reason: Reason) -> str:
    """Why no other attempt follows, and what to do, in a clause."""
    spec = situation.blueprint.spec
    if ACTIONS[culprit.failure] is Action.HALT:
        return f"this is not restarted by itself; {_mend_clause(culprit.message)}"
    if reason is Reason.NUMERICAL_FAILURE:
        return "spec.recovery.numerical says halt; set it to rewind or ignore in a new TrainingJob"
    if reason is Reason.GPU_OUT_OF_MEMORY:
        return (
            "a micro-batch of one sample is the least; use a GPU with more memory, precision bf16, a higher zeroStage "
            "or a smaller model"
        )
    if reason is Reason.SAME_EXCEPTION:
        return f"the attempt before ended with the same exception at the same step; when it is mended, {AGAIN}"
    if reason is Reason.NO_PROGRESS:
        attempts = attempts_without_progress(situation, culprit)
        return f"{attempts} attempts in a row brought no newer checkpoint; raise {NO_PROGRESS_FIELD} to go on"
    budget = budget_of(spec.recovery.budgets, culprit.failure)
    used = used_of(situation.status, culprit.failure)
    field = f"spec.recovery.budgets.{to_camel(culprit.failure.name.lower())}"
    return f"{used} of {budget} restarts for {culprit.failure} are used; raise {field} to go on"


def _mend_clause(message: str) -> str:
    """How the job goes on after what `message` says is mended. The value of a field may be at fault, or what it names:
    a file to mount, a model to register."""
    path = message.removeprefix("spec.").partition(":")[0]
    field = next((field for field in _FIXED if f"{path}.".startswith(f"{field}.")), None)
    if field is None:
        return f"when it is mended, {AGAIN}"
    return f"another value of spec.{field} takes a job with a new name; when it is mended otherwise, {AGAIN}"


def budget_of(budgets: Budgets, failure: FailureClass) -> int:
    """Restarts allowed for `failure`; 0 for what is never restarted."""
    return 0 if ACTIONS[failure] is Action.HALT else int(getattr(budgets, failure.name.lower()))


def used_of(status: TrainingJobStatus, failure: FailureClass) -> int:
    """Restarts that `failure` has cost so far."""
    return status.restarts.by_cause.get(failure, 0)


def attempts_without_progress(situation: Situation, culprit: Evidence) -> int:
    """Failed attempts in a row without a newer checkpoint, the one that `culprit` ends included.

    A pod that broke outside an attempt ends none. A smaller micro-batch and a batch left out make another attempt
    worth its while: their own budgets bound them.
    """
    status = situation.status
    if made_progress(status):
        return 0
    makes_a_difference = culprit.failure in (FailureClass.GPU_OUT_OF_MEMORY, FailureClass.NUMERICAL)
    return status.attempts_without_progress + int(status.members is not None and not makes_a_difference)


def action_of(failure: FailureStatus) -> Action:
    """What a failure that was counted leads to."""
    return Action(failure.action) if failure.action else ACTIONS[FailureClass(failure.failure_class)]


def needs_new_pod(status: TrainingJobStatus, name: str) -> bool:
    """The pod `name` may live, but its failure was counted and asks for another one in its place."""
    failure = status.failure
    return failure is not None and failure.pod == name and action_of(failure) in NEW_POD


def pause_seconds(situation: Situation) -> float:
    """How long from now until the next attempt may begin; 0 or less: now."""
    status = situation.status
    failure = status.failure
    if failure is None or failure.fence != status.fence:
        return 0.0
    if failure.rank is None:
        count = used_of(status, FailureClass(failure.failure_class))
    else:
        count = status.attempts_without_progress
        if status.attempt_started_at:
            lived = seconds_since_1970(failure.at) - seconds_since_1970(status.attempt_started_at)
            count = 0 if lived >= HEALTHY_SECONDS else count
    pause = BACKOFF_SECONDS[min(max(count, 1), len(BACKOFF_SECONDS)) - 1]
    return pause - seconds_after(failure.at, situation.now)


def _is_same_exception(before: FailureStatus | None, culprit: Evidence) -> bool:
    """The exception that ended the attempt before, at the same step: nothing that passes."""
    if before is None or culprit.exit is None or culprit.failure is not FailureClass.APPLICATION:
        return False
    told = (culprit.failure.value, culprit.message[:MESSAGE_LENGTH], culprit.exit.step)
    return before.rank is not None and (before.failure_class, before.message, before.step) == told
