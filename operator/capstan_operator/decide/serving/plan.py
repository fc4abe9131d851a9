"""Which children there should be, of what size, and where the stable address leads: all from what is on record."""

from dataclasses import dataclass

from capstan_operator.build.serving_children import proven_name
from capstan_operator.build.serving_revision import (
    Revision,
    build_config_secret,
    build_deployment,
    build_disruption_budget,
    build_proven,
    build_revision_service,
    build_route,
)
from capstan_operator.decide.serving.fleet import Fleet, answers_badly, is_given_up
from capstan_operator.decide.serving.gateway import gateway_deletions, lead_gateway
from capstan_operator.decide.serving.types import ChildDeletion, Scale
from capstan_operator.decide.types import Manifest


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done to the children."""

    apply: tuple[Manifest, ...]
    scale: tuple[Scale, ...]
    delete: tuple[ChildDeletion, ...]


def make_plan(fleet: Fleet) -> Plan:
    """Make, size and remove revisions, and lead the address to those that shall have traffic."""
    sizes = _sizes(fleet)
    made = tuple(
        manifest
        for name, size in sizes.items()
        if fleet.deployment(name) is None and fleet.wanted and fleet.wanted.name == name
        for manifest in _make(fleet, fleet.wanted, size)
    )
    scaled = tuple(
        Scale(deployment.name, deployment.uid, sizes[deployment.name])
        for deployment in fleet.seen.deployments
        if deployment.name in sizes and deployment.replicas != sizes[deployment.name]
    )
    # Where requests go comes before all that might be refused, and the address to compare by before who is told of it.
    apply = _lead(fleet) + _lead_proven(fleet) + made + _restored(fleet) + _guard_drains(fleet)
    return Plan(apply, scaled, gateway_deletions(fleet) + _deletions(fleet))


def _restored(fleet: Fleet) -> tuple[Manifest, ...]:
    """What else belongs to the wanted revision, if its pods wait for something: somebody may have deleted it."""
    wanted = fleet.wanted
    if wanted is None or fleet.deployment(wanted.name) is None:
        return ()
    if not any(pod.is_stuck for pod in fleet.pods(wanted.name)):
        return ()
    owner = fleet.seen.service
    return build_config_secret(owner, wanted), build_revision_service(owner, wanted.name)


def _make(fleet: Fleet, revision: Revision, size: int) -> tuple[Manifest, ...]:
    owner = fleet.seen.service
    return (
        build_config_secret(owner, revision),
        build_revision_service(owner, revision.name),
        build_deployment(owner, revision, size),
    )


def _sizes(fleet: Fleet) -> dict[str, int]:
    """Pods of the proven revision and of the one on its way. Nothing is said of the others: they go."""
    sizes = {}
    if fleet.status.stable:
        sizes[fleet.status.stable] = _stable_size(fleet)
    if fleet.rollout:
        sizes[fleet.rollout.candidate] = _candidate_size(fleet)
    return sizes


def _stable_size(fleet: Fleet) -> int:
    """All of it, except where pods of the other revision stand in for its own, one by one, as they are ready."""
    rollout = fleet.rollout
    is_replaced = fleet.spec.rollout.strategy.rolling and rollout and rollout.phase in ("Shifting", "Holding")
    if not is_replaced or rollout is None:
        return fleet.size
    return max(1, fleet.size - fleet.ready(rollout.candidate))


def _candidate_size(fleet: Fleet) -> int:
    rollout, strategy = fleet.rollout, fleet.spec.rollout.strategy
    assert rollout is not None
    if fleet.status.stable is None or fleet.is_dark():
        return fleet.size
    if rollout.phase == "Canary" and strategy.canary:
        return fleet.canary_size()
    if rollout.phase == "Starting" and strategy.canary:
        return fleet.canary_size()
    if strategy.rolling and rollout.phase in ("Starting", "Shifting"):
        room = fleet.size + strategy.rolling.max_surge - fleet.replicas_wanted(fleet.status.stable)
        return min(fleet.size, max(1, room, fleet.replicas_wanted(rollout.candidate)))
    return fleet.size


def _lead_proven(fleet: Fleet) -> tuple[Manifest, ...]:
    """The Service that answers are compared by, if there are such and it is not there or leads elsewhere."""
    stable, proven = fleet.status.stable, fleet.seen.proven
    if not fleet.compares or stable is None or (proven and proven.revision == stable):
        return ()
    return (build_proven(fleet.seen.service, stable),)


def _lead(fleet: Fleet) -> tuple[Manifest, ...]:
    """The stable Service and the HTTPRoute, each if it is not there or leads elsewhere than it should."""
    route = fleet.seen.route
    if route is None:
        first = fleet.status.stable or (fleet.rollout.candidate if fleet.rollout else None)
        return (build_route(fleet.seen.service, first), *lead_gateway(fleet, first)) if first else ()
    wanted = _destination(fleet, route.revision)
    moved = () if wanted == route.revision else (build_route(fleet.seen.service, wanted),)
    return (*moved, *lead_gateway(fleet, wanted))


def _guard_drains(fleet: Fleet) -> tuple[Manifest, ...]:
    """The PodDisruptionBudget, if it is not there, of a service with more than one pod: one that has a single one is
    down for any eviction, and while that pod is not ready a budget would keep its node from being drained."""
    api, is_served = fleet.seen.budget_api, fleet.status.stable or fleet.rollout
    if api is None or fleet.seen.has_budget or fleet.size == 1 or not is_served:
        return ()
    return (build_disruption_budget(fleet.seen.service, api),)


def _destination(fleet: Fleet, now_at: str | None) -> str | None:
    """The revision that the stable address shall lead to; None: to all that have pods."""
    stable, rollout = fleet.status.stable, fleet.rollout
    if stable is None:
        is_better = rollout and (fleet.ready(rollout.candidate) or not fleet.behind())
        return rollout.candidate if rollout and is_better else now_at
    if rollout is None:
        return stable if now_at == stable or _may_retreat(fleet) else now_at
    is_only_one = fleet.ready(stable) == 0 and fleet.ready(rollout.candidate) > 0
    match rollout.phase:
        case "Starting":
            return stable
        case "Canary" | "Shifting":
            if fleet.is_divided_by_gateway():
                return rollout.candidate if is_only_one else stable
            return None
        case "Holding":
            is_whole = fleet.ready(rollout.candidate) >= fleet.size
            return rollout.candidate if is_whole or is_only_one else now_at


def _may_retreat(fleet: Fleet) -> bool:
    """Whether all traffic can go back to the proven revision: it has as many ready pods as are behind the address now,
    or as it shall ever have. From a canary that answers badly it goes back to whatever there is."""
    ready = fleet.ready(fleet.status.stable)
    if ready and any(answers_badly(fleet.status, one.name) for one in fleet.others()):
        return True
    return ready >= min(fleet.size, sum(fleet.behind().values()))


def _deletions(fleet: Fleet) -> tuple[ChildDeletion, ...]:
    """Of revisions that have no business here and no traffic. The Deployment goes last, because the rest is known by
    it; its pods finish what they have taken on. And of the address that nobody compares by any more, and of the
    budget of what has one pod."""
    route = fleet.seen.route
    deletions: list[ChildDeletion] = []
    for deployment in fleet.others():
        has_traffic = fleet.is_divided() or (route is not None and route.revision in (None, deployment.name))
        # Of a revision that was given up no pod may come up any more, wherever the address leads.
        is_hopeless = is_given_up(fleet.status, deployment.name) and fleet.ready(deployment.name) == 0
        if not has_traffic or is_hopeless:
            deletions += [
                ChildDeletion("Secret", deployment.name),
                ChildDeletion("Service", deployment.name),
                ChildDeletion("Deployment", deployment.name),
            ]
    if fleet.seen.proven and not fleet.compares:
        deletions.append(ChildDeletion("Service", proven_name(fleet.seen.service.name)))
    if fleet.seen.has_budget and fleet.size == 1:
        deletions.append(ChildDeletion("PodDisruptionBudget", fleet.seen.service.name))
    return tuple(deletions)
