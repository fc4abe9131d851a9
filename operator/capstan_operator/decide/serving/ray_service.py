"""An InferenceService whose replicas KubeRay keeps: what its RayService shall be, and what KubeRay says of it.

KubeRay moves the traffic. We say which revision it shall serve, one RayService for all of them, and believe what stands
on its status.
"""

from functools import partial

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, RevisionStatus, RolloutStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.build.serving_ray import (
    KUBERAY_API,
    LONGEST_RAY_SERVICE_NAME,
    build_ray_secret,
    build_ray_service,
    serve_service_name,
)
from capstan_operator.build.serving_revision import Revision
from capstan_operator.build.store import job_of
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.conditions import put_condition
from capstan_operator.decide.serving.describe import SHORT_DIGEST, Headline, served_name
from capstan_operator.decide.serving.events import tell
from capstan_operator.decide.serving.fleet import known_revision
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.salvage import Refused
from capstan_operator.decide.serving.types import ChildDeletion, NoModel, ServingDecision
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.types import Manifest
from capstan_operator.observe_serving import ObservedRayService, ObservedServing
from capstan_runtime.contract.env import SERVE_PORT


def is_kept_by_kuberay(seen: ObservedServing, spec: InferenceServiceSpec) -> bool:
    """Whoever serves stays, whatever the spec asks for."""
    return seen.ray_service is not None or (spec.backend == "RayService" and not seen.deployments)


def backend_refusal(spec: InferenceServiceSpec, seen: ObservedServing) -> tuple[Refusal, ServingReason] | None:
    """Why spec.backend cannot be honoured; None: it can. While one backend serves, the other is refused: each has an
    address of its own, and no order of deletion keeps the requests of those who know the old one."""
    name = seen.service.name
    if spec.backend != "RayService":
        if seen.ray_service is None:
            return None
        return _fixed(seen, "RayService", spec.backend)
    if seen.deployments:
        return _fixed(seen, "Standalone", spec.backend)
    if len(name) > LONGEST_RAY_SERVICE_NAME:
        return (
            Refusal(
                (
                    f"metadata.name: {name} has {len(name)} characters, and KubeRay takes {LONGEST_RAY_SERVICE_NAME}; "
                    "choose a shorter one, or set backend Standalone",
                )
            ),
            ServingReason.INVALID_SPEC,
        )
    if not seen.has_kuberay:
        return (
            Refusal(
                (
                    f"spec.backend: RayService needs RayServices of {KUBERAY_API}, which this cluster does not serve; "
                    "install KubeRay, or set backend Standalone",
                )
            ),
            ServingReason.KUBERAY_MISSING,
        )
    return None


def _fixed(seen: ObservedServing, now: str, wanted: str) -> tuple[Refusal, ServingReason]:
    problem = (
        f"spec.backend: {now} serves at {seen.service.status.url or 'an address of its own'}, and {wanted} would serve "
        f"at another; set it back to {now}, make another InferenceService, and delete this one when nobody uses it"
    )
    return Refusal((problem,)), ServingReason.BACKEND_FIXED


def decide_ray_service(
    observed: ObservedServing,
    spec: InferenceServiceSpec,
    known: InferenceServiceStatus,
    wanted: Revision | None,
    obstacle: NoModel | Refused | None,
    now: float,
) -> ServingDecision:
    """All that follows from one look. As with pods of our own, what is new is recorded before anything is made of it:
    Secrets are found again by the revisions on status."""
    old, seen = observed.service.status, observed.ray_service
    # KubeRay goes on with what it was told, whatever is wrong with the spec.
    recorded = _record(old if isinstance(obstacle, Refused) else known, spec, wanted, seen, now)
    headline = _headline(observed, recorded, obstacle)
    status = _describe(observed, spec, recorded, headline, wanted, now)
    status = _put_accepted(observed, status, obstacle, now)
    events = tell(old, status)
    names = {one.name for one in status.revisions}
    if wanted is not None and known_revision(old, wanted.name) is None:
        return ServingDecision(status=status, events=events, requeue_after=0.0)
    return ServingDecision(
        status=status,
        apply=_apply(observed, spec, wanted),
        delete=tuple(ChildDeletion("Secret", one.name) for one in old.revisions if one.name not in names),
        events=events,
    )


def _apply(observed: ObservedServing, spec: InferenceServiceSpec, wanted: Revision | None) -> tuple[Manifest, ...]:
    owner, seen = observed.service, observed.ray_service
    if wanted is None:
        return ()
    assert spec.rollout.strategy.blue_green is not None  # nothing else is accepted
    delay = spec.rollout.strategy.blue_green.hold_seconds
    service = build_ray_service(owner, wanted, delay)
    if seen is None or seen.revision != wanted.name:
        return (build_ray_secret(owner, wanted, observed.ray_token), service)
    return (service,) if seen.deletion_delay_seconds != delay else ()


def _record(
    known: InferenceServiceStatus,
    spec: InferenceServiceSpec,
    wanted: Revision | None,
    seen: ObservedRayService | None,
    now: float,
) -> InferenceServiceStatus:
    """Which revision has the traffic, which is to have it, and those whose clusters may still be there."""
    target = wanted.name if wanted else seen.revision if seen else None
    revisions = list(known.revisions)
    if wanted is not None and known_revision(known, wanted.name) is None:
        revisions.append(_new_revision(wanted, spec))
    elif target is None or known_revision(known, target) is None:
        return known
    # Once it was proven, it stays so, whatever KubeRay does meanwhile.
    stable = known.stable if seen is not None else None
    was_proven = stable == target and known.rollout is None
    is_asked = seen is not None and seen.revision == target
    is_proven = is_asked and (was_proven or (seen is not None and seen.is_settled and _answers(seen)))
    rollout = known.rollout if known.rollout and known.rollout.candidate == target else None
    if not is_proven and rollout is None:
        rollout = RolloutStatus(candidate=target, phase="Starting", started_at=rfc3339(now))
    return known.model_copy(
        update={
            "stable": target if is_proven else stable,
            "rollout": None if is_proven else rollout,
            "revisions": [one for one in revisions if one.name == target or not is_proven],
        }
    )


def _new_revision(wanted: Revision, spec: InferenceServiceSpec) -> RevisionStatus:
    return RevisionStatus(
        name=wanted.name,
        digest=wanted.model.digest,
        job=job_of(wanted.model.run),
        version=wanted.model.version,
        step=wanted.model.step,
        phase="Starting",
        total=spec.replicas or 1,
    )


def _answers(seen: ObservedRayService | None) -> bool:
    """KubeRay counts pods whose proxy is there. Whether there is an application behind it, Serve says; KubeRay does not
    ask the old cluster while it waits for the new one."""
    return seen is not None and seen.endpoints > 0 and seen.application in (None, "RUNNING")


def _headline(
    observed: ObservedServing, status: InferenceServiceStatus, obstacle: NoModel | Refused | None
) -> Headline:
    seen = observed.ray_service
    who = f"{status.stable} serves" if status.stable and _answers(seen) else None
    if isinstance(obstacle, Refused):
        dark = _why_dark(observed) if status.stable else "there is nothing else to serve"
        return Headline(obstacle.reason.value, obstacle.told(who or dark))
    if obstacle is not None:
        return Headline(obstacle.reason.value, obstacle.message)
    serves = f"; {who}" if who else ""
    if seen is not None and seen.problem:
        message = f"RayService {observed.service.name} cannot go on: {seen.problem}{serves}"
        return Headline(ServingReason.RAY_SERVICE_FAILING.value, message)
    if status.rollout is not None:
        message = f"the Ray cluster of {status.rollout.candidate} comes up{serves}"
        return Headline(ServingReason.STARTING.value, message)
    if not _answers(seen):
        return Headline(ServingReason.NO_READY_PODS.value, _why_dark(observed))
    return Headline(ServingReason.LIVE.value, f"{status.stable} has all traffic")


def _why_dark(observed: ObservedServing) -> str:
    seen = observed.ray_service
    if seen is not None and seen.endpoints:
        return f"Ray Serve says that the application is {seen.application}"
    return f"no pod behind {serve_service_name(observed.service.name)} is ready"


def _describe(
    observed: ObservedServing,
    spec: InferenceServiceSpec,
    recorded: InferenceServiceStatus,
    headline: Headline,
    wanted: Revision | None,
    now: float,
) -> InferenceServiceStatus:
    service, seen = observed.service, observed.ray_service
    answers = _answers(seen)
    leading = known_revision(recorded, recorded.stable) if answers else None
    endpoints = seen.endpoints if seen else 0
    url = f"http://{serve_service_name(service.name)}.{service.namespace}.svc:{SERVE_PORT}"
    status = recorded.model_copy(
        update={
            "observed_generation": service.generation,
            "reason": headline.reason,
            "message": headline.message,
            "url": url if answers else recorded.url,
            "ready": f"{endpoints if answers else 0}/{spec.replicas or 1}",
            "traffic": f"{leading.name} 100%" if leading else None,
            "traffic_mode": "Selector" if leading else None,
            "served": served_name(leading),
            "digest": leading.digest[:SHORT_DIGEST] if leading else None,
            "revisions": [_revision(one, recorded, leading, endpoints) for one in recorded.revisions],
        }
    )
    put = partial(put_condition, now=now, generation=service.generation)
    kinds, live = InferenceServiceCondition, ServingReason.LIVE
    if answers:
        status = put(status, kinds.SERVING, True, live, f"{serve_service_name(service.name)} leads to ready pods")
    else:
        status = put(status, kinds.SERVING, False, ServingReason.NO_READY_PODS, _why_dark(observed))
    reason, message = ServingReason(headline.reason), headline.message
    if wanted is not None and status.stable == wanted.name and status.rollout is None:
        right = f"{wanted.name} is what the spec asks for, and has all traffic"
        status = put(status, kinds.UP_TO_DATE, True, live, right)
    else:
        status = put(status, kinds.UP_TO_DATE, False, reason, message)
    return put(status, kinds.PROGRESSING, status.rollout is not None, reason, message)


def _put_accepted(
    observed: ObservedServing, status: InferenceServiceStatus, obstacle: NoModel | Refused | None, now: float
) -> InferenceServiceStatus:
    kind, generation = InferenceServiceCondition.ACCEPTED, observed.service.generation
    if isinstance(obstacle, Refused):
        return put_condition(status, kind, False, obstacle.reason, obstacle.told(), now, generation)
    return put_condition(status, kind, True, ServingReason.VALID, "the spec is valid", now, generation)


def _revision(
    one: RevisionStatus, status: InferenceServiceStatus, leading: RevisionStatus | None, endpoints: int
) -> RevisionStatus:
    is_leading = leading is not None and one.name == leading.name
    phase = "Live" if one.name == status.stable else "Leaving"
    if status.rollout is not None and one.name == status.rollout.candidate:
        phase = status.rollout.phase
    return one.model_copy(
        update={"phase": phase, "weight": 100 if is_leading else 0, "ready": endpoints if is_leading else 0}
    )
