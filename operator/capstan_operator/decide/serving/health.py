"""Whether a revision is good for anything: what its pods end with, and whether they get ready."""

from capstan_operator.api.inference_service_status import RevisionFailure
from capstan_operator.decide.serving.fleet import DARK_SECONDS, Fleet
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.times import rfc3339, seconds_after
from capstan_operator.observe_serving import ObservedReplica
from capstan_runtime.contract.exit_codes import ExitCode

CRASHES = 3
MESSAGE_LENGTH = 500
_HOPELESS = {
    ExitCode.CORRUPT_CHECKPOINT: ServingReason.CORRUPT_CHECKPOINT,
    ExitCode.CONFIG: ServingReason.CONFIG_ERROR,
    ExitCode.DO_NOT_RESTART: ServingReason.DO_NOT_RESTART,
}
"""What another try would only repeat."""
_SAID = {
    ServingReason.CORRUPT_CHECKPOINT: "its checkpoint does not verify",
    ServingReason.CONFIG_ERROR: "it cannot work as configured",
    ServingReason.DO_NOT_RESTART: "it asked not to be started again",
}


def failure_of_candidate(fleet: Fleet) -> RevisionFailure | None:
    """Why the revision that is on its way must be given up; None: it need not."""
    rollout = fleet.rollout
    assert rollout is not None
    # A pod that leaves may be of an earlier try.
    pods = [pod for pod in fleet.pods(rollout.candidate) if not pod.is_deleting]
    for pod in pods:
        hopeless = _hopeless(pod)
        if hopeless is not None:
            return _failure(fleet, hopeless, f"pod {pod.name}: {_SAID[hopeless]}{_words(pod)}", pod)
    if fleet.status.stable is None:
        # There is nothing to go back to: what may still come up is given the time.
        return None
    for pod in pods:
        if pod.restarts >= CRASHES:
            return _failure(
                fleet, ServingReason.CRASHING, f"pod {pod.name} ended {pod.restarts} times{_words(pod)}", pod
            )
    if _is_dark_in_vain(fleet):
        message = f"all traffic led to it, and none of its pods was ready for {DARK_SECONDS:.0f} s"
        return _failure(fleet, ServingReason.NO_READY_PODS, message)
    return None


def _is_dark_in_vain(fleet: Fleet) -> bool:
    """Nobody is served although the proven revision could: the address leads to a candidate that has lost its pods."""
    rollout, route = fleet.rollout, fleet.seen.route
    return (
        rollout is not None
        and rollout.phase == "Holding"
        and route is not None
        and route.revision == rollout.candidate
        and fleet.ready(rollout.candidate) == 0
        and fleet.ready(fleet.status.stable) > 0
        and fleet.is_long_dark()
    )


def missed_deadline(fleet: Fleet) -> RevisionFailure | None:
    """Why the candidate must be given up for the pods it lacks; None: it need not, or not yet. Only for a look that
    shows no progress: pods may have got ready while no operator was there to see it."""
    if seconds_until_given_up(fleet) != 0.0:
        return None
    assert fleet.rollout is not None
    name, deadline = fleet.rollout.candidate, fleet.spec.rollout.progress_deadline_seconds
    pods = fleet.pods(name)
    why = next((f"pod {pod.name}: {pod.waiting}" for pod in pods if pod.waiting), refused_pods(fleet, name))
    message = (
        f"no further pod was ready within {deadline} s (rollout.progressDeadlineSeconds){f': {why}' if why else ''}"
    )
    return _failure(fleet, ServingReason.PROGRESS_DEADLINE_EXCEEDED, message)


def seconds_until_given_up(fleet: Fleet) -> float | None:
    """When the candidate's deadline is due; None: none is running."""
    rollout = fleet.rollout
    if rollout is None or rollout.started_at is None or fleet.status.stable is None or not lacks_pods(fleet):
        return None
    return max(0.0, fleet.spec.rollout.progress_deadline_seconds - seconds_after(rollout.started_at, fleet.now))


def lacks_pods(fleet: Fleet) -> bool:
    """The candidate's phase waits for pods that its Deployment was told to have. It is no fault of the candidate when
    it waits for a Gateway, or for an operator that was not there to make the Deployment or to make it larger."""
    rollout = fleet.rollout
    assert rollout is not None
    needs_all = fleet.canary is None or rollout.phase in ("Shifting", "Holding")
    needed = fleet.size if needs_all else fleet.canary_size()
    asked_for = min(needed, fleet.replicas_wanted(rollout.candidate))
    return rollout.since is None and fleet.ready(rollout.candidate) < asked_for


def refused_pods(fleet: Fleet, revision: str | None) -> str | None:
    """Why a revision's Deployment cannot make pods; None: it can."""
    deployment = fleet.deployment(revision)
    return deployment.failure if deployment else None


def trouble(fleet: Fleet, revision: str | None) -> str | None:
    """The first thing that is wrong with the pods of a revision, in one sentence; None: nothing is."""
    for pod in fleet.pods(revision):
        if pod.is_ready or pod.is_deleting:
            continue
        if pod.exit_code:
            return f"pod {pod.name} ended{_words(pod)}"
        if pod.waiting:
            return f"pod {pod.name}: {pod.waiting}"
    return refused_pods(fleet, revision)


def _hopeless(pod: ObservedReplica) -> ServingReason | None:
    return next((reason for code, reason in _HOPELESS.items() if pod.exit_code == code), None)


def _words(pod: ObservedReplica) -> str:
    code = f" (exit code {pod.exit_code})" if pod.exit_code is not None else ""
    return f"{code}: {pod.exit_message or pod.exit_reason or 'it said nothing'}"


def _failure(fleet: Fleet, reason: ServingReason, message: str, pod: ObservedReplica | None = None) -> RevisionFailure:
    return RevisionFailure(
        reason=reason.value,
        message=message[:MESSAGE_LENGTH],
        pod=pod.name if pod else None,
        exit_code=pod.exit_code if pod else None,
        generation=fleet.seen.service.generation,
        at=rfc3339(fleet.now),
    )
