"""What to do next, given what has ended: an ordered list of plans, the first that applies is carried out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from capstan_operator.api.meta import Phase, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.secret import build_secret
from capstan_operator.decide.actions import pause_seconds
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.evidence import is_saving, seconds_of_start, start_limit, still_saving
from capstan_operator.decide.failure import find_culprit, restart_sentence
from capstan_operator.decide.gang import gang_problem, is_without_pods, plan_gang, with_gang
from capstan_operator.decide.lifecycle import deactivate, end_of
from capstan_operator.decide.membership import PUSH_AGAIN_SECONDS, form_attempt, plan_pushes
from capstan_operator.decide.nodes import seconds_until_relaxed
from capstan_operator.decide.placement import delete_pods, plan_creations, plan_deletions
from capstan_operator.decide.progress import is_making_steps
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker, is_changed, replicas_as_started
from capstan_operator.decide.sizing import choose_members, choose_next_world
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.types import Manifest, MembershipPush, PodDeletion
from capstan_operator.decide.waiting import slow_start, waiting_for
from capstan_runtime.contract.state import Phase as TrainersPhase


@dataclass(frozen=True, slots=True)
class Plan:
    """What one look leads to, before it is told in conditions and events."""

    status: TrainingJobStatus
    phase: Phase
    reason: Reason
    message: str
    is_running: bool = False
    is_progressing: bool = False
    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    delete: tuple[PodDeletion, ...] = ()
    pushes: tuple[MembershipPush, ...] = ()
    wait_seconds: float | None = None
    """None: nothing to wait for but news."""
    is_repair: bool = False

    def without_children(self) -> "Plan":
        """Only what may follow the status write. The children are created and deleted at the next look, which comes
        at once: they go before the status in a decision, and what ended must be on record before they do."""
        if not (self.create or self.delete):
            return self
        return replace(self, apply=(), create=(), delete=(), wait_seconds=0.0)


def make_plan(situation: Situation) -> Plan:
    """The plan of the first of these that applies; the last one always does."""
    found = (plan(situation) for plan in _PLANS)
    return next(plan for plan in found if plan is not None)


def _finished(situation: Situation) -> Plan | None:
    condition = end_of(situation.status)
    if condition is None:
        return None
    phase = Phase.SUCCEEDED if condition.type == TrainingJobCondition.SUCCEEDED else Phase.FAILED
    # The pods are seen to at the next look, which `after_end` decides.
    return Plan(situation.status, phase, Reason(condition.reason), condition.message, wait_seconds=0.0)


def _suspended(situation: Situation) -> Plan | None:
    if not situation.blueprint.spec.suspend:
        return None
    pods = list(situation.observed.pods)
    if pods:
        message = "spec.suspend is true; the pods save and stop"
        return Plan(
            situation.status,
            Phase.SUSPENDING,
            Reason.SUSPENDING,
            message,
            delete=delete_pods(pods),
            is_progressing=True,
        )
    return Plan(situation.status, Phase.SUSPENDED, Reason.SUSPENDED, "spec.suspend is true; no pod is left")


def _without_gang(situation: Situation) -> Plan | None:
    """Pods are to be placed together, and nobody could do that."""
    problem = gang_problem(situation)
    if problem is None or not is_without_pods(situation):
        return None
    return Plan(deactivate(situation), Phase.PENDING, Reason.GANG_SCHEDULER_MISSING, problem)


def _backing_off(situation: Situation) -> Plan | None:
    pause = pause_seconds(situation)
    if situation.status.members is not None or pause <= 0:
        return None
    return Plan(
        situation.status,
        Phase.RESTARTING,
        Reason.BACKING_OFF,
        restart_sentence(situation),
        is_progressing=True,
        wait_seconds=pause,
        is_repair=True,
    )


def _own_program(situation: Situation) -> Plan | None:
    """Pods with a command of the user's own run, and none of them has a supervisor that answers."""
    if not situation.blueprint.has_own_command or any(worker.answer for worker in situation.workers):
        return None
    if not all(worker.is_up or worker.has_finished(0) for worker in situation.workers):
        return None
    started = situation.status.started_at or rfc3339(situation.now)
    return Plan(
        situation.status.model_copy(update={"started_at": started}),
        Phase.RUNNING,
        Reason.PROGRAM_RUNNING,
        f"{_count(situation.wanted, 'pod')} run the command of workers.podPatch",
        is_running=True,
        is_progressing=True,
        delete=plan_deletions(situation),
    )


def _forming(situation: Situation) -> Plan | None:
    """As many workers are ready as can go on: a new attempt begins. Pods for the others are created at the next look;
    nothing that an API server may refuse stands in the way of an attempt."""
    if situation.status.members is not None or still_saving(situation) is not None:
        return None
    members, _ = choose_members(situation)
    if members is None:
        return None
    situation = situation.after(_activated(situation))
    plan = _attempt(situation.after(form_attempt(situation, members)))
    return replace(plan, apply=(), create=(), wait_seconds=0.0) if plan.create else plan


def _placing(situation: Situation) -> Plan | None:
    """Too few workers can take part yet: pods are to be created, or are on their way."""
    if situation.status.members is not None:
        return None
    create, until_more = plan_creations(situation)
    reason, message, is_wrong = waiting_for(situation)
    _, until_lost = find_culprit(situation)
    _, until_gathered = choose_members(situation)
    until_slow, is_slow = slow_start(situation)
    waits = (until_more, until_lost, until_gathered, until_slow, seconds_until_relaxed(situation))
    recovering = situation.is_recovering
    is_queued = reason is Reason.WAITING_FOR_QUOTA
    if recovering and not is_wrong and not is_queued:
        reason, message = Reason.REPLACING_PODS, restart_sentence(situation)
    saving = still_saving(situation)
    if saving is not None and not is_wrong and not is_queued:
        message = f"pod {saving} still saves what the last attempt has done; the next one begins after that"
    situation = situation.after(deactivate(situation) if is_queued else _activated(situation))
    return Plan(
        with_gang(situation),
        Phase.RESTARTING if recovering else Phase.PENDING,
        reason,
        message,
        is_progressing=not is_wrong,
        # Somebody may have deleted the Secret since; without it a kubelet waits for ever and tells nobody but events.
        apply=(_secret(situation) if create or is_slow else ()) + plan_gang(situation, is_making_pods=bool(create)),
        create=create,
        delete=plan_deletions(situation),
        wait_seconds=min((wait for wait in waits if wait is not None), default=None),
        is_repair=recovering,
    )


def _attempt(situation: Situation) -> Plan:
    """An attempt is on: who has not been told is told, pods that might join it later are seen to, and what it does is
    reported."""
    next_world, until_stable = choose_next_world(situation)
    situation = situation.after(situation.status.model_copy(update={"next_world": next_world}))
    pushes = plan_pushes(situation)
    create, until_more = plan_creations(situation)
    _, until_blame = find_culprit(situation)
    fence, members = situation.status.fence, situation.members
    is_running = _was_running(situation) or all(_is_training(worker, fence) for worker in members)
    waits = (
        None if is_running else max(0.0, start_limit(situation) - seconds_of_start(situation)) + 1.0,
        PUSH_AGAIN_SECONDS if pushes else None,
        until_stable,
        until_more,
        until_blame,
        seconds_until_relaxed(situation),
    )
    attempt = f"attempt {fence} with {_size(situation)}"
    leaving = next((w.pod.name for w in members if w.pod and is_saving(w, situation)), None)
    if is_running:
        is_evaluating = any(w.word is not None and w.word.phase is TrainersPhase.EVALUATING for w in members)
        message = f"{attempt} is {'evaluating' if is_evaluating else 'training'}"
        phase, reason = Phase.RUNNING, Reason.TRAINING
        message += f"; it saves and stops: pod {leaving} is taken away" if leaving else ""
    elif situation.is_recovering:
        phase, reason = Phase.RESTARTING, Reason.ATTEMPT_STARTING
        message = f"{attempt} is {_stage(situation)}, after {restart_sentence(situation)}"
    else:
        phase, reason, message = Phase.STARTING, Reason.ATTEMPT_STARTING, f"{attempt} is {_stage(situation)}"
    return Plan(
        with_gang(situation),
        phase,
        reason,
        message,
        is_running=is_running,
        is_progressing=True,
        apply=(_secret(situation) if create else ()) + plan_gang(situation, is_making_pods=bool(create)),
        create=create,
        delete=plan_deletions(situation),
        pushes=pushes,
        wait_seconds=min((wait for wait in waits if wait is not None), default=None),
        is_repair=situation.is_recovering and not is_running,
    )


# Nothing follows the end but cleaning up; a suspended job has no pods; a pause comes before a new attempt; and pods are
# waited for only if there is none without them.
_PLANS: tuple[Callable[[Situation], Plan | None], ...] = (
    _finished,
    _suspended,
    _without_gang,
    _backing_off,
    _own_program,
    _forming,
    _placing,
    _attempt,
)


def _activated(situation: Situation) -> TrainingJobStatus:
    """Status of a job that is at work: since when, on which run, in which world."""
    status, blueprint = situation.status, situation.blueprint
    replicas = replicas_as_started(status, blueprint)
    return status.model_copy(
        update={
            "active_since": status.active_since or rfc3339(situation.now),
            "run_digest": status.run_digest or blueprint.run_digest,
            "pods_digest": status.pods_digest or blueprint.pods_digest,
            "virtual_ranks": status.virtual_ranks or _virtual_ranks(situation),
            "workers_per_replica": replicas.workers if replicas.workers > 1 else None,
            "replica_multiple": replicas.multiple if replicas.multiple > 1 else None,
            "world": situation.world,
            "steps": status.steps or blueprint.spec.training.steps,
        }
    )


def _virtual_ranks(situation: Situation) -> int | None:
    """Those the run is started with; None: it was started by an operator that did not note them."""
    status, blueprint = situation.status, situation.blueprint
    return None if is_changed(status, blueprint) else blueprint.spec.virtual_ranks


def _secret(situation: Situation) -> tuple[Manifest, ...]:
    if is_changed(situation.status, situation.blueprint):
        # The Secret is immutable: the pods that are replaced must read what the others read.
        return ()
    return (build_secret(situation.observed.job, situation.blueprint.run, situation.observed.token),)


def _was_running(situation: Situation) -> bool:
    """This attempt has been seen running, and it is not over: a rank that leaves early, or whose peers are still to
    tell why they failed, does not make it start again."""
    before = situation.observed.job.status
    return is_true(before, TrainingJobCondition.RUNNING) and before.fence == situation.status.fence


def _is_training(worker: Worker, fence: int) -> bool:
    if worker.has_finished(fence):
        return True
    return worker.word is not None and worker.word.fence == fence and is_making_steps(worker.word)


_STAGES = ("Idle", "Starting", "Restoring", "Compiling", "Evaluating", "Stopping")
_STAGE_SENTENCES = ("handing out places", "joining", "restoring", "compiling", "evaluating", "stopping")


def _stage(situation: Situation) -> str:
    """What the worker that is furthest behind is doing."""
    fence = situation.status.fence
    phases = [w.word.phase.value if w.word and w.word.fence == fence else "Idle" for w in situation.members]
    return _STAGE_SENTENCES[min(_STAGES.index(phase) if phase in _STAGES else len(_STAGES) - 1 for phase in phases)]


def _size(situation: Situation) -> str:
    """`4 workers`, or `2 of 4 workers`."""
    world, wanted = situation.world, situation.wanted
    return _count(world, "worker") if world >= wanted else f"{world} of {_count(wanted, 'worker')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
