"""What has become of the run under way."""

from dataclasses import dataclass, replace

from pydantic import ValidationError

from capstan_operator.api.benchmark_status import RunningTrialStatus
from capstan_operator.api.meta import InferenceServiceCondition, Phase, TrainingJobCondition
from capstan_operator.decide.bench.look import Look, makes_service, pod_names
from capstan_operator.decide.bench.plan import Trial
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.lifecycle import active_seconds
from capstan_operator.decide.provenance import PREEMPTED
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.times import seconds_after
from capstan_operator.decide.waiting import WAITING_REASONS
from capstan_operator.observe_benchmark import ObservedBenchPod
from capstan_operator.observe_serving import ObservedService
from capstan_runtime.contract.benchmark import Summary, TrialEnd
from capstan_runtime.contract.exit_codes import ExitCode

GRACE_SECONDS = 30.0
"""After the deadline: a pod that is still alive says itself that it ran into it."""
REASON_LENGTH = 400
_FINAL = frozenset({Reason.CONFIG_ERROR.value, Reason.DO_NOT_RESTART.value})
"""How a TrainingJob fails that another attempt would only repeat."""
TROUBLES = frozenset({BenchReason.UNSCHEDULABLE, BenchReason.IMAGE_NOT_PULLED, BenchReason.CONTAINER_NOT_CREATED})
"""What keeps a pod from starting, called as a TrainingJob calls it."""


@dataclass(frozen=True, slots=True)
class Underway:
    """It has not ended."""

    uid: str | None
    """Of what was made for it; None: nothing was."""
    waits: str | None = None
    """What it waits for, in a clause; None: nothing is in its way."""
    trouble: BenchReason | None = None
    """Why a pod of it does not start; None: pods start, or nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Done:
    """It is finished, and its results are in the store."""

    job_uid: str | None = None
    """Of the TrainingJob that it was; None: it was a pod."""
    summary: Summary | None = None
    """Of the report; None: it was a trial."""


@dataclass(frozen=True, slots=True)
class Broken:
    """It failed."""

    reason: str
    is_final: bool = False
    """Another attempt would only repeat it."""


Outcome = Underway | Done | Broken


def outcome_of(look: Look, running: RunningTrialStatus) -> Outcome:
    """What the children of this attempt show."""
    trial = look.current
    name = look.child(running.trial, running.attempt)
    if trial is None:
        found = _of_report(look, name, running.uid)
    elif look.arm_of(trial).runs_jobs:
        found = _of_job(look, name, running.uid)
    elif makes_service(look, trial):
        found = _of_service(look, trial, running)
    else:
        found = _of_pods(look, pod_names(look, trial, running.attempt), running.uid)
    return _unless_late(look, running, found)


def _unless_late(look: Look, running: RunningTrialStatus, found: Outcome) -> Outcome:
    left = seconds_until_late(look, running)
    if not isinstance(found, Underway) or left is None or left > 0:
        return found
    waits = f": {found.waits}" if found.waits else ""
    return Broken(f"was not done after {look.spec.trial_deadline_seconds} s (spec.trialDeadlineSeconds){waits}")


def seconds_until_late(look: Look, running: RunningTrialStatus) -> float | None:
    """Until the attempt is given up; None: nothing was made for it yet, and what is in the way is said."""
    if running.uid is None:
        return None
    found = look.job(look.child(running.trial, running.attempt))
    if found is not None and found.job.status.queue is not None:
        elapsed = active_seconds(found.job.status, look.now)  # what it waits for quota is nobody's fault
    else:
        elapsed = seconds_after(running.started_at, look.now)
    return look.spec.trial_deadline_seconds + GRACE_SECONDS - elapsed


def _of_job(look: Look, name: str, uid: str | None) -> Outcome:
    found = look.job(name)
    if found is None or (uid is not None and found.job.uid != uid):
        return _missing("TrainingJob", name, uid)
    job, status = found.job, found.job.status
    failed = find(status, TrainingJobCondition.FAILED)
    restarts = status.restarts.total
    if job.is_deleting:
        return _missing("TrainingJob", name, uid, f"TrainingJob {name} of an earlier try is being deleted")
    if restarts:
        cause = status.failure.message if status.failure else "the cause is not known"
        return Broken(_short(f"TrainingJob {name} had to restart, which would be measured, too: {cause}"))
    if any(record.cause == PREEMPTED for record in status.recoveries):
        return Broken(f"TrainingJob {name} was preempted, and saving and resuming would be measured, too")
    if is_true(status, TrainingJobCondition.SUCCEEDED):
        return Done(job_uid=job.uid)
    if failed is not None and failed.status == "True":
        return Broken(_short(f"TrainingJob {name} failed: {failed.message}"), failed.reason in _FINAL)
    accepted = find(status, TrainingJobCondition.ACCEPTED)
    if accepted is not None and accepted.reason == Reason.INVALID_SPEC.value:
        return Broken(_short(f"TrainingJob {name} is refused: {accepted.message}"), is_final=True)
    is_held_up = status.phase != Phase.RUNNING.value and status.message
    if not is_held_up:
        return Underway(job.uid)
    trouble = BenchReason(status.reason) if status.reason in TROUBLES else None
    return Underway(job.uid, f"TrainingJob {name}: {status.message}", trouble)


def _of_service(look: Look, trial: Trial, running: RunningTrialStatus) -> Outcome:
    name = look.child(running.trial, running.attempt)
    service = look.service(name)
    if service is None or (running.uid is not None and service.uid != running.uid):
        return _missing("InferenceService", name, running.uid)
    if service.is_deleting:
        return _missing("InferenceService", name, running.uid, f"InferenceService {name} is being deleted")
    if look.pod(name) is not None:
        load = _of_pods(look, pod_names(look, trial, running.attempt), None)
        return replace(load, uid=service.uid) if isinstance(load, Underway) else load
    if url_of(service) is not None:
        return Underway(service.uid)
    refused = find(service.status, InferenceServiceCondition.ACCEPTED)
    if refused is not None and refused.status == "False":
        return Broken(_short(f"InferenceService {name} is refused: {refused.message}"), is_final=True)
    given_up = next((one.failure for one in service.status.revisions if one.failure), None)
    if given_up is not None:
        return Broken(_short(f"InferenceService {name} does not come up: {given_up.message}"))
    return Underway(service.uid, f"InferenceService {name}: {service.status.message or 'has not been looked at yet'}")


def url_of(service: ObservedService) -> str | None:
    """Where load goes; None: not all of it is ready yet."""
    status = service.status
    is_whole = is_true(status, InferenceServiceCondition.SERVING) and is_true(
        status, InferenceServiceCondition.UP_TO_DATE
    )
    counts = (status.ready or "").split("/")
    return status.url if is_whole and len(counts) == 2 and counts[0] == counts[1] else None


def _of_report(look: Look, name: str, uid: str | None) -> Outcome:
    found = _of_pods(look, (name,), uid)
    pod = look.pod(name)
    if not isinstance(found, Done) or pod is None:
        return found
    try:
        # Pods may be ahead of the operator.
        summary = Summary.model_validate_json(pod.message, by_alias=True, by_name=False, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        return Broken(_short(f"pod {name} left no summary that can be read: {where}: {first['msg']}"))
    return Done(summary=summary)


def _of_pods(look: Look, names: tuple[str, ...], uid: str | None) -> Outcome:
    """All ranks must succeed; the first that fails ends the attempt."""
    pods = [pod for name in names if (pod := look.pod(name)) is not None]
    lead = look.pod(names[0])
    broken = sorted((found for pod in pods if (found := _broken(pod))), key=lambda one: not one.is_final)
    if broken:
        return broken[0]
    if lead is None or (uid is not None and lead.uid != uid):
        return _missing("pod", names[0], uid)
    leaving = next((pod for pod in pods if pod.is_deleting and pod.phase not in ("Succeeded", "Failed")), None)
    if leaving is not None:
        return _missing("pod", leaving.name, uid, f"pod {leaving.name} of an earlier try is being deleted")
    if len(pods) == len(names) and all(pod.phase == "Succeeded" for pod in pods):
        return Done()
    if lead.phase == "Succeeded" and len(pods) < len(names):
        # They were there, or it would not have come to an end.
        gone = next(name for name in names if look.pod(name) is None)
        return _missing("pod", gone, lead.uid)
    held_up = next((pod for pod in pods if pod.waiting), None)
    if held_up is None:
        return Underway(lead.uid)
    return Underway(lead.uid, _short(f"pod {held_up.name}: {held_up.waiting}"), _trouble_of(held_up))


def _trouble_of(pod: ObservedBenchPod) -> BenchReason | None:
    word = (pod.waiting or "").partition(":")[0]
    # Told only of a container that is not created for long.
    found = Reason.CONTAINER_NOT_CREATED if word == "ContainerCreating" else WAITING_REASONS.get(word)
    return BenchReason(found.value) if found else None


def _broken(pod: ObservedBenchPod) -> Broken | None:
    """How a pod failed; None: it has not."""
    if pod.phase != "Failed" and not pod.exit_code:
        return None
    end = _end_of(pod)
    is_final = pod.exit_code == ExitCode.CONFIG or (end is not None and end.is_final)
    if end is not None:
        return Broken(_short(f"pod {pod.name}: {end.message}"), is_final)
    lines = [line.strip() for line in pod.message.splitlines() if line.strip()]
    code = f"exit code {pod.exit_code}" if pod.exit_code is not None else "no exit code"
    words = f": {lines[-1]}" if lines else ""
    return Broken(_short(f"pod {pod.name} ended with {pod.exit_reason or 'Error'}, {code}{words}"), is_final)


def _end_of(pod: ObservedBenchPod) -> TrialEnd | None:
    try:
        return TrialEnd.model_validate_json(pod.message, by_alias=True, by_name=False, extra="ignore")
    except ValidationError:
        return None


def _missing(kind: str, name: str, uid: str | None, waits: str | None = None) -> Outcome:
    """Nothing was made yet, or it is gone before it was done: deleted, evicted, or lost with its node."""
    if uid is None:
        return Underway(None, waits)
    return Broken(f"{kind} {name} was deleted before it was done")


def _short(text: str) -> str:
    """Characters that JSON writes in six bytes are left out: `size.py` counts on four."""
    text = "".join(one if one.isprintable() or one == "\n" else " " for one in text)
    return text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 1]}…"
