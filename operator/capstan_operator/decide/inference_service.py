"""The decision for an InferenceService, as a table of contents. Each step is a file of `serving/`."""

from dataclasses import dataclass, field, replace

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus, RevisionStatus
from capstan_operator.build.host_path import allowing, allowing_all, paths_of
from capstan_operator.build.serving_revision import Revision
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.serving.asked import asked_digest, kept_revision, with_asked
from capstan_operator.decide.serving.blueprint import read_revision, read_spec
from capstan_operator.decide.serving.describe import describe
from capstan_operator.decide.serving.events import tell
from capstan_operator.decide.serving.fleet import Fleet
from capstan_operator.decide.serving.gateway import gateway_refusal
from capstan_operator.decide.serving.health import seconds_until_given_up
from capstan_operator.decide.serving.model import resolve
from capstan_operator.decide.serving.plan import make_plan
from capstan_operator.decide.serving.ray_service import backend_refusal, decide_ray_service, is_kept_by_kuberay
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.record import record, seconds_until_next
from capstan_operator.decide.serving.registered import Inquiry, inquire, resolve_registered
from capstan_operator.decide.serving.retry import seconds_until_retry, turned_back
from capstan_operator.decide.serving.salvage import Refused, salvage, without_rollout
from capstan_operator.decide.serving.scaling import fit_size
from capstan_operator.decide.serving.types import NoModel, ServingDecision
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_serving import ObservedServing

LEAST_WAIT_SECONDS = 0.05
DARK_LOOK_SECONDS = 5.0
"""How often a service that does not answer is looked at even if nothing changes."""

LOAD_LOOK_SECONDS = 5.0
"""How often a service that autoscaling sizes is looked at: samples come about as often, and delays end between them."""


def decide_inference_service(observed: ObservedServing, now: float) -> ServingDecision:
    """All that follows from one look at an InferenceService at `now` (seconds since 1970).

    Pure, and never raises for what a user wrote. A look that adds to the record writes the record and nothing else;
    the next one, at once, makes children follow.
    """
    if observed.service.is_deleting:
        # The garbage collector removes the children by their owner; all that we could make now would be in its way.
        return ServingDecision(status=observed.service.status)
    asked = _read(observed, now)
    decision = _decide(asked.observed, asked, now)
    return replace(
        decision,
        status=asked.noted_on(decision.status),
        requeue_after=_sooner(decision.requeue_after, asked.inquiry.look_after),
        create=asked.inquiry.create,
        delete_pods=asked.inquiry.delete,
    )


def _sooner(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)


def _decide(observed: ObservedServing, asked: "_Asked", now: float) -> ServingDecision:
    old = observed.service.status
    if is_kept_by_kuberay(observed, asked.spec):
        return decide_ray_service(observed, asked.spec, asked.status, asked.wanted, asked.obstacle, now)
    known = fit_size(asked.spec.autoscaling, asked.status, observed.deployments)
    fleet = Fleet(observed, asked.spec, asked.wanted, known, now)
    recorded = fleet.after(record(fleet))
    status = describe(recorded, asked.obstacle)
    events = tell(old, status)
    if recorded.status != old:
        return ServingDecision(status=status, events=events, requeue_after=0.0)
    plan = make_plan(fleet)
    return ServingDecision(
        status=status,
        apply=plan.apply,
        scale=plan.scale,
        delete=plan.delete,
        events=events,
        requeue_after=_next_look(fleet),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the spec asks for."""

    observed: ObservedServing
    """The look, with what an operator of before did not note on record."""
    spec: InferenceServiceSpec
    wanted: Revision | None
    """None: `obstacle` is in the way."""
    status: InferenceServiceStatus
    """As it is known before the look adds anything."""
    obstacle: NoModel | Refused | None = None
    digest: str | None = None
    """Of all that is asked for; None: `obstacle` is in the way."""
    inquiry: Inquiry = field(default_factory=Inquiry)
    """What is asked of a registry; of a spec that is refused nothing new, and what is being asked goes on."""

    def noted_on(self, status: InferenceServiceStatus) -> InferenceServiceStatus:
        """`status` in which the revision that is wanted knows what it was asked for by."""
        if self.digest is None or self.wanted is None:
            return status
        return with_asked(status, self.digest, self.wanted.model, self.observed.service.generation)


def _read(observed: ObservedServing, now: float) -> _Asked:
    spec, old = read_spec(observed.service), observed.service.status
    if isinstance(spec, Refusal):
        return _refused(observed, spec, ServingReason.INVALID_SPEC)
    missing = gateway_refusal(spec, observed)
    if missing is not None:
        return _refused(observed, missing, ServingReason.GATEWAY_API_MISSING)
    unfit = backend_refusal(spec, observed)
    if unfit is not None:
        return _refused(observed, *unfit)
    inquiry = inquire(observed, spec, now)
    if isinstance(inquiry, Refusal):
        return _refused(observed, inquiry, ServingReason.INVALID_SPEC)
    ray = observed.ray_service
    if spec.model_ref.registry:
        model = resolve_registered(spec.model_ref.registry, observed, inquiry.asker)
    else:
        model = resolve(spec, observed.job, old, is_stuck=ray is not None and ray.problem is not None)
    if isinstance(model, NoModel):
        return _Asked(observed, spec, None, old, model, inquiry=inquiry)
    asked = asked_digest(spec, model)
    old = with_asked(old, asked, model, observed.service.generation)
    kept = kept_revision(old, asked) or turned_back(Fleet(observed, spec, None, old, now), asked)
    wanted = read_revision(
        observed.service, spec, model, _with_what_it_has(observed, model, kept), kept.name if kept else None
    )
    if isinstance(wanted, Refusal):
        return _refused(observed, wanted, ServingReason.INVALID_SPEC)
    observed = replace(observed, service=replace(observed.service, status=old))
    return _Asked(observed, spec, wanted, old.model_copy(update={"model": model}), None, asked, inquiry)


def _with_what_it_has(observed: ObservedServing, model: ModelStatus, kept: RevisionStatus | None) -> OperatorSettings:
    """The settings for a service that keeps the folders of nodes it has, whatever the operator allows since: all of a
    revision that is kept, and in whichever the store that it was let serve from."""
    if kept is not None:
        return allowing_all(observed.settings)
    known = observed.service.status.model
    has_store = known is not None and known.store == model.store
    return allowing(observed.settings, observed.service.host_paths | (paths_of(model.store) if has_store else set()))


def _refused(observed: ObservedServing, refusal: Refusal, reason: ServingReason) -> _Asked:
    status = without_rollout(observed.service.status)
    return _Asked(observed, salvage(observed), None, status, Refused(reason, refusal.problems))


def _next_look(fleet: Fleet) -> float | None:
    waits = [seconds_until_next(fleet), seconds_until_given_up(fleet), seconds_until_retry(fleet)]
    if fleet.rollout and fleet.status.stable and not fleet.behind():
        waits.append(DARK_LOOK_SECONDS)
    if fleet.spec.autoscaling and fleet.behind():
        waits.append(LOAD_LOOK_SECONDS)
    return min((max(wait, LEAST_WAIT_SECONDS) for wait in waits if wait is not None), default=None)
