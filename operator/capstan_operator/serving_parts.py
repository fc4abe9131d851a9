"""All that looks after InferenceServices, put together. It waits for nothing that TrainingJobs need: on a cluster whose
CRDs are older than the operator, jobs go on."""

import asyncio
from collections.abc import Callable
from functools import partial

from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.events import EventWriter
from capstan_operator.cluster.gateway_routes import HttpRoute, decode_http_route
from capstan_operator.cluster.kinds import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    PODS,
    RAY_SERVICES,
    SERVICES,
    Resource,
)
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.pods import decode_pod
from capstan_operator.cluster.ray_services import RayService, decode_ray_service
from capstan_operator.cluster.reflector import Reflector
from capstan_operator.cluster.replicas import (
    Deployment,
    DisruptionBudget,
    Service,
    decode_deployment,
    decode_disruption_budget,
    decode_service,
)
from capstan_operator.cluster.scraper import Scraper
from capstan_operator.cluster.served import LOOK_SECONDS
from capstan_operator.cluster.serving_store import ServingStore
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey, Priority, WorkQueue
from capstan_operator.metrics import Metrics
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.optional_watch import OptionalWatch
from capstan_operator.own_kind import OwnKind, wait_until_served
from capstan_operator.reconcile_service import ServiceReconciler

_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


class ServingParts:
    """`run` watches, on every replica; `work` asks pods, on the one that leads. `store.replicas` is fed by the
    reflector of pods that TrainingJobs have, too."""

    def __init__(
        self,
        client: KubeClient,
        credentials: Credentials,
        wake: Callable[[ObjectKey, Priority], None],
        jobs: Store,
        metrics: Metrics,
        *,
        token_of: Callable[[str], str],
        namespace: str | None,
        settings: OperatorSettings,
        scrape_seconds: float,
    ) -> None:
        self._client = client
        self._wake = wake
        self._jobs = jobs
        self._metrics = metrics
        self._is_served = False
        self._scraper = Scraper(
            lambda: self.store.targets(),
            lambda key: wake(key, Priority.NORMAL),
            metrics,
            interval_seconds=scrape_seconds,
        )
        self.store = ServingStore(
            wake,
            find_job=self._find_job,
            counts=self._scraper,
            token_of=token_of,
            settings=settings,
            metrics=metrics,
        )
        jobs.jobs.listeners.append(self.store.wake_users)
        self._services = OwnKind(client, credentials, INFERENCE_SERVICES, self.store.services, wake, namespace)
        self._deployments = Reflector(
            client, DEPLOYMENTS, Deployment, self.store.deployments, metrics, namespace=namespace, selector=_SELECTOR
        )
        self._routes = Reflector(
            client, SERVICES, Service, self.store.routes, metrics, namespace=namespace, selector=_SELECTOR
        )
        optional = partial(OptionalWatch, client, metrics=metrics, namespace=namespace, look_seconds=LOOK_SECONDS)
        self._gateways = optional(
            (HTTP_ROUTES,),
            HttpRoute,
            self.store.gateway_routes,
            lambda served: self.store.set_gateway_api(is_served=served is not None),
        )
        self._kuberay = optional(
            (RAY_SERVICES,),
            RayService,
            self.store.ray_services,
            lambda served: self.store.set_kuberay(is_served=served is not None),
        )
        self._budgets = optional(
            DISRUPTION_BUDGETS,
            DisruptionBudget,
            self.store.budgets,
            lambda served: self.store.set_budget_api(served.group_version if served else None),
        )

    async def run(self) -> None:
        """Watch, as soon as the API server serves the kind."""
        await wait_until_served(self._client, INFERENCE_SERVICES, lambda problem: None)
        self._is_served = True
        async with asyncio.TaskGroup() as group:
            for part in (
                self._deployments,
                self._routes,
                self._gateways,
                self._kuberay,
                self._budgets,
                self._services,
            ):
                group.create_task(part.run())
            await self._services.synced.wait()
            for job in self._jobs.jobs.all():
                if not job.is_finished:
                    self._wake(job.key, Priority.NORMAL)  # what of it is served is known only now

    def begin_term(self) -> None:
        """This replica leads from now on."""
        self._scraper.begin_term()

    async def work(self) -> None:
        """While this replica leads."""
        await self._scraper.run()

    def reconciler(self, queue: WorkQueue, events: EventWriter) -> ServiceReconciler:
        return ServiceReconciler(
            queue=queue,
            store=self.store,
            is_seen=self._is_seen,
            children=Children(self._client, INFERENCE_SERVICES.kind, self._take_in),
            statuses=StatusWriter(self._client, INFERENCE_SERVICES, self.store.services, self._metrics),
            safety_net=self._services.safety_net,
            events=events,
        )

    def why_not_ready(self) -> str | None:
        """What was not seen yet; None: all that every service needs. A kind that is not served has no objects."""
        if not self._is_served:
            return None
        for what, part in (
            ("InferenceServices", self._services),
            ("Deployments", self._deployments),
            ("Services", self._routes),
        ):
            if not part.synced.is_set():
                return f"not all {what} have been seen"
        return None

    def _is_seen(self, service: ObjectRecord) -> bool:
        """Whether all is known that this service is made of. Extensions that it has nothing to do with may be as broken
        as they like; and until PodDisruptionBudgets were seen none is made."""
        if self.why_not_ready() is not None:
            return False
        # More than is meant may match: such a service waits for what it does not need.
        needs_gateways = b'"gateway"' in service.spec or b'"Gateway"' in service.status
        needs_kuberay = b'"RayService"' in service.spec + service.status
        return (self._gateways.synced.is_set() or not needs_gateways) and (
            self._kuberay.synced.is_set() or not needs_kuberay
        )

    def roots_in_use(self, job: ObjectKey) -> tuple[str, ...] | None:
        """Of the job's checkpoints; None: not all InferenceServices have been seen."""
        return self.store.roots_in_use.of(job) if self._services.synced.is_set() else None

    def _find_job(self, key: ObjectKey) -> ObservedJob | None:
        job = self._jobs.jobs.get(key)
        return self._jobs.observe_job(job) if job is not None else None

    def _take_in(self, resource: Resource, answer: bytes) -> None:
        if resource is PODS:
            self.store.resolvers.put(decode_pod(answer))
        elif resource is DEPLOYMENTS:
            self.store.deployments.put(decode_deployment(answer))
        elif resource is SERVICES:
            self.store.routes.put(decode_service(answer))
        elif resource is HTTP_ROUTES:
            self.store.gateway_routes.put(decode_http_route(answer))
        elif resource in DISRUPTION_BUDGETS:
            self.store.budgets.put(decode_disruption_budget(answer))
        elif resource is RAY_SERVICES:
            self.store.ray_services.put(decode_ray_service(answer))
