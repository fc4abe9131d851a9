"""Faults injected on purpose: who consents, who suffers them, and what was injected already.

Consent is the operator's flag and the namespace's label together. The ranks execute their faults themselves, exactly at
the step; only DeletePod is the operator's. What was injected is on status before anything follows from it, and nothing
that is on status is injected again, whoever restarts in between.
"""

import hashlib
from collections.abc import Iterator

from capstan_operator.api.meta import CHAOS_ALLOWED, LABEL_CHAOS, TrainingJobCondition
from capstan_operator.api.recovery_spec import Chaos
from capstan_operator.api.recovery_status import InjectedStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find, put
from capstan_operator.decide.placement import delete_pods, is_live
from capstan_operator.decide.progress import MAKES_STEPS, is_making_steps
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker, word_of
from capstan_operator.decide.times import rfc3339, rfc3339_millis, seconds_after, seconds_since_1970
from capstan_operator.decide.types import PodDeletion
from capstan_runtime.contract.chaos import Fault, Injected, Injection
from capstan_runtime.contract.state import State

INJECTED_KEPT = 100
"""As many as spec.chaos may have."""
POLL_SECONDS = 5.0
"""The longest time for which a rank that answers may have made steps we have not heard of."""


def injections_for(situation: Situation, worker: Worker) -> tuple[Injection, ...]:
    """The faults that `worker` is to suffer in the attempt that is on; the same at every look, whatever of it was
    injected since, because what was pushed once may not change."""
    rank = situation.rank_of(worker)
    return tuple(
        Injection(
            name=chaos.name,
            fault=chaos.fault,
            step=chaos.step,
            seconds=_seconds_into_attempt(chaos, situation.status),
            duration_seconds=float(chaos.duration_seconds),
        )
        for chaos in _pending(situation, before=situation.status.fence)
        if chaos.fault is not Fault.DELETE_POD and rank_for(chaos, situation.world) == rank
    )


def rank_for(chaos: Chaos, world: int) -> int:
    """The rank that suffers it in a world of this size; one that does not exist there: nobody does."""
    if chaos.rank is not None:
        return chaos.rank
    digest = hashlib.sha256(f"{chaos.seed} {chaos.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % world


def learn_injected(situation: Situation) -> TrainingJobStatus:
    """Status with every fault that was injected since: the ranks' as they report them, the operator's as they fall due.

    A DeletePod is only recorded here; `chaos_deletions` carries it out once that is written.
    """
    status = _learn_first_step(situation)
    situation = situation.after(status)
    known = {entry.name for entry in status.injected}
    new = {entry.name: entry for entry in _newly_injected(situation) if entry.name not in known}
    if not new:
        return status
    entries = [*status.injected, *sorted(new.values(), key=lambda entry: (entry.at, entry.name))]
    return status.model_copy(update={"injected": entries[-INJECTED_KEPT:]})


def chaos_deletions(situation: Situation) -> tuple[PodDeletion, ...]:
    """Pods that a recorded DeletePod is about and that are still there."""
    # A pod of the same name that came after, say after a suspension, is another one.
    deleted = {
        entry.pod: seconds_since_1970(entry.at)
        for entry in situation.observed.job.status.injected
        if entry.fault == Fault.DELETE_POD
    }
    doomed = [
        pod
        for pod in situation.observed.pods
        if pod.name in deleted and pod.created_at <= deleted[pod.name] and is_live(pod)
    ]
    return delete_pods(doomed)


def seconds_until_chaos(situation: Situation) -> float | None:
    """Seconds until a DeletePod falls due by the clock, or 0.0 when one waits to be carried out; None: neither."""
    if len(situation.status.injected) > len(situation.observed.job.status.injected):
        return 0.0
    if situation.status.members is None or situation.status.first_step_at is None:
        return None
    age = seconds_after(situation.status.first_step_at, situation.now)
    waits = [
        chaos.seconds - age
        for chaos in _pending(situation)
        if chaos.fault is Fault.DELETE_POD and chaos.seconds is not None
    ]
    return min((wait for wait in waits if wait > 0), default=None)


def put_chaos(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """Condition ChaosRefused: there only once a spec has asked for what is not allowed."""
    kind = TrainingJobCondition.CHAOS_REFUSED
    observed = situation.observed
    if situation.blueprint.spec.chaos and not observed.is_chaos_allowed:
        if not observed.settings.allow_chaos:
            message = "spec.chaos: nothing is injected: the operator runs without --allow-chaos"
            return put(situation, status, kind, True, Reason.OPERATOR_FORBIDS_CHAOS, message)
        message = (
            f"spec.chaos: nothing is injected: namespace {observed.job.namespace} is not labelled; "
            f"kubectl label namespace {observed.job.namespace} {LABEL_CHAOS}={CHAOS_ALLOWED}"
        )
        return put(situation, status, kind, True, Reason.NAMESPACE_FORBIDS_CHAOS, message)
    if find(status, kind) is None:
        return status
    return put(situation, status, kind, False, Reason.CHAOS_ALLOWED, "no fault of spec.chaos is refused")


def _pending(situation: Situation, before: int | None = None) -> Iterator[Chaos]:
    """What may be injected and was not yet; with `before`, not before that attempt."""
    if not situation.observed.is_chaos_allowed:
        return
    known = {entry.name for entry in situation.status.injected if before is None or entry.fence < before}
    yield from (chaos for chaos in situation.blueprint.spec.chaos if chaos.name not in known)


def _seconds_into_attempt(chaos: Chaos, status: TrainingJobStatus) -> float | None:
    """A user counts from the first step of the job, a rank from the first step of its attempt."""
    if chaos.seconds is None:
        return None
    if status.first_step_at is None or status.attempt_started_at is None:
        return float(chaos.seconds)
    passed = seconds_since_1970(status.attempt_started_at) - seconds_since_1970(status.first_step_at)
    return max(0.0, round(chaos.seconds - passed, 3))


def _learn_first_step(situation: Situation) -> TrainingJobStatus:
    status, word = situation.status, _speech(situation)
    if status.first_step_at is not None or word is None or word.fence != status.fence or not status.fence:
        return status
    if not is_making_steps(word):
        return status
    at = min(min((word.timeline[p] for p in MAKES_STEPS & word.timeline.keys()), default=situation.now), situation.now)
    return status.model_copy(update={"first_step_at": rfc3339(at)})


def _newly_injected(situation: Situation) -> Iterator[InjectedStatus]:
    for pod in situation.observed.pods:
        word = word_of(pod, situation.observed)
        for injected in word.injected if word else ():
            yield _entry(injected, pod.name, word.fence if word else 0)
    for chaos in _pending(situation):
        worker = _victim(chaos, situation)
        if worker is None or worker.pod is None:
            continue
        if chaos.fault is Fault.DELETE_POD:
            step = _due_deletion(chaos, situation)
            if step is not None and worker.is_up:
                injected = _injected(chaos, situation, step, situation.now)
                yield _entry(injected, worker.pod.name, situation.status.fence)
        elif chaos.fault is Fault.LOSE_NODE and _has_gone_dark(chaos, worker, situation):
            step = worker.answer.step if worker.answer else 0
            injected = _injected(chaos, situation, step, situation.now - (worker.silent_seconds or 0.0))
            # It may have gone in the attempt before, if a peer was blamed for what followed.
            yield _entry(injected, worker.pod.name, worker.answer.fence if worker.answer else situation.status.fence)


def _injected(chaos: Chaos, situation: Situation, step: int, at: float) -> Injected:
    return Injected(name=chaos.name, fault=chaos.fault, rank=rank_for(chaos, situation.world), step=step, at=at)


def _entry(injected: Injected, pod: str, fence: int) -> InjectedStatus:
    return InjectedStatus(
        name=injected.name,
        fault=injected.fault.value,
        fence=fence,
        rank=injected.rank,
        pod=pod,
        step=injected.step,
        at=rfc3339_millis(injected.at),
    )


def _victim(chaos: Chaos, situation: Situation) -> Worker | None:
    """The worker of the attempt that is on which is to suffer it; None: none is, or it has no such rank."""
    members = situation.members
    rank = rank_for(chaos, len(members)) if members else 0
    return members[rank] if rank < len(members) else None


def _speech(situation: Situation) -> State | None:
    """What rank 0 says, or said last."""
    return situation.speaker.word if situation.speaker else None


def _due_deletion(chaos: Chaos, situation: Situation) -> int | None:
    """The step at which the pod is to be deleted now; None: not now."""
    status, word = situation.status, _speech(situation)
    if word is None or word.fence != status.fence or not is_making_steps(word) or word.exit is not None:
        return None
    return word.step if _is_due(chaos, status, word.step, situation.now) else None


def _has_gone_dark(chaos: Chaos, worker: Worker, situation: Situation) -> bool:
    """A rank that loses its node may not have been heard saying so. If it was told to, and silently is gone after the
    time at which it was to go, it did: doubt must not make it go again and again."""
    status, answer = situation.status, worker.answer
    if answer is None or not answer.fence or not situation.is_lost(worker):
        return False
    step_seconds = answer.metrics.get("step_seconds") or status.metrics.get("step_seconds")
    unheard = ((worker.silent_seconds or 0.0) + POLL_SECONDS) / step_seconds if step_seconds else float("inf")
    return _is_due(chaos, status, answer.step + unheard, situation.now)


def _is_due(chaos: Chaos, status: TrainingJobStatus, step: float, now: float) -> bool:
    if chaos.step is not None:
        return step >= chaos.step
    return status.first_step_at is not None and seconds_after(status.first_step_at, now) >= (chaos.seconds or 0)
