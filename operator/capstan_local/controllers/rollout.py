"""How a Deployment's ReplicaSets are scaled next, and what its status says. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from capstan_local.client import Object
from capstan_local.node.status import parse_timestamp, timestamp

DEFAULT_DEADLINE_SECONDS = 600
_NEVER = 2**31 - 1
"""progressDeadlineSeconds that means: no deadline."""


@dataclass(frozen=True, slots=True)
class Scaling:
    replica_set: Object
    replicas: int


def plan_scaling(deployment: Object, current: Object | None, old: Sequence[Object]) -> list[Scaling]:
    """Which ReplicaSets get which size now, so that the limits of the strategy hold at every moment.

    `current` is the one of the present template (None: not made yet), `old` the others, oldest first.
    """
    spec = deployment["spec"]
    desired = spec.get("replicas", 1)
    if spec.get("paused") and current is not None and not any(map(replicas_of, old)):
        return _only_changed([Scaling(current, desired)])
    if spec.get("paused"):
        return []
    if spec.get("strategy", {}).get("type") == "Recreate":
        stops = [Scaling(item, 0) for item in old]
        return _only_changed([*stops, *([Scaling(current, desired)] if current is not None else [])])
    surge, unavailable = limits(spec, desired)
    if current is None:
        return []
    total = replicas_of(current) + sum(map(replicas_of, old))
    if replicas_of(current) < desired:
        grown = min(desired, replicas_of(current) + max(0, desired + surge - total))
    else:
        grown = desired
    return _only_changed([Scaling(current, grown), *_shrink(current, old, desired - unavailable)])


def _shrink(current: Object, old: Sequence[Object], least_available: int) -> Iterator[Scaling]:
    """Old sets lose first what is not available anyway, then what can be spared."""
    sizes = {id(item): replicas_of(item) for item in old}
    unavailable_new = replicas_of(current) - available(current)
    spare = replicas_of(current) + sum(sizes.values()) - least_available - max(0, unavailable_new)
    for item in old:
        broken = min(sizes[id(item)] - available(item), max(0, spare))
        if broken > 0:
            sizes[id(item)] -= broken
            spare -= broken
    spare = min(spare, available(current) + sum(map(available, old)) - least_available)
    for item in old:
        less = min(sizes[id(item)], max(0, spare))
        sizes[id(item)] -= less
        spare -= less
        yield Scaling(item, sizes[id(item)])


def limits(spec: Object, desired: int) -> tuple[int, int]:
    """maxSurge and maxUnavailable as numbers of pods; never both 0."""
    rolling = spec.get("strategy", {}).get("rollingUpdate") or {}
    surge = resolve(rolling.get("maxSurge", "25%"), desired, rounds_up=True)
    unavailable = resolve(rolling.get("maxUnavailable", "25%"), desired, rounds_up=False)
    return surge, unavailable if surge or unavailable else 1


def resolve(value: int | str, replicas: int, *, rounds_up: bool) -> int:
    """A number of pods, given as such or as a percentage of `replicas`."""
    if isinstance(value, int):
        return value
    share = int(value.removesuffix("%")) * replicas / 100
    return math.ceil(share) if rounds_up else math.floor(share)


def replicas_of(replica_set: Object) -> int:
    return int(replica_set["spec"].get("replicas", 1))


def available(replica_set: Object) -> int:
    return int((replica_set.get("status") or {}).get("availableReplicas", 0))


def _only_changed(scalings: Sequence[Scaling]) -> list[Scaling]:
    return [scaling for scaling in scalings if scaling.replicas != replicas_of(scaling.replica_set)]


def build_status(
    deployment: Object, current: Object | None, old: Sequence[Object], now: float
) -> tuple[Object, float | None]:
    """The status, and in how many seconds the progress deadline passes (None: it cannot)."""
    spec, sets = deployment["spec"], [*old, *([current] if current is not None else [])]
    desired = spec.get("replicas", 1)

    def total(field: str, items: Sequence[Object]) -> int:
        return sum((item.get("status") or {}).get(field, 0) for item in items)

    counts = {
        "replicas": total("replicas", sets),
        "updatedReplicas": total("replicas", [current] if current is not None else []),
        "readyReplicas": total("readyReplicas", sets),
        "availableReplicas": total("availableReplicas", sets),
    }
    counts["unavailableReplicas"] = max(0, max(desired, counts["replicas"]) - counts["availableReplicas"])
    before = {item["type"]: item for item in (deployment.get("status") or {}).get("conditions") or []}
    _, unavailable = limits(spec, desired)
    enough = counts["availableReplicas"] >= desired - unavailable
    conditions = [
        _condition(
            before.get("Available"),
            "Available",
            "True" if enough else "False",
            "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            f"Deployment {'has' if enough else 'does not have'} minimum availability.",
            now,
        )
    ]
    progress, later = _progress(deployment, current, counts, before.get("Progressing"), now)
    return {
        "observedGeneration": deployment["metadata"].get("generation", 0),
        **counts,
        "conditions": [*conditions, progress],
    }, later


def _progress(
    deployment: Object, current: Object | None, counts: dict[str, int], before: Object | None, now: float
) -> tuple[Object, float | None]:
    spec = deployment["spec"]
    desired = spec.get("replicas", 1)
    name = current["metadata"]["name"] if current is not None else deployment["metadata"]["name"]
    if spec.get("paused"):
        return _condition(before, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now), None
    if counts["updatedReplicas"] == counts["replicas"] == counts["availableReplicas"] == desired:
        message = f'ReplicaSet "{name}" has successfully progressed.'
        return _condition(before, "Progressing", "True", "NewReplicaSetAvailable", message, now), None
    # Progress is any change of the counts; without one for long enough, the rollout is stuck.
    status = deployment.get("status") or {}
    is_moving = any(status.get(field, 0) != count for field, count in counts.items())
    updated = parse_timestamp(before["lastUpdateTime"]) if before and before.get("lastUpdateTime") else now
    deadline = spec.get("progressDeadlineSeconds", DEFAULT_DEADLINE_SECONDS)
    left = updated + deadline - now
    if not is_moving and before is not None and before["reason"] in ("ReplicaSetUpdated", "ProgressDeadlineExceeded"):
        if left <= 0 and deadline != _NEVER:
            message = f'ReplicaSet "{name}" has timed out progressing.'
            return _condition(before, "Progressing", "False", "ProgressDeadlineExceeded", message, now), None
        return before, left
    message = f'ReplicaSet "{name}" is progressing.'
    fresh = _condition(before, "Progressing", "True", "ReplicaSetUpdated", message, now)
    return {**fresh, "lastUpdateTime": timestamp(now)}, float(deadline)


def _condition(before: Any, kind: str, status: str, reason: str, message: str, now: float) -> Object:
    """Times move only when something else does."""
    wanted = {"type": kind, "status": status, "reason": reason, "message": message}
    if before is not None and all(before.get(name) == value for name, value in wanted.items()):
        return dict(before)
    since = before["lastTransitionTime"] if before is not None and before["status"] == status else timestamp(now)
    return {**wanted, "lastUpdateTime": timestamp(now), "lastTransitionTime": since}
