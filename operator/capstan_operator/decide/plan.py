"""What to do next, given what has ended: an ordered list of plans, the first that applies is carried out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from capstan_operator.api.meta import Phase, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.secret import build_secret
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.failure import find_culprit, pause_seconds, restart_sentence
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.membership import PUSH_AGAIN_SECONDS, form_attempt, plan_pushes
from capstan_operator.decide.placement import delete_pods, plan_creations, plan_deletions
from capstan_operator.decide.progress import IN_WORLD
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker, is_changed
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.types import Manifest, MembershipPush, PodDeletion
from capstan_operator.observe import ObservedPod

WAITING_REASONS = {
    "Unschedulable": Reason.UNSCHEDULABLE,
    "SchedulerError": Reason.UNSCHEDULABLE,
    "ErrImagePull": Reason.IMAGE_NOT_PULLED,
    "ImagePullBackOff": Reason.IMAGE_NOT_PULLED,
    "ErrImageNeverPull": Reason.IMAGE_NOT_PULLED,
    "InvalidImageName": Reason.IMAGE_NOT_PULLED,
    "ImageInspectError": Reason.IMAGE_NOT_PULLED,
    "CreateContainerConfigError": Reason.CONTAINER_NOT_CREATED,
    "CreateContainerError": Reason.CONTAINER_NOT_CREATED,
    "RunContainerError": Reason.CONTAINER_NOT_CREATED,
}
"""Kubernetes' words for why a pod waits, in ours."""

START_SECONDS = 60.0
"""A pod that has a node and is older than this without having started is worth a word, and another look at what the
operator owes it: its Secret."""


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
        f"{_count(situation.world, 'pod')} run the command of workers.podPatch",
        is_running=True,
        is_progressing=True,
        delete=plan_deletions(situation),
    )


def _placing(situation: Situation) -> Plan | None:
    """Some worker cannot take part yet: its pod is to be created, or is on its way."""
    if situation.status.members is not None:
        return None
    create, is_more_to_come = plan_creations(situation)
    if not create and all(worker.is_ready for worker in situation.workers):
        return None
    reason, message, is_wrong = _waiting_for(situation)
    status = _activated(situation)
    _, until_lost = find_culprit(situation)
    until_slow, is_slow = _slow_start(situation)
    waits = [wait for wait in (until_lost, until_slow) if wait is not None]
    recovering = situation.is_recovering
    if recovering and not is_wrong:
        reason, message = Reason.REPLACING_PODS, restart_sentence(situation)
    return Plan(
        status,
        Phase.RESTARTING if recovering else Phase.PENDING,
        reason,
        message,
        is_progressing=not is_wrong,
        # Somebody may have deleted the Secret since; without it a kubelet waits for ever and tells nobody but events.
        apply=_secret(situation) if create or is_slow else (),
        create=create,
        delete=plan_deletions(situation),
        wait_seconds=0.0 if is_more_to_come else min(waits, default=None),
        is_repair=recovering,
    )


def _forming(situation: Situation) -> Plan | None:
    """Everybody is ready: a new attempt begins."""
    if situation.status.members is not None:
        return None
    return _attempt(situation.after(form_attempt(situation.after(_activated(situation)))))


def _attempt(situation: Situation) -> Plan:
    """An attempt is on: who has not been told is told, and what it does is reported."""
    pushes = plan_pushes(situation)
    _, wait = find_culprit(situation)
    waits = [PUSH_AGAIN_SECONDS] if pushes else []
    waits += [wait] if wait is not None else []
    fence = situation.status.fence
    is_running = _was_running(situation) or all(_is_in_world(worker, fence) for worker in situation.workers)
    attempt = f"attempt {fence} with {_count(situation.world, 'worker')}"
    if is_running:
        phase, reason, message = Phase.RUNNING, Reason.TRAINING, f"{attempt} is training"
    elif situation.is_recovering:
        phase, reason = Phase.RESTARTING, Reason.ATTEMPT_STARTING
        message = f"{attempt} is {_stage(situation)}, after {restart_sentence(situation)}"
    else:
        phase, reason, message = Phase.STARTING, Reason.ATTEMPT_STARTING, f"{attempt} is {_stage(situation)}"
    return Plan(
        situation.status,
        phase,
        reason,
        message,
        is_running=is_running,
        is_progressing=True,
        delete=plan_deletions(situation),
        pushes=pushes,
        wait_seconds=min(waits, default=None),
        is_repair=situation.is_recovering and not is_running,
    )


# Nothing follows the end but cleaning up; a suspended job has no pods; a pause comes before new pods, pods before an
# attempt, and an attempt before its progress.
_PLANS: tuple[Callable[[Situation], Plan | None], ...] = (
    _finished,
    _suspended,
    _backing_off,
    _own_program,
    _placing,
    _forming,
    _attempt,
)


def _activated(situation: Situation) -> TrainingJobStatus:
    """Status of a job that is at work: since when, on which run, in which world."""
    status, blueprint = situation.status, situation.blueprint
    return status.model_copy(
        update={
            "active_since": status.active_since or rfc3339(situation.now),
            "run_digest": status.run_digest or blueprint.run_digest,
            "world": situation.world,
            "steps": status.steps or blueprint.spec.training.steps,
        }
    )


def _secret(situation: Situation) -> tuple[Manifest, ...]:
    if is_changed(situation.status, situation.blueprint):
        # The Secret is immutable: the pods that are replaced must read what the others read.
        return ()
    return (build_secret(situation.observed.job, situation.blueprint.run, situation.observed.token),)


def _waiting_for(situation: Situation) -> tuple[Reason, str, bool]:
    """(reason, sentence, whether something is wrong) of the first worker that holds the others up."""
    for worker in situation.workers:
        waiting = worker.pod.waiting if worker.pod and not worker.pod.is_deleting else None
        if worker.pod and waiting:
            reason = WAITING_REASONS.get(waiting.partition(":")[0], Reason.WAITING_FOR_WORKERS)
            return reason, f"pod {worker.pod.name}: {waiting}", reason is not Reason.WAITING_FOR_WORKERS
    message = f"waiting for {_count(situation.world, 'pod')} to start"
    slow = next((pod for pod in _starting_pods(situation) if situation.now - pod.created_at >= START_SECONDS), None)
    if slow is not None:
        message += f"; {slow.name} is slow to start on node {slow.node}: kubectl describe pod {slow.name}"
    return Reason.WAITING_FOR_WORKERS, message, False


def _starting_pods(situation: Situation) -> Iterator[ObservedPod]:
    """Newest pods that have a node, on which they do not run yet, and nothing says why."""
    for worker in situation.workers:
        pod = worker.pod
        if pod and pod.phase == "Pending" and pod.node and not pod.waiting and not pod.is_deleting:
            yield pod


def _slow_start(situation: Situation) -> tuple[float | None, bool]:
    """(seconds until a pod that starts is worth a look for being slow, or None; whether one is slow now)."""
    ages = [situation.now - pod.created_at for pod in _starting_pods(situation)]
    waits = [START_SECONDS if age >= START_SECONDS else START_SECONDS - age for age in ages]
    return min(waits, default=None), any(age >= START_SECONDS for age in ages)


def _was_running(situation: Situation) -> bool:
    """This attempt has been seen running, and it is not over: a rank that leaves early, or whose peers are still to
    tell why they failed, does not make it start again."""
    before = situation.observed.job.status
    return is_true(before, TrainingJobCondition.RUNNING) and before.fence == situation.status.fence


def _is_in_world(worker: Worker, fence: int) -> bool:
    if worker.has_finished(fence):
        return True
    return worker.word is not None and worker.word.fence == fence and worker.word.phase in IN_WORLD


_STAGES = ("Idle", "Starting", "Restoring", "Compiling")
_STAGE_SENTENCES = ("handing out places", "joining", "restoring", "compiling")


def _stage(situation: Situation) -> str:
    """What the worker that is furthest behind is doing."""
    fence = situation.status.fence
    phases = [w.word.phase.value if w.word and w.word.fence == fence else "Idle" for w in situation.workers]
    return _STAGE_SENTENCES[min(_STAGES.index(phase) if phase in _STAGES else len(_STAGES) - 1 for phase in phases)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
