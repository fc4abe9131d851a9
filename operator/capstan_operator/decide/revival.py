"""A job that failed goes on when its user takes back what ended it: a limit is raised, or the job is suspended.

Days of GPU time are in its checkpoints, and they are the run's own: a new TrainingJob could not go on from them.
"""

from dataclasses import replace

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.api.training_job_status import Restarts, TrainingJobStatus
from capstan_operator.decide.actions import Action, budget_of, used_of
from capstan_operator.decide.blueprint import Refusal, read_blueprint
from capstan_operator.decide.conditions import find, put_condition
from capstan_operator.decide.reasons import Reason, is_budget
from capstan_operator.observe import Observed
from capstan_runtime.contract.exit_codes import FailureClass


def revive(observed: Observed, now: float) -> Observed | None:
    """The same look at the job as it was before it failed; None: it is to stay as it has ended."""
    status = observed.job.status
    ended = find(status, TrainingJobCondition.FAILED)
    if ended is None or ended.status != "True":
        return None
    blueprint = read_blueprint(observed.job, observed.settings)
    if isinstance(blueprint, Refusal):
        return None
    if blueprint.spec.suspend:
        message = "spec.suspend is true: the job may be resumed"
    elif _is_limit_raised(Reason(ended.reason), status, blueprint.spec):
        message = f"{_limit(Reason(ended.reason))} was raised"
        status = _charged(status, Reason(ended.reason))
    else:
        return None
    status = put_condition(
        status, TrainingJobCondition.FAILED, False, Reason.REVIVED, message, now, observed.job.generation
    ).model_copy(update={"finished_at": None, "cleaned_up_at": None})
    if observed.job.status.cleaned_up_at is not None:
        # Nothing is left that reads the run as it was: neither a pod nor the Secret.
        pods = status.pods_digest if status.pods_digest == blueprint.pods_digest else None
        status = status.model_copy(update={"run_digest": None, "pods_digest": pods})
    return replace(observed, job=replace(observed.job, status=status))


def _is_limit_raised(reason: Reason, status: TrainingJobStatus, spec: TrainingJobSpec) -> bool:
    """What the job had used up when it failed is less than what it may use now."""
    if reason is Reason.DEADLINE_EXCEEDED:
        deadline = spec.active_deadline_seconds
        return deadline is None or (status.active_seconds or 0.0) < deadline
    if status.failure is None:
        return False
    if reason is Reason.NO_PROGRESS:
        return status.attempts_without_progress < spec.recovery.no_progress_attempts
    failure = FailureClass(status.failure.failure_class)
    return is_budget(reason) and used_of(status, failure) < budget_of(spec.recovery.budgets, failure)


def _limit(reason: Reason) -> str:
    if reason is Reason.DEADLINE_EXCEEDED:
        return "spec.activeDeadlineSeconds"
    return "spec.recovery.noProgressAttempts" if reason is Reason.NO_PROGRESS else "spec.recovery.budgets"


def _charged(status: TrainingJobStatus, reason: Reason) -> TrainingJobStatus:
    """The restart that the last failure was not granted then is granted, and counted, now. All its pods are new."""
    failure = status.failure
    if failure is None or reason is Reason.DEADLINE_EXCEEDED:
        return status
    cause = FailureClass(failure.failure_class)
    used = status.restarts.by_cause | {cause.value: used_of(status, cause) + 1}
    return status.model_copy(
        update={
            "restarts": Restarts(total=status.restarts.total + 1, by_cause=dict(sorted(used.items()))),
            "failure": failure.model_copy(update={"action": Action.REPLACE_POD.value}),
        }
    )
