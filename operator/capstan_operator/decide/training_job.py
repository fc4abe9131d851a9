"""The decision for a TrainingJob, as a table of contents. Each step is a file of this folder."""

from capstan_operator.api.meta import Phase, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus, WorkersStatus
from capstan_operator.decide.after_end import decide_after_end
from capstan_operator.decide.blueprint import Refusal, read_blueprint
from capstan_operator.decide.chaos import chaos_deletions, learn_injected, put_chaos, seconds_until_chaos
from capstan_operator.decide.conditions import (
    find,
    put,
    put_accepted,
    put_checkpoint_verified,
    put_condition,
)
from capstan_operator.decide.events import tell
from capstan_operator.decide.goodput import account
from capstan_operator.decide.lifecycle import end_of, forget_run, record_end, seconds_until_deadline
from capstan_operator.decide.notes import learn_notes
from capstan_operator.decide.plan import Plan, make_plan
from capstan_operator.decide.progress import estimate_finish, hold_back, learn, percent_done
from capstan_operator.decide.provenance import note_end, trace
from capstan_operator.decide.queueing import (
    end_all_groups,
    end_groups,
    join_queue,
    must_end_groups,
    seconds_until_given_back,
)
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.remedies import learn_splits
from capstan_operator.decide.revival import revive
from capstan_operator.decide.situation import Situation, look
from capstan_operator.decide.sizing import count_idle, describe_size
from capstan_operator.decide.straggler import put_straggling
from capstan_operator.decide.types import Decision, EventNote
from capstan_operator.observe import Observed

LEAST_WAIT_SECONDS = 0.05


def decide_training_job(observed: Observed, now: float) -> Decision:
    """All that follows from one look at a TrainingJob at `now` (seconds since 1970).

    Pure: the same look gives the same decision, and a look at a status this function returned, with nothing else
    changed, gives that status again. Never raises for what a user wrote.
    """
    old = observed.job.status
    if observed.job.is_deleting:
        # The garbage collector removes the children by their owner; all that we could make now would be in its way.
        return Decision(status=old, end_groups=end_all_groups(observed.pods))
    if end_of(old):
        revived = revive(observed, now)
        if revived is None:
            return decide_after_end(observed, now)
        observed = revived
    blueprint = read_blueprint(observed.job, observed.settings)
    if isinstance(blueprint, Refusal):
        return _refuse(observed, blueprint, now)
    situation = look(observed, blueprint, now)
    situation = situation.after(learn(situation))
    situation = situation.after(learn_injected(situation))
    situation = situation.after(learn_notes(situation))
    situation = situation.after(learn_splits(situation))
    ended = record_end(situation)
    if ended is not None:
        situation = situation.after(note_end(situation.after(ended), situation.status))
    situation = situation.after(forget_run(situation))
    situation = situation.after(join_queue(situation))
    plan = make_plan(situation)
    if ended is not None or end_of(old):
        plan = plan.without_children()
    situation = situation.after(plan.status)
    situation = situation.after(trace(situation, old, plan.reason))
    situation = situation.after(account(situation, old))
    full = _describe(situation, plan)
    # What a pod says while it goes away will not be said again.
    every_seconds = 0.0 if situation.has_last_words else observed.settings.progress_seconds
    status, wait = hold_back(old, full, now, every_seconds)
    return Decision(
        status=status,
        apply=plan.apply,
        create=plan.create,
        end_groups=end_groups(situation.observed, situation.status),
        delete=plan.delete + tuple(pod for pod in chaos_deletions(situation) if pod not in plan.delete),
        pushes=plan.pushes,
        events=tell(situation, plan, old, status),
        requeue_after=_soonest(
            plan.wait_seconds,
            wait,
            seconds_until_deadline(situation),
            seconds_until_chaos(situation),
            0.0 if must_end_groups(situation.observed, situation.status) else None,
            seconds_until_given_back(situation),
        ),
        is_repair=plan.is_repair,
    )


def _soonest(*waits: float | None) -> float | None:
    """The shortest of `waits`, 0.0 only if it is asked for: what is left of a wait after rounding is no time at all,
    and would be looked at again and again without any passing."""
    return min(
        (wait if wait == 0.0 else max(wait, LEAST_WAIT_SECONDS) for wait in waits if wait is not None), default=None
    )


def _describe(situation: Situation, plan: Plan) -> TrainingJobStatus:
    """The whole status: what is known and planned, told in conditions, a phase and a sentence."""
    status = situation.status.model_copy(
        update={
            "observed_generation": situation.observed.job.generation,
            "phase": plan.phase.value,
            "reason": plan.reason.value,
            "message": plan.message,
            "workers": _count_workers(situation, plan),
            "percent": percent_done(plan.status),
            "estimated_finish_at": estimate_finish(plan.status, situation.now) if plan.is_running else None,
        }
    )
    status = describe_size(situation, status)
    status = put_accepted(situation, status)
    status = put(situation, status, TrainingJobCondition.RUNNING, plan.is_running, plan.reason, plan.message)
    status = put(situation, status, TrainingJobCondition.PROGRESSING, plan.is_progressing, plan.reason, plan.message)
    status = put_checkpoint_verified(situation, status)
    status = put_straggling(situation, status)
    status = put_chaos(situation, status)
    is_suspended = plan.phase is Phase.SUSPENDED
    if is_suspended or plan.phase is Phase.SUSPENDING:
        return put(situation, status, TrainingJobCondition.SUSPENDED, is_suspended, plan.reason, plan.message)
    if find(status, TrainingJobCondition.SUSPENDED) and not end_of(status):
        message = "spec.suspend is false again"
        return put(situation, status, TrainingJobCondition.SUSPENDED, False, Reason.RESUMED, message)
    return status


def _count_workers(situation: Situation, plan: Plan) -> WorkersStatus:
    """Workers that answer or are done, of those wanted."""
    fence = situation.status.fence
    if situation.blueprint.spec.suspend or plan.phase is Phase.FAILED:
        return WorkersStatus(ready=0, desired=0, summary="0/0")
    desired = situation.wanted
    has_program = plan.reason is Reason.PROGRAM_RUNNING
    ready = sum(
        worker.is_answering or worker.has_finished(fence) or (has_program and worker.is_up)
        for worker in situation.workers
        if worker.index < situation.wanted
    )
    return WorkersStatus(ready=ready, desired=desired, idle=count_idle(situation) or None, summary=f"{ready}/{desired}")


def _refuse(observed: Observed, refusal: Refusal, now: float) -> Decision:
    """Status of a job whose spec is invalid. Nothing is created; what runs goes on with the spec it started with."""
    old = observed.job.status
    message = "\n".join(refusal.problems)
    if observed.pods:
        message += "\nThe pods that exist keep running as they were started; none is replaced until the spec is valid."
    status = put_condition(
        old, TrainingJobCondition.ACCEPTED, False, Reason.INVALID_SPEC, message, now, observed.job.generation
    ).model_copy(
        update={
            "observed_generation": observed.job.generation,
            "phase": Phase.INVALID.value,
            "reason": Reason.INVALID_SPEC.value,
            "message": message,
        }
    )
    events = (EventNote("Warning", Reason.INVALID_SPEC.value, message),) if status != old else ()
    return Decision(status=status, events=events)
