"""Where the HTTPRoute leads: to the stable Service and whatever that leads to, but for a canary's share.

Only a canary needs exact weights. For all else one write to the Service moves those who come through a Gateway and
those who do not, and endpoints follow pods without us.
"""

from dataclasses import dataclass

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.build.serving_gateway import GATEWAY_API, build_gateway_route, request_timeout
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.serving.fleet import Fleet, answers_badly
from capstan_operator.decide.serving.types import ChildDeletion
from capstan_operator.decide.types import Manifest
from capstan_operator.observe_serving import ObservedServing

ALL = 100


@dataclass(frozen=True, slots=True)
class RouteState:
    """Whether requests come through a Gateway; `is_met` None: no Gateway has said anything yet."""

    is_met: bool | None
    message: str


def gateway_refusal(spec: InferenceServiceSpec, seen: ObservedServing) -> Refusal | None:
    """Why spec.gateway cannot be honoured; None: it can, or is not set."""
    if spec.gateway is None or seen.has_gateway_api:
        return None
    return Refusal(
        (
            f"spec.gateway: needs HTTPRoutes of {GATEWAY_API}, which this cluster does not serve; install a Gateway "
            "controller with the Gateway API, or remove gateway",
        )
    )


def lead_gateway(fleet: Fleet, address_at: str | None) -> tuple[Manifest, ...]:
    """The HTTPRoute, if it is asked for and not there as it should be. `address_at` is the revision that the stable
    Service leads to once what stands before it is applied; None: all."""
    gateway, timeout_seconds = fleet.spec.gateway, fleet.spec.request_seconds
    if gateway is None:
        return ()
    weights, seen = _weights(fleet, address_at), fleet.seen.gateway_route
    # API servers with the Gateway API before 1.2 drop the timeout: writing it again and again would not help.
    is_as_it_should = (
        seen is not None
        and (seen.weights, seen.gateway) == (weights, gateway)
        and seen.timeout in (None, request_timeout(timeout_seconds))
    )
    return () if is_as_it_should else (build_gateway_route(fleet.seen.service, gateway, timeout_seconds, weights),)


def gateway_deletions(fleet: Fleet) -> tuple[ChildDeletion, ...]:
    """The HTTPRoute of a service that is not to have one any more."""
    is_left_over = fleet.seen.gateway_route is not None and fleet.spec.gateway is None
    return (ChildDeletion("HTTPRoute", fleet.seen.service.name),) if is_left_over else ()


def has_its_share(fleet: Fleet) -> bool:
    """Gateways lead this step's weight to the candidate, and have said so."""
    seen = fleet.seen.gateway_route
    share = _shares(fleet, fleet.canary_weight())
    return seen is not None and seen.weights == share and seen.accepted is True and seen.is_current


def is_cut_off(fleet: Fleet) -> bool:
    """A canary would have no traffic: no Gateway takes the HTTPRoute that is to bring it some."""
    seen = fleet.seen.gateway_route
    return fleet.is_divided_by_gateway() and (seen is None or not seen.accepted)


def route_state(fleet: Fleet) -> RouteState:
    """What the Gateways say, in one sentence."""
    seen = fleet.seen.gateway_route
    if seen is None or seen.accepted is None:
        return RouteState(None, f"no Gateway has said yet whether it takes {_named(fleet)}")
    said = f": {seen.problem}" if seen.problem else ""
    if not seen.accepted:
        return RouteState(False, f"no Gateway takes {_named(fleet)}{said}")
    one_lacks = f"; another does not{said}" if seen.problem else ""
    return RouteState(True, f"a Gateway takes {_named(fleet)}{one_lacks}")


def _named(fleet: Fleet) -> str:
    return f"HTTPRoute {fleet.seen.service.name}"


def _weights(fleet: Fleet, address_at: str | None) -> dict[str, int]:
    undivided = {fleet.seen.service.name: 1}
    if _is_in_canary(fleet, address_at):
        share = _share(fleet)
        # Where only one of the two can answer, the stable Service leads to it.
        return _shares(fleet, share) if 0 < share < ALL else undivided
    seen = fleet.seen.gateway_route
    if seen is None or seen.weights == undivided or _may_close(fleet, address_at):
        return undivided
    return {name: weight for name, weight in seen.weights.items() if fleet.ready(name)} or undivided


def _is_in_canary(fleet: Fleet, address_at: str | None) -> bool:
    """Until the stable Service leads to the candidate."""
    return (
        fleet.is_divided_by_gateway()
        and fleet.rollout is not None
        and fleet.status.stable is not None
        and fleet.rollout.phase != "Starting"
        and address_at != fleet.rollout.candidate
    )


def _share(fleet: Fleet) -> int:
    """Percent for the candidate: its step's when it has the pods for that, until then what it has already."""
    assert fleet.rollout is not None
    ready, weight = fleet.ready(fleet.rollout.candidate), fleet.canary_weight()
    if not ready:
        return 0
    if not fleet.ready(fleet.status.stable):
        return ALL
    if ready >= fleet.canary_size():
        return weight
    seen = fleet.seen.gateway_route
    return min(weight, seen.weights.get(fleet.rollout.candidate, 0)) if seen else 0


def _shares(fleet: Fleet, share: int) -> dict[str, int]:
    assert fleet.rollout is not None
    return {str(fleet.status.stable): ALL - share, fleet.rollout.candidate: share}


def _may_close(fleet: Fleet, address_at: str | None) -> bool:
    """Whether the stable Service can take what a canary has: behind it are as many ready pods as are in the canary, or
    as there shall ever be. From one that answers badly it takes everything with whatever there is."""
    seen = fleet.seen.gateway_route
    assert seen is not None
    names = {pod.revision for pod in fleet.seen.replicas} if address_at is None else {address_at}
    behind = sum(fleet.ready(name) for name in names)
    if behind and any(answers_badly(fleet.status, name) for name in seen.weights):
        return True
    return behind >= min(fleet.size, sum(fleet.ready(name) for name in seen.weights))
