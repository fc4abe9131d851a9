"""What a look adds to the record: which revision is proven, which is on its way, how far it is, which failed,
and how many pods autoscaling wants.

The record is written before anything follows from it: children are planned from what status says already. So an
operator that dies between any two writes has neither shifted traffic that nobody knows of, nor deleted what it will
need again.
"""

from collections.abc import Callable
from typing import Any

from capstan_operator.api.inference_service_status import (
    GateStatus,
    InferenceServiceStatus,
    RevisionFailure,
    RevisionStatus,
    RolloutStatus,
)
from capstan_operator.api.rollout import CanaryStep
from capstan_operator.build.store import job_of
from capstan_operator.decide.serving.fleet import Fleet, known_revision, with_revision
from capstan_operator.decide.serving.gates import judge
from capstan_operator.decide.serving.gateway import has_its_share, is_cut_off
from capstan_operator.decide.serving.health import failure_of_candidate, lacks_pods, missed_deadline
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.retry import forgive, seconds_until_tried
from capstan_operator.decide.serving.scaling import decide_size
from capstan_operator.decide.times import rfc3339, seconds_after
from capstan_operator.observe_serving import ObservedTraffic, ServedTraffic

PROVEN_SECONDS = 10.0
"""How long all pods of a revision with all traffic must stay ready until the one before it goes, if no hold is set."""
EXTENSIONS = 4
"""A step that is not decided lasts up to so many times its hold."""
FAILURES_KEPT = 5
LATE_SECONDS = 10.0
"""The Deployment is told how many pods to have at once. If it still lacks none so much later, nobody told it."""

Rule = Callable[[Fleet], InferenceServiceStatus | None]


def record(fleet: Fleet) -> InferenceServiceStatus:
    """The status with what this look adds; at most one of the rules applies to a look."""
    for rule in _RULES:
        status = rule(fleet)
        if status is not None:
            return status
    return fleet.status


def _forget_lost(fleet: Fleet) -> InferenceServiceStatus | None:
    """The proven revision's Deployment was deleted by somebody, and only the spec it was made of could restore it."""
    stable = fleet.status.stable
    if stable is None or fleet.deployment(stable) or (fleet.wanted and fleet.wanted.name == stable):
        return None
    return fleet.status.model_copy(update={"stable": None})


def _abandon(fleet: Fleet) -> InferenceServiceStatus | None:
    """The spec asks for something else by now."""
    if fleet.rollout is None or fleet.wanted is None or fleet.wanted.name == fleet.rollout.candidate:
        return None
    return fleet.status.model_copy(update={"rollout": None})


def _forgive(fleet: Fleet) -> InferenceServiceStatus | None:
    """The spec asks for something else by now: when it asks again for what was given up, that is tried again."""
    return _if_changed(fleet, forgive(fleet.status, fleet.wanted.name)) if fleet.wanted else None


def _give_up(fleet: Fleet) -> InferenceServiceStatus | None:
    """The candidate is no good: its pods say so."""
    if fleet.rollout is None:
        return None
    failure = failure_of_candidate(fleet)
    return _failed(fleet, failure) if failure else None


def _begin(fleet: Fleet) -> InferenceServiceStatus | None:
    """The spec asks for another revision than the proven one, and that one is alone."""
    wanted, status = fleet.wanted, fleet.status
    if fleet.rollout or wanted is None or wanted.name == status.stable:
        return None
    if seconds_until_tried(fleet, wanted.name) != 0.0:
        return None
    if status.stable is not None and not fleet.is_settled():
        return None
    if status.stable is not None and is_cut_off(fleet) and not fleet.is_dark():
        return None  # no request would ever reach its canary
    rollout = RolloutStatus(candidate=wanted.name, phase="Starting", started_at=fleet.moment)
    candidate = _candidate(fleet, rollout).model_copy(update={"failure": None, "gates": []})
    return with_revision(status, candidate).model_copy(update={"rollout": rollout})


def _take_first(fleet: Fleet) -> InferenceServiceStatus | None:
    """Where nothing is proven, one ready pod is better than none."""
    if fleet.rollout is None or fleet.status.stable is not None or not fleet.ready(fleet.rollout.candidate):
        return None
    return _promoted(fleet)


def _advance(fleet: Fleet) -> InferenceServiceStatus | None:
    """The candidate's next phase, or step, or the moment from which the time of this one counts."""
    rollout = fleet.rollout
    if rollout is None or fleet.status.stable is None:
        return None
    match rollout.phase:
        case "Starting":
            return _after_start(fleet, rollout)
        case "Canary":
            return _in_step(fleet, rollout)
        case "Shifting":
            return _enter(fleet, "Holding") if fleet.ready(rollout.candidate) >= fleet.size else None
        case "Holding":
            return _in_hold(fleet, rollout)


def _note_progress(fleet: Fleet) -> InferenceServiceStatus | None:
    """One more pod was ready than ever in this phase: the deadline for the next one begins."""
    rollout = fleet.rollout
    if rollout is None or rollout.since is not None or fleet.ready(rollout.candidate) <= rollout.ready:
        return None
    return _with_rollout(fleet, ready=fleet.ready(rollout.candidate), started_at=fleet.moment)


def _run_clock(fleet: Fleet) -> InferenceServiceStatus | None:
    """The deadline's time begins when pods are seen to be lacking that were asked for, and ends when none are: an
    operator that was away has neither asked for any nor seen any."""
    rollout = fleet.rollout
    if rollout is None or rollout.since is not None:
        return None
    if lacks_pods(fleet):
        return _with_rollout(fleet, started_at=fleet.moment) if rollout.started_at is None else None
    is_left = rollout.started_at is not None and seconds_after(rollout.started_at, fleet.now) >= LATE_SECONDS
    return _with_rollout(fleet, started_at=None) if is_left else None


def _miss_deadline(fleet: Fleet) -> InferenceServiceStatus | None:
    """After all that could be progress: nothing was, for too long."""
    failure = missed_deadline(fleet)
    return _failed(fleet, failure) if failure else None


def _resize(fleet: Fleet) -> InferenceServiceStatus | None:
    """Requests ask for another size. It may grow at any time, but what a rollout has to fall back on stays."""
    if fleet.spec.autoscaling is None:
        return None
    may_shrink = fleet.rollout is None and fleet.is_settled()
    resize = decide_size(fleet.spec.autoscaling, fleet.size, fleet.seen.load, may_shrink=may_shrink, now=fleet.now)
    if resize is None:
        return None
    return fleet.status.model_copy(update={"replicas": resize.replicas, "scaled": resize.message})


_RULES: tuple[Rule, ...] = (
    _forget_lost,
    _abandon,
    _forgive,
    _give_up,
    _begin,
    _take_first,
    _advance,
    _note_progress,
    _run_clock,
    _miss_deadline,
    _resize,
)


def _after_start(fleet: Fleet, rollout: RolloutStatus) -> InferenceServiceStatus | None:
    ready = fleet.ready(rollout.candidate)
    if fleet.is_dark():
        return _enter(fleet, "Holding") if ready else None
    strategy = fleet.spec.rollout.strategy
    if strategy.canary:
        return _enter(fleet, "Canary", step=0) if ready >= fleet.canary_size() else None
    if strategy.blue_green:
        return _enter(fleet, "Holding") if ready >= fleet.size else None
    return _enter(fleet, "Shifting") if ready else None


def _in_step(fleet: Fleet, rollout: RolloutStatus) -> InferenceServiceStatus | None:
    if fleet.canary is None:
        return _enter(fleet, "Shifting")  # the strategy was changed meanwhile
    if rollout.since is None:
        has_share = _is_open(fleet) and fleet.ready(rollout.candidate) >= fleet.canary_size()
        return _count_from_now(fleet, rollout) if has_share else None
    gates = _judged(fleet, rollout)
    status = _with_gates(fleet, rollout, _calm(fleet, rollout, gates))
    verdicts = {gate.verdict for gate in gates}
    step = current_step(fleet, rollout)
    elapsed = _seconds_counted(fleet, rollout)
    if "Fail" in verdicts:
        why = "; ".join(gate.message for gate in gates if gate.verdict == "Fail")
        return _refused(fleet, rollout, gates, ServingReason.GATE_FAILED, why)
    if is_cut_off(fleet):
        return _enter(fleet, "Canary", step=rollout.step)  # it counts from anew once it can be reached again
    if elapsed < step.hold_seconds:
        return _if_changed(fleet, status)
    if verdicts == {"Pass"}:
        return _after_step(fleet.after(status), rollout)
    if elapsed >= EXTENSIONS * step.hold_seconds:
        why = "; ".join(gate.message for gate in gates if gate.verdict == "Inconclusive")
        return _refused(fleet, rollout, gates, ServingReason.GATE_INCONCLUSIVE, f"undecided: {why}")
    return _if_changed(fleet, status)


def _is_open(fleet: Fleet) -> bool:
    """Requests reach the candidate as its step asks for."""
    if fleet.is_divided_by_gateway():
        return has_its_share(fleet)
    return fleet.seen.route is not None and fleet.seen.route.revision is None


def _after_step(fleet: Fleet, rollout: RolloutStatus) -> InferenceServiceStatus:
    assert fleet.canary is not None
    following = (rollout.step or 0) + 1
    if following < len(fleet.canary.steps):
        return _enter(fleet, "Canary", step=following)
    return _enter(fleet, "Shifting")


def _refused(
    fleet: Fleet, rollout: RolloutStatus, gates: tuple[GateStatus, ...], reason: ServingReason, why: str
) -> InferenceServiceStatus | None:
    """The candidate's gates do not let it pass."""
    if not fleet.spec.rollout.auto_rollback:
        return _if_changed(fleet, _with_gates(fleet, rollout, _calm(fleet, rollout, gates)))
    status = _with_gates(fleet, rollout, gates)
    generation, at = fleet.seen.service.generation, rfc3339(fleet.now)
    failure = RevisionFailure(reason=reason.value, message=why, generation=generation, at=at)
    return _failed(fleet.after(status), failure)


def _in_hold(fleet: Fleet, rollout: RolloutStatus) -> InferenceServiceStatus | None:
    has_all = fleet.seen.route is not None and fleet.seen.route.revision == rollout.candidate
    ready = fleet.ready(rollout.candidate)
    if rollout.since is None:
        is_whole = has_all and not fleet.is_divided() and ready >= fleet.size
        return _count_from_now(fleet, rollout) if is_whole else None
    if not has_all:
        return _enter(fleet, "Holding")  # it counts from anew
    is_proven = ready > 0 and _seconds_until_proven(fleet, rollout) <= 0
    return _promoted(fleet) if is_proven else None


def _seconds_until_proven(fleet: Fleet, rollout: RolloutStatus) -> float:
    """A pod that is lost in a hold is waited for at its end, but not for ever: the old revision's pods may stand where
    it is to come up. Any revision loses a pod now and then; one whose pods crash, or that has none left, is no good."""
    # A size that grew since then asks for more pods, but takes nothing from what those there are have proven.
    is_whole = fleet.ready(rollout.candidate) >= min(fleet.size, rollout.ready)
    patience = 0.0 if is_whole else fleet.spec.rollout.progress_deadline_seconds
    return hold_seconds(fleet) + patience - seconds_after(rollout.since, fleet.now)


def hold_seconds(fleet: Fleet) -> float:
    """How long the old revision stays after all traffic has moved."""
    blue_green = fleet.spec.rollout.strategy.blue_green
    return float(blue_green.hold_seconds) if blue_green else PROVEN_SECONDS


def current_step(fleet: Fleet, rollout: RolloutStatus) -> CanaryStep:
    """Of a spec that has become shorter meanwhile, the last."""
    assert fleet.canary is not None
    return fleet.canary.steps[min(rollout.step or 0, len(fleet.canary.steps) - 1)]


def seconds_until_next(fleet: Fleet) -> float | None:
    """When time alone moves the rollout on; None: something else must happen first."""
    rollout = fleet.rollout
    if rollout is None or rollout.since is None:
        return None
    if rollout.phase == "Holding":
        if not fleet.ready(rollout.candidate):
            return None
        return max(0.0, _seconds_until_proven(fleet, rollout))
    if rollout.phase == "Canary" and fleet.canary:
        hold, elapsed = current_step(fleet, rollout).hold_seconds, _seconds_counted(fleet, rollout)
        due = [seconds for seconds in (hold - elapsed, EXTENSIONS * hold - elapsed) if seconds > 0]
        return due[0] if due else None
    return None


def _counted(fleet: Fleet, rollout: RolloutStatus) -> ObservedTraffic | None:
    """The numbers of this step; None: nobody has begun to count."""
    traffic = fleet.seen.traffic
    return traffic if traffic is not None and traffic.since == rollout.since else None


def _seconds_counted(fleet: Fleet, rollout: RolloutStatus) -> float:
    """How far the step is: numbers of an operator that is gone are lost, so the time in which they came is, too."""
    traffic = _counted(fleet, rollout)
    if traffic is None:
        return 0.0
    return max(0.0, min(seconds_after(rollout.since, fleet.now), fleet.now - traffic.began))


def _judged(fleet: Fleet, rollout: RolloutStatus) -> tuple[GateStatus, ...]:
    """The verdicts of this step so far."""
    assert fleet.canary is not None
    traffic = _counted(fleet, rollout) or ObservedTraffic(since="", bounds=(), by_revision={}, began=fleet.now)
    nothing = ServedTraffic(latencies=(0,) * len(traffic.bounds))
    return judge(
        fleet.canary.gates,
        traffic.by_revision.get(rollout.candidate, nothing),
        traffic.by_revision.get(fleet.status.stable or "", nothing),
        traffic.bounds,
    )


def _calm(fleet: Fleet, rollout: RolloutStatus, gates: tuple[GateStatus, ...]) -> tuple[GateStatus, ...]:
    """`gates` with the messages on record where a verdict is the same: numbers move with every request."""
    known = {(gate.name, gate.verdict): gate for gate in _candidate(fleet, rollout).gates}
    return tuple(known.get((gate.name, gate.verdict), gate) for gate in gates)


def _with_gates(fleet: Fleet, rollout: RolloutStatus, gates: tuple[GateStatus, ...]) -> InferenceServiceStatus:
    return with_revision(fleet.status, _candidate(fleet, rollout).model_copy(update={"gates": list(gates)}))


def _candidate(fleet: Fleet, rollout: RolloutStatus) -> RevisionStatus:
    """What is known of the candidate; what somebody took from status is told anew."""
    known = known_revision(fleet.status, rollout.candidate)
    model = fleet.wanted.model if fleet.wanted else fleet.status.model
    return known or RevisionStatus(
        name=rollout.candidate,
        digest=model.digest if model else "",
        job=job_of(model.run) if model else None,
        version=model.version if model else None,
        step=model.step if model else None,
        phase=rollout.phase,
    )


def _if_changed(fleet: Fleet, status: InferenceServiceStatus) -> InferenceServiceStatus | None:
    return None if status == fleet.status else status


def _enter(fleet: Fleet, phase: str, step: int | None = None) -> InferenceServiceStatus:
    """The candidate enters a phase, or a step with new gates."""
    assert fleet.rollout is not None
    ready = fleet.ready(fleet.rollout.candidate)
    status = _with_rollout(fleet, phase=phase, step=step, started_at=fleet.moment, since=None, ready=ready)
    if step is None or status.rollout is None:
        return status
    return with_revision(status, _candidate(fleet, status.rollout).model_copy(update={"gates": []}))


def _count_from_now(fleet: Fleet, rollout: RolloutStatus) -> InferenceServiceStatus:
    return _with_rollout(fleet, since=fleet.moment, ready=fleet.ready(rollout.candidate))


def _with_rollout(fleet: Fleet, **changes: Any) -> InferenceServiceStatus:
    assert fleet.rollout is not None
    return fleet.status.model_copy(update={"rollout": fleet.rollout.model_copy(update=changes)})


def _promoted(fleet: Fleet) -> InferenceServiceStatus:
    assert fleet.rollout is not None
    return fleet.status.model_copy(update={"stable": fleet.rollout.candidate, "rollout": None})


def _failed(fleet: Fleet, failure: RevisionFailure) -> InferenceServiceStatus:
    """The candidate is given up; the record of the newest few that were is kept."""
    assert fleet.rollout is not None
    known = _candidate(fleet, fleet.rollout)
    given_up = known.model_copy(update={"phase": "Failed", "failure": failure, "failures": known.failures + 1})
    others = [one for one in fleet.status.revisions if one.name != given_up.name]
    outdated = [one.name for one in others if one.failure][: 1 - FAILURES_KEPT]
    kept = [one for one in others if one.name not in outdated]
    return fleet.status.model_copy(update={"rollout": None, "revisions": [*kept, given_up]})
