"""RayServices of KubeRay, from the wire to the few facts a decision needs."""

import msgspec

from capstan_operator.api.meta import LABEL_REVISION
from capstan_operator.build.serving_ray import APPLICATION
from capstan_operator.cluster.pods import Metadata
from capstan_operator.observe_serving import ObservedRayService

MAX_MESSAGE = 300
_HOPELESS = ("ValidationFailed", "InitializingTimeout")
"""Reasons of KubeRay's condition Ready, after which it does nothing until the RayService is another."""
_FAILING = ("DEPLOY_FAILED", "UNHEALTHY")
"""States of an application of Serve's."""


class Condition(msgspec.Struct, gc=False):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class Application(msgspec.Struct, gc=False):
    status: str = ""
    message: str = ""


class RayClusterServing(msgspec.Struct, gc=False, rename="camel"):
    """One of the two clusters that a RayService can have."""

    ray_cluster_name: str = ""
    application_statuses: dict[str, Application] | None = None

    def application(self) -> Application:
        return (self.application_statuses or {}).get(APPLICATION, Application())


class RayServiceStatus(msgspec.Struct, gc=False, rename="camel"):
    observed_generation: int = 0
    conditions: list[Condition] | None = None
    num_serve_endpoints: int = 0
    active_service_status: RayClusterServing = msgspec.field(default_factory=RayClusterServing)
    """The cluster that has the traffic."""
    pending_service_status: RayClusterServing = msgspec.field(default_factory=RayClusterServing)
    """The one that is to take its place."""


class RayServiceSpec(msgspec.Struct, gc=False, rename="camel"):
    ray_cluster_deletion_delay_seconds: int | None = None


class RayService(msgspec.Struct, gc=False):
    """What is decoded of a RayService."""

    metadata: Metadata
    spec: RayServiceSpec = msgspec.field(default_factory=RayServiceSpec)
    status: RayServiceStatus = msgspec.field(default_factory=RayServiceStatus)


decode_ray_service = msgspec.json.Decoder(RayService).decode


def observe_ray_service(item: RayService) -> ObservedRayService:
    """The facts about one RayService. `serviceStatus` is not among them: KubeRay said Running of a cluster in which
    Serve had not started (kuberay#1559)."""
    status = item.status
    active, pending = status.active_service_status, status.pending_service_status
    conditions = {condition.type: condition for condition in status.conditions or ()}
    upgrading = conditions.get("UpgradeInProgress")
    # KubeRay writes which generation it has seen together with the pending cluster that follows from it.
    is_settled = (
        status.observed_generation >= item.metadata.generation
        and bool(active.ray_cluster_name)
        and not pending.ray_cluster_name
        and (upgrading is None or upgrading.status != "True")
    )
    return ObservedRayService(
        uid=item.metadata.uid,
        revision=(item.metadata.labels or {}).get(LABEL_REVISION),
        deletion_delay_seconds=item.spec.ray_cluster_deletion_delay_seconds,
        is_settled=is_settled,
        endpoints=status.num_serve_endpoints,
        application=active.application().status or None,
        problem=_problem(conditions.get("Ready"), pending, active),
    )


def _problem(ready: Condition | None, *clusters: RayClusterServing) -> str | None:
    if ready is not None and ready.status == "False" and ready.reason in _HOPELESS:
        return _one_line(f"{ready.reason}: {ready.message}")
    failing = (cluster.application() for cluster in clusters if cluster.application().status in _FAILING)
    return next((_one_line(f"{one.status}: {one.message}") for one in failing), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE].removesuffix(":")
