"""What the operator has seen of InferenceServices: themselves, their Deployments, pods, and ways there: Services that
lead elsewhere later, HTTPRoutes; and RayServices.

As in `store.py`, everything that arrives goes through here, older versions are dropped, and a change that matters wakes
the service it belongs to.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import orjson
from pydantic import ValidationError

from capstan_operator.api.autoscaling import Autoscaling
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import LABEL_REGISTRY
from capstan_operator.build.serving_children import proven_name
from capstan_operator.cluster.family import Child, Family, Seen
from capstan_operator.cluster.gateway_routes import HttpRoute, observe_gateway_route
from capstan_operator.cluster.kinds import INFERENCE_SERVICES
from capstan_operator.cluster.objects import ObjectRecord, Objects
from capstan_operator.cluster.pods import Metadata, Pod, seconds_of
from capstan_operator.cluster.ray_services import RayService, observe_ray_service
from capstan_operator.cluster.replicas import (
    Address,
    Deployment,
    DisruptionBudget,
    Service,
    address_of,
    observe_deployment,
    observe_replica,
    observe_resolver,
    observe_route,
    served_by,
)
from capstan_operator.cluster.roots_in_use import RootsInUse
from capstan_operator.cluster.scraper import Target
from capstan_operator.cluster.statuses import read_known_status
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.observe_serving import (
    ObservedDeployment,
    ObservedGatewayRoute,
    ObservedLoad,
    ObservedRayService,
    ObservedReplica,
    ObservedResolver,
    ObservedRoute,
    ObservedService,
    ObservedServing,
    ObservedTraffic,
    RevisionLatency,
)

STUCK_SECONDS = 60.0
"""Long for creating a container, unless its image is large: until then nothing is said."""
STUCK = "ContainerCreating: a Secret or a volume may be missing, or the image is large; kubectl describe pod says which"


class Counts(Protocol):
    """What replicas said of their requests, by the service's uid. A Scraper is one."""

    def traffic(self, service_uid: str) -> ObservedTraffic | None: ...

    def load(self, service_uid: str) -> ObservedLoad | None: ...

    def latency(self, service_uid: str) -> Mapping[str, RevisionLatency]: ...


class ServingStore:
    """`wake(key, priority)` is called after each change that matters. `find_job` looks a TrainingJob up; `counts` is
    what the replicas were asked for; `token_of` a service's uid is what its Ray clusters ask for."""

    def __init__(
        self,
        wake: Callable[[ObjectKey, Priority], None],
        *,
        find_job: Callable[[ObjectKey], ObservedJob | None],
        counts: Counts,
        token_of: Callable[[str], str],
        settings: OperatorSettings,
        metrics: Metrics,
    ) -> None:
        self._wake = wake
        self._find_job = find_job
        self._counts = counts
        self._token_of = token_of
        self._settings = settings
        self._metrics = metrics
        self._users: dict[ObjectKey, set[ObjectKey]] = {}
        """The services that serve what a TrainingJob makes, by the job."""
        self._jobs_used: dict[ObjectKey, ObjectKey] = {}
        """The other way round."""
        self._load_seconds: dict[ObjectKey, float] = {}
        """How far back the services whose size follows their load look at it."""
        self.host_paths_of: Callable[[str, str | None], frozenset[str]] = lambda namespace, owner_uid: frozenset()
        """Folders of nodes with which the Benchmark of this namespace and uid has begun."""
        self.roots_in_use = RootsInUse(self._wake_normally)
        self.services = Objects(INFERENCE_SERVICES.kind, self._changed)
        self.deployments = Family(_read_deployment, self._wake_normally)
        self.routes = Family(_read_route, self._wake_normally)
        self.gateway_routes = Family(_read_gateway_route, self._wake_normally)
        self.ray_services = Family(_read_ray_service, self._wake_normally)
        self.replicas = Family(_read_replica, self._wake_normally)
        self.resolvers = Family(_read_resolver, self._wake_normally)
        self._has_gateway_api = False
        self._has_kuberay = False
        self.budgets = Family(_read_budget, self._wake_normally)
        self._budget_api: str | None = None
        metrics.services.set_function(lambda: len(self.services))
        metrics.replicas.set_function(lambda: len(self.replicas))

    def observe(self, key: ObjectKey) -> ObservedServing | None:
        """Everything known about one service, frozen; None when there is no such service."""
        service = self.services.get(key)
        if service is None:
            return None
        job = self._jobs_used.get(key)
        return ObservedServing(
            service=ObservedService(
                namespace=key.namespace,
                name=key.name,
                uid=service.uid,
                generation=service.generation,
                is_deleting=service.is_deleting,
                spec=orjson.loads(service.spec),
                status=read_known_status(service, InferenceServiceStatus, self._metrics),
                host_paths=self.host_paths_of(key.namespace, service.owner_uid),
            ),
            job=self._find_job(job) if job is not None else None,
            deployments=tuple(one.seen for one in self.deployments.of(key) if one.owner_uid == service.uid),
            route=self._route(service, key.name),
            replicas=tuple(_judged(one) for one in self.pods_of(service)),
            resolvers=tuple(one.seen for one in self.resolvers.of(key) if one.owner_uid == service.uid),
            traffic=self._counts.traffic(service.uid),
            load=self._counts.load(service.uid),
            latencies=self._counts.latency(service.uid),
            proven=self._route(service, proven_name(key.name)),
            gateway_route=self._gateway_route(service),
            has_gateway_api=self._has_gateway_api,
            budget_api=self._budget_api,
            has_budget=any(one.owner_uid == service.uid for one in self.budgets.of(key)),
            ray_service=next((one.seen for one in self.ray_services.of(key) if one.owner_uid == service.uid), None),
            has_kuberay=self._has_kuberay,
            ray_token=self._token_of(service.uid),
            settings=self._settings,
        )

    def targets(self) -> Iterator[Target]:
        """Every pod that can be asked for its numbers."""
        for service in self.services.all():
            since = _step_began(service)
            for pod in self.pods_of(service):
                if pod.address is not None:
                    yield Target(
                        service=service.key,
                        service_uid=service.uid,
                        revision=pod.seen.revision,
                        pod_uid=pod.seen.uid,
                        ip=pod.address.ip,
                        is_tls=pod.address.is_tls,
                        since=since,
                        is_ready=pod.seen.is_ready and not pod.seen.is_deleting,
                        load_seconds=self._load_seconds.get(service.key),
                    )

    def _route(self, service: ObjectRecord, name: str) -> ObservedRoute | None:
        found = (one.seen for one in self.routes.of(service.key) if (one.owner_uid, one.name) == (service.uid, name))
        return next(found, None)

    def _gateway_route(self, service: ObjectRecord) -> ObservedGatewayRoute | None:
        """None as well while HTTPRoutes are not known to be served: one that was just listed, or comes with the answer
        to a write, would look as if nobody wanted it."""
        if not self._has_gateway_api:
            return None
        return next((one.seen for one in self.gateway_routes.of(service.key) if one.owner_uid == service.uid), None)

    def pods_of(self, service: ObjectRecord) -> list[Child[ObservedReplica]]:
        """Its pods, sorted by name. Those that are older than it are left of another service of the same name."""
        return [one for one in self.replicas.of(service.key) if one.created_at >= service.created_at]

    def set_gateway_api(self, *, is_served: bool) -> None:
        """Whether the API server serves HTTPRoutes. Those of one that does not are gone."""
        if is_served == self._has_gateway_api:
            return
        self._has_gateway_api = is_served
        if not is_served:
            self.gateway_routes.clear()
        self._wake_all()

    def set_kuberay(self, *, is_served: bool) -> None:
        """Whether the API server serves RayServices. Those of one that does not are gone."""
        if is_served == self._has_kuberay:
            return
        self._has_kuberay = is_served
        if not is_served:
            self.ray_services.clear()
        self._wake_all()

    def _wake_all(self) -> None:
        for service in self.services.all():
            self._wake(service.key, Priority.NORMAL)

    def set_budget_api(self, api: str | None) -> None:
        """The apiVersion in which the API server serves PodDisruptionBudgets; None: in none that is known here."""
        if api == self._budget_api:
            return
        self._budget_api = api
        if api is None:
            self.budgets.clear()
        self._wake_all()

    def wake_users(self, job: ObjectKey) -> None:
        """Something about this TrainingJob changed."""
        for key in sorted(self._users.get(job, ())):
            self._wake(key, Priority.NORMAL)

    def _changed(self, key: ObjectKey) -> None:
        service = self.services.get(key)
        self._index(key, service)
        self.roots_in_use.note(key, service)
        self._wake(key, Priority.NORMAL)

    def _wake_normally(self, key: ObjectKey) -> None:
        self._wake(key, Priority.NORMAL)

    def _index(self, key: ObjectKey, service: ObjectRecord | None) -> None:
        before = self._jobs_used.pop(key, None)
        if before is not None:
            self._users[before].discard(key)
            if not self._users[before]:
                del self._users[before]
        name = _job_name(service) if service is not None else None
        if name is not None:
            job = ObjectKey(key.namespace, name)
            self._jobs_used[key] = job
            self._users.setdefault(job, set()).add(key)
        load_seconds = _load_seconds(service) if service is not None else None
        if load_seconds is None:
            self._load_seconds.pop(key, None)
        else:
            self._load_seconds[key] = load_seconds


def _judged(pod: Child[ObservedReplica]) -> ObservedReplica:
    """The pod as it is now: one whose container is not created for long says so."""
    if pod.seen.is_prepared or pod.seen.waiting or time.time() - pod.created_at < STUCK_SECONDS:
        return pod.seen
    return replace(pod.seen, is_stuck=True, waiting=STUCK)


def _step_began(service: ObjectRecord) -> str | None:
    """`status.rollout.since` while the service is in a canary's step; else None."""
    rollout = orjson.loads(service.status).get("rollout")
    if not isinstance(rollout, dict) or rollout.get("phase") != "Canary":
        return None
    since = rollout.get("since")
    return since if isinstance(since, str) else None


def _job_name(service: ObjectRecord) -> str | None:
    """`spec.modelRef.trainingJob.name` of a spec that nobody has checked yet."""
    found = orjson.loads(service.spec)
    for field in ("modelRef", "trainingJob", "name"):
        found = found.get(field) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _load_seconds(service: ObjectRecord) -> float | None:
    """The longer of the two delays of `spec.autoscaling`; None: the load decides nothing, or the spec is invalid."""
    scaling = orjson.loads(service.spec).get("autoscaling")
    try:
        delays = Autoscaling.parse(scaling) if scaling is not None else None
    except ValidationError:
        return None
    return float(max(delays.upscale_delay_seconds, delays.downscale_delay_seconds)) if delays is not None else None


def _read_deployment(item: Deployment) -> Child[ObservedDeployment] | None:
    owner = _owning_service(item.metadata)
    return _child(*owner, item.metadata, observe_deployment(item)) if owner is not None else None


def _read_route(item: Service) -> Child[ObservedRoute] | None:
    """The Services whose destination changes; those of single revisions are passed over."""
    owner = _owning_service(item.metadata)
    if owner is None or item.metadata.name not in (owner[0].name, proven_name(owner[0].name)):
        return None
    return _child(*owner, item.metadata, observe_route(item))


def _read_gateway_route(item: HttpRoute) -> Child[ObservedGatewayRoute] | None:
    owner = _owning_service(item.metadata)
    if owner is None or item.metadata.name != owner[0].name:
        return None
    return _child(*owner, item.metadata, observe_gateway_route(item))


def _read_budget(item: DisruptionBudget) -> Child[None] | None:
    owner = _owning_service(item.metadata)
    if owner is None or item.metadata.name != owner[0].name:
        return None
    return _child(*owner, item.metadata, None)


def _read_ray_service(item: RayService) -> Child[ObservedRayService] | None:
    owner = _owning_service(item.metadata)
    if owner is None or item.metadata.name != owner[0].name:
        return None
    return _child(*owner, item.metadata, observe_ray_service(item))


def _read_replica(item: Pod) -> Child[ObservedReplica] | None:
    """A pod, known by its labels, since a ReplicaSet owns it. One that ended for good (was evicted, say) is none any
    more: another one takes its place."""
    found = served_by(item.metadata)
    if found is None or item.status.phase in ("Succeeded", "Failed"):
        return None
    name, revision = found
    key = ObjectKey(item.metadata.namespace, name, INFERENCE_SERVICES.kind)
    return _child(key, None, item.metadata, observe_replica(item, revision), address_of(item))


def _read_resolver(item: Pod) -> Child[ObservedResolver] | None:
    owner = _owning_service(item.metadata)
    if owner is None or LABEL_REGISTRY not in (item.metadata.labels or {}):
        return None
    return _child(*owner, item.metadata, observe_resolver(item))


def _owning_service(metadata: Metadata) -> tuple[ObjectKey, str] | None:
    """(service, its uid); None: no InferenceService owns it."""
    owner = metadata.controller()
    if owner is None or owner.kind != INFERENCE_SERVICES.kind:
        return None
    return ObjectKey(metadata.namespace, owner.name, INFERENCE_SERVICES.kind), owner.uid


def _child(
    service: ObjectKey, owner_uid: str | None, metadata: Metadata, seen: Seen, address: Address | None = None
) -> Child[Seen]:
    created_at = seconds_of(metadata.creation_timestamp)
    return Child(service, owner_uid, metadata.name, metadata.resource_version, created_at, address, seen)
