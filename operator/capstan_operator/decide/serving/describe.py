"""How it is told: conditions, one reason, one sentence, and what every revision has of the traffic."""

from dataclasses import dataclass

from capstan_operator.api.inference_service_status import InferenceServiceStatus, RevisionStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.build.store import run_folder
from capstan_operator.decide.conditions import find, put_condition
from capstan_operator.decide.serving.fleet import Fleet, known_revision
from capstan_operator.decide.serving.gateway import is_cut_off, route_state
from capstan_operator.decide.serving.health import trouble
from capstan_operator.decide.serving.latency import with_latencies
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.retry import tried_again_at
from capstan_operator.decide.serving.salvage import Refused
from capstan_operator.decide.serving.scaling import is_limited
from capstan_operator.decide.serving.types import NoModel
from capstan_operator.decide.times import rfc3339
from capstan_runtime.contract.env import SERVE_PORT

SHORT_DIGEST = len("blake3:") + 12


@dataclass(frozen=True, slots=True)
class Headline:
    """What is going on."""

    reason: str
    message: str


def describe(fleet: Fleet, obstacle: NoModel | Refused | None) -> InferenceServiceStatus:
    """The whole status of a service. `obstacle`: why the spec asks for no revision now."""
    headline = _headline(fleet, obstacle)
    status = _with_traffic(fleet).model_copy(
        update={
            "observed_generation": fleet.seen.service.generation,
            "reason": headline.reason,
            "message": headline.message,
            "url": (isinstance(obstacle, Refused) and fleet.status.url) or _url(fleet),
        }
    )
    fleet = fleet.after(status)
    status = _put_accepted(fleet, obstacle)
    status = _put_serving(fleet.after(status))
    status = _put_routed(fleet.after(status))
    status = _put_up_to_date(fleet.after(status), headline)
    is_moving = status.rollout is not None or _retreat(fleet) is not None
    kind = InferenceServiceCondition.PROGRESSING
    status = _put(fleet.after(status), kind, is_moving, headline.reason, headline.message)
    status = _put_rolled_back(fleet.after(status))
    status = _put_scaling_limited(fleet.after(status))
    return with_latencies(fleet.after(status))


def _headline(fleet: Fleet, obstacle: NoModel | Refused | None) -> Headline:
    retreat = _retreat(fleet)
    if isinstance(obstacle, Refused):
        return Headline(obstacle.reason.value, obstacle.told(retreat or _service(fleet)))
    if obstacle is not None:
        return Headline(obstacle.reason.value, obstacle.message)
    rollout, stable = fleet.rollout, fleet.status.stable
    if rollout is not None:
        return Headline(rollout.phase, _progress(fleet))
    if retreat is not None:
        return Headline(ServingReason.RETREATING.value, retreat)
    wanted = known_revision(fleet.status, fleet.wanted.name) if fleet.wanted else None
    if wanted is not None and wanted.failure is not None:
        message = f"{wanted.name} was given up: {wanted.failure.message}; {_service(fleet)}{_retry(fleet, wanted)}"
        return Headline(wanted.failure.reason, message)
    if not fleet.behind():
        return Headline(ServingReason.NO_READY_PODS.value, _why_dark(fleet))
    if fleet.wanted and _is_another_wanted(fleet) and is_cut_off(fleet):
        waits = f"{fleet.wanted.name} waits for its canary to be reached: {route_state(fleet).message}"
        return Headline(_route_reason(fleet).value, waits)
    if fleet.spec.gateway and route_state(fleet).is_met is False:
        return Headline(ServingReason.ROUTE_NOT_ACCEPTED.value, route_state(fleet).message)
    left = sorted({pod.revision for pod in fleet.seen.replicas if not pod.is_deleting and pod.revision != stable})
    if fleet.wanted and _is_another_wanted(fleet) and left:
        waits = f"{fleet.wanted.name} waits until no pod of {' and '.join(left)} is left"
        return Headline(ServingReason.STARTING.value, waits)
    return Headline(ServingReason.LIVE.value, f"{stable} has all traffic")


def _retreat(fleet: Fleet) -> str | None:
    """How traffic goes back to the proven revision; None: it need not."""
    stable, route = fleet.status.stable, fleet.seen.route
    if stable is None or fleet.rollout is not None:
        return None
    if fleet.others() and route and route.revision != stable:
        return f"traffic goes back to {stable} as its pods get ready"
    if fleet.is_divided() and (fleet.others() or _is_another_wanted(fleet)):
        return f"traffic goes back to {stable} as Gateways hear of it"
    return None


def _service(fleet: Fleet) -> str:
    """Who serves now, if anybody does."""
    behind = fleet.behind()
    if behind:
        return f"{' and '.join(behind)} serve{'' if len(behind) > 1 else 's'}"
    return _why_dark(fleet) if fleet.status.stable else "there is nothing else to serve"


def _retry(fleet: Fleet, wanted: RevisionStatus) -> str:
    at = tried_again_at(fleet, wanted)
    return f"; it is tried again at {rfc3339(at)}" if at is not None else ""


def _is_another_wanted(fleet: Fleet) -> bool:
    return fleet.wanted is not None and fleet.wanted.name != fleet.status.stable


def _progress(fleet: Fleet) -> str:
    """What the rollout does now, in one sentence without a clock."""
    rollout = fleet.rollout
    assert rollout is not None
    name = rollout.candidate
    problem = trouble(fleet, name)
    waits = f"; {problem}" if problem else ""
    match rollout.phase:
        case "Starting":
            return f"pods of {name} come up{waits}"
        case "Canary" if fleet.canary:
            step = min(rollout.step or 0, len(fleet.canary.steps) - 1)
            cut_off = f"; {route_state(fleet).message}" if is_cut_off(fleet) else ""
            return (
                f"{name} is to have {_share(fleet)}, step {step + 1} of "
                f"{len(fleet.canary.steps)}{_verdicts(fleet, name)}{waits}{cut_off}"
            )
        case "Holding":
            return f"{name} has all traffic, {fleet.status.stable} is kept until it has proven itself{waits}"
        case _:
            return f"traffic moves from {fleet.status.stable} to {name}{waits}"


def _share(fleet: Fleet) -> str:
    """What the canary's step gives it. Without Gateways that is a share of whole pods, so it may be far from the one
    asked for."""
    weight = fleet.canary_weight()
    if fleet.is_divided_by_gateway():
        return f"{weight} % of the traffic"
    pods = fleet.canary_size()
    share = round(100 * pods / (fleet.size + pods))
    asked = "" if share == weight else f" (with {pods} of {fleet.size + pods} pods; asked for are {weight} %)"
    return f"about {share} % of the traffic{asked}"


def _verdicts(fleet: Fleet, name: str) -> str:
    known = known_revision(fleet.status, name)
    return "".join(f", {gate.name} {gate.verdict}" for gate in known.gates) if known else ""


def _why_dark(fleet: Fleet) -> str:
    problem = trouble(fleet, fleet.status.stable)
    return f"no pod of {fleet.status.stable} is ready{': ' + problem if problem else ''}"


def _url(fleet: Fleet) -> str | None:
    """The address that works where the service runs: its name in the cluster's DNS, or, on a single machine whose
    Services have loopback addresses and which has no such DNS, that address."""
    service, route = fleet.seen.service, fleet.seen.route
    if route is None:
        return fleet.status.url
    is_local = route.cluster_ip is not None and route.cluster_ip.startswith("127.")
    host = route.cluster_ip if is_local else f"{service.name}.{service.namespace}.svc"
    scheme = "https" if fleet.spec.tls else "http"
    return f"{scheme}://{host}:{SERVE_PORT}"


def _with_traffic(fleet: Fleet) -> InferenceServiceStatus:
    weights = _weights(fleet)
    revisions = [
        _revision(fleet, one, weights.get(one.name, 0))
        for one in fleet.status.revisions
        if one.failure or one.name in _alive(fleet)
    ]
    leading = known_revision(fleet.status, next(iter(weights), None))
    return fleet.status.model_copy(
        update={
            "ready": f"{sum(fleet.behind().values())}/{fleet.size}",
            "traffic": ", ".join(f"{name} {weight}%" for name, weight in weights.items()) or None,
            "traffic_mode": _traffic_mode(fleet) if weights else None,
            "served": served_name(leading),
            "digest": leading.digest[:SHORT_DIGEST] if leading else None,
            "revisions": revisions,
        }
    )


def _weights(fleet: Fleet) -> dict[str, int]:
    """Percent of the traffic by revision, most first; none with zero, and none at all while nobody answers."""
    behind, seen = fleet.behind(), fleet.seen.gateway_route
    shares = behind
    if seen is not None and fleet.seen.service.name not in seen.weights:
        shares = {name: weight for name, weight in seen.weights.items() if fleet.ready(name)}
    total = sum(shares.values())
    percents = {name: round(100 * share / total) for name, share in shares.items()}
    return dict(sorted(percents.items(), key=lambda item: (-item[1], item[0])))


def _traffic_mode(fleet: Fleet) -> str:
    if fleet.seen.route is not None and fleet.seen.route.revision is None:
        return "ReplicaRatio"
    return "Selector" if fleet.seen.gateway_route is None else "Gateway"


def _alive(fleet: Fleet) -> set[str]:
    """Revisions that are or have something."""
    named = {fleet.status.stable, fleet.rollout.candidate if fleet.rollout else None}
    return {one.name for one in fleet.seen.deployments} | {name for name in named if name}


def _revision(fleet: Fleet, known: RevisionStatus, weight: int) -> RevisionStatus:
    return known.model_copy(
        update={
            "phase": _phase(fleet, known),
            "weight": weight,
            "ready": fleet.ready(known.name),
            "total": fleet.replicas_wanted(known.name),
            "images": sorted({pod.image_id for pod in fleet.pods(known.name) if pod.image_id}) or known.images,
        }
    )


def _phase(fleet: Fleet, known: RevisionStatus) -> str:
    if known.failure:
        return "Failed"
    if fleet.rollout and known.name == fleet.rollout.candidate:
        return fleet.rollout.phase
    return "Live" if known.name == fleet.status.stable else "Leaving"


def served_name(leading: RevisionStatus | None) -> str | None:
    """`job@step` as the model's name, or `name version` of one from a registry. Not of status.model, which may be of a
    revision that is not proven yet."""
    if leading is None or leading.job is None:
        return None
    if leading.version is not None:
        return leading.version
    return f"{leading.job}@{leading.step}" if leading.step is not None else leading.job


def _put(
    fleet: Fleet, kind: InferenceServiceCondition, is_met: bool | None, reason: str, message: str
) -> InferenceServiceStatus:
    generation = fleet.seen.service.generation
    return put_condition(fleet.status, kind, is_met, ServingReason(reason), message, fleet.now, generation)


def _put_accepted(fleet: Fleet, obstacle: NoModel | Refused | None) -> InferenceServiceStatus:
    kind = InferenceServiceCondition.ACCEPTED
    if isinstance(obstacle, Refused):
        return _put(fleet, kind, False, obstacle.reason.value, obstacle.told())
    return _put(fleet, kind, True, ServingReason.VALID.value, "the spec is valid")


def _put_serving(fleet: Fleet) -> InferenceServiceStatus:
    behind = fleet.behind()
    if behind:
        names = " and ".join(behind)
        return _put(
            fleet, InferenceServiceCondition.SERVING, True, ServingReason.LIVE.value, f"the address leads to {names}"
        )
    message = "no pod behind the stable address is ready"
    return _put(fleet, InferenceServiceCondition.SERVING, False, ServingReason.NO_READY_PODS.value, message)


def _put_routed(fleet: Fleet) -> InferenceServiceStatus:
    """Said only where Gateways are asked for."""
    kind = InferenceServiceCondition.ROUTED
    if fleet.spec.gateway is None:
        others = [condition for condition in fleet.status.conditions if condition.type != kind]
        return fleet.status.model_copy(update={"conditions": others})
    state = route_state(fleet)
    return _put(fleet, kind, state.is_met, _route_reason(fleet).value, state.message)


def _route_reason(fleet: Fleet) -> ServingReason:
    return {
        True: ServingReason.ROUTE_ACCEPTED,
        False: ServingReason.ROUTE_NOT_ACCEPTED,
        None: ServingReason.ROUTE_PENDING,
    }[route_state(fleet).is_met]


def _put_up_to_date(fleet: Fleet, headline: Headline) -> InferenceServiceStatus:
    wanted, route = fleet.wanted, fleet.seen.route
    is_met = (
        wanted is not None
        and wanted.name == fleet.status.stable
        and fleet.rollout is None
        and route is not None
        and route.revision == wanted.name
    )
    if is_met and wanted:
        message = f"{wanted.name} is what the spec asks for, and has all traffic{_made_anew(fleet)}"
        return _put(fleet, InferenceServiceCondition.UP_TO_DATE, True, ServingReason.LIVE.value, message)
    return _put(fleet, InferenceServiceCondition.UP_TO_DATE, False, headline.reason, headline.message)


def _made_anew(fleet: Fleet) -> str:
    """That the job that is served is not the one there is now; nothing, if it is."""
    job, model, ref = fleet.seen.job, fleet.status.model, fleet.spec.model_ref.training_job
    if job is None or model is None or ref is None or ref.digest or model.run == run_folder(job):
        return ""
    return (
        f"; TrainingJob {ref.name} was made anew since: to serve what that one trains, set modelRef.trainingJob.track "
        "or digest"
    )


def _put_rolled_back(fleet: Fleet) -> InferenceServiceStatus:
    """Said from the first time on; before that there is nothing to say."""
    kind = InferenceServiceCondition.ROLLED_BACK
    wanted = known_revision(fleet.status, fleet.wanted.name) if fleet.wanted else None
    if wanted is not None and wanted.failure is not None:
        return _put(fleet, kind, True, wanted.failure.reason, f"{wanted.name}: {wanted.failure.message}")
    if fleet.wanted is None or find(fleet.status, kind) is None:
        return fleet.status
    return _put(fleet, kind, False, ServingReason.VALID.value, "what the spec asks for is not given up")


def _put_scaling_limited(fleet: Fleet) -> InferenceServiceStatus:
    """Said from the first time on; before that there is nothing to say."""
    kind, scaling = InferenceServiceCondition.SCALING_LIMITED, fleet.spec.autoscaling
    limited = is_limited(scaling, fleet.size, fleet.seen.load, fleet.now) if scaling else False
    if scaling and limited:
        message = f"requests ask for more pods than maxReplicas {scaling.max_replicas}"
        return _put(fleet, kind, True, ServingReason.TOO_MANY_REPLICAS.value, message)
    if limited is None or find(fleet.status, kind) is None:
        return fleet.status
    return _put(fleet, kind, False, ServingReason.DESIRED_WITHIN_RANGE.value, "there may be as many pods as asked for")
