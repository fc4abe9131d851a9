"""The decision for an InferenceService, as a table of contents. Each step is a file of `serving/`."""

from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.conditions import put_condition
from capstan_operator.decide.serving.blueprint import read_revision, read_spec
from capstan_operator.decide.serving.describe import describe
from capstan_operator.decide.serving.events import tell
from capstan_operator.decide.serving.fleet import Fleet
from capstan_operator.decide.serving.gateway import gateway_refusal
from capstan_operator.decide.serving.health import seconds_until_given_up
from capstan_operator.decide.serving.model import NoModel, resolve
from capstan_operator.decide.serving.plan import make_plan
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.record import record, seconds_until_next
from capstan_operator.decide.serving.scaling import fit_size
from capstan_operator.decide.serving.types import ServingDecision
from capstan_operator.decide.types import EventNote
from capstan_operator.observe import ObservedServing

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
    old = observed.service.status
    if observed.service.is_deleting:
        # The garbage collector removes the children by their owner; all that we could make now would be in its way.
        return ServingDecision(status=old)
    spec = read_spec(observed.service)
    if isinstance(spec, Refusal):
        return _refuse(observed, spec, now)
    missing = gateway_refusal(spec, observed)
    if missing is not None:
        return _refuse(observed, missing, now, ServingReason.GATEWAY_API_MISSING)
    model = resolve(spec, observed.job, old)
    no_model = model if isinstance(model, NoModel) else None
    wanted = None if isinstance(model, NoModel) else read_revision(observed.service, spec, model, observed.settings)
    if isinstance(wanted, Refusal):
        return _refuse(observed, wanted, now)
    known = old if isinstance(model, NoModel) else old.model_copy(update={"model": model})
    fleet = Fleet(observed, spec, wanted, fit_size(spec.autoscaling, known, observed.deployments), now)
    recorded = fleet.after(record(fleet))
    status = describe(recorded, no_model)
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


def _next_look(fleet: Fleet) -> float | None:
    waits = [seconds_until_next(fleet), seconds_until_given_up(fleet)]
    if fleet.rollout and fleet.status.stable and not fleet.behind():
        waits.append(DARK_LOOK_SECONDS)
    if fleet.spec.autoscaling and fleet.behind():
        waits.append(LOAD_LOOK_SECONDS)
    return min((max(wait, LEAST_WAIT_SECONDS) for wait in waits if wait is not None), default=None)


def _refuse(
    observed: ObservedServing, refusal: Refusal, now: float, reason: ServingReason = ServingReason.INVALID_SPEC
) -> ServingDecision:
    """Status of a service whose spec cannot be acted on. Nothing is made or changed; what serves goes on as it is."""
    old = observed.service.status
    message = "\n".join(refusal.problems)
    if observed.deployments:
        until = "the spec is valid" if reason == ServingReason.INVALID_SPEC else "then"
        message += f"\nWhat is served stays as it is until {until}."
    generation = observed.service.generation
    status = put_condition(old, InferenceServiceCondition.ACCEPTED, False, reason, message, now, generation).model_copy(
        update={
            "observed_generation": generation,
            "reason": reason.value,
            "message": message,
        }
    )
    events = (EventNote("Warning", reason.value, message),) if status != old else ()
    return ServingDecision(status=status, events=events)
