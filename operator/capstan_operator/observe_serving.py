"""One frozen snapshot of one InferenceService: everything `decide` may know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.api.gateway import Gateway
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_runtime.contract.registry import Resolved


@dataclass(frozen=True, slots=True)
class ObservedService:
    """The InferenceService as the API server last showed it."""

    namespace: str
    name: str
    uid: str
    generation: int
    is_deleting: bool
    spec: Mapping[str, Any]
    """As the user wrote it: not validated yet."""
    status: InferenceServiceStatus
    """The newer of what was last written and what was last seen."""
    host_paths: frozenset[str] = frozenset()
    """Folders of nodes with which the Benchmark that made it has begun."""


@dataclass(frozen=True, slots=True)
class ObservedDeployment:
    """The Deployment of one revision, owned by the service."""

    name: str
    """Of the revision too."""
    uid: str
    replicas: int
    """Wanted, not seen."""
    failure: str | None = None
    """Why pods cannot be made (a quota, an admission rule, a missing ServiceAccount); None: nothing is wrong."""


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """One pod of a revision."""

    name: str
    uid: str
    revision: str
    is_ready: bool
    is_deleting: bool
    restarts: int = 0
    """How often its container was started again."""
    exit_code: int | None = None
    """How its container last ended; None: it never did."""
    exit_reason: str | None = None
    """OOMKilled, Error, or the pod's own reason such as Evicted."""
    exit_message: str | None = None
    """Its last words in one line; None: none."""
    waiting: str | None = None
    """Why it does not run, `Reason: message`; None when nothing is wrong."""
    is_prepared: bool = True
    """False: it has a node, and its container was not created yet."""
    image_id: str | None = None
    """Its image as the node resolved it, with its digest; None: it has not yet."""
    is_stuck: bool = False
    """That lasts for more than a minute: something that it mounts may be missing."""


@dataclass(frozen=True, slots=True)
class ObservedResolver:
    """A pod that asks a registry, owned by the service."""

    name: str
    uid: str
    created_at: float
    is_deleting: bool
    is_over: bool = False
    """It ended, and is not started again."""
    answer: Resolved | None = None
    """Its last words after success; None: it has not found out, or said nothing of the kind."""
    problem: str | None = None
    """What its container last ended with, other than an answer; None: it did not."""
    waiting: str | None = None
    """Why it does not run, `Reason: message`; None when nothing is wrong."""


@dataclass(frozen=True, slots=True)
class ObservedRoute:
    """The Service at the stable address, owned by the InferenceService."""

    uid: str
    revision: str | None
    """The one its selector names; None: all revisions."""
    cluster_ip: str | None


@dataclass(frozen=True, slots=True)
class ObservedGatewayRoute:
    """The HTTPRoute of a service with spec.gateway, owned by it."""

    uid: str
    gateway: Gateway | None
    """Whose it is and under which names, in the spec's terms; None: nothing that a spec can ask for."""
    timeout: str | None
    """Of a request; None: none is set, or the API server is too old to know the field."""
    weights: Mapping[str, int]
    """By name of a Service: that of a revision, or the stable one. Those with weight zero are left out."""
    accepted: bool | None = None
    """Whether at least one Gateway takes it and finds all it leads to; None: none has said anything yet."""
    is_current: bool = False
    """Those that take it have seen it as it is now."""
    problem: str | None = None
    """What the first Gateway that is not content says, `Reason: message`; None: all are content, or none spoke."""


@dataclass(frozen=True, slots=True)
class ObservedRayService:
    """The RayService of a service with that backend, owned by it, and what KubeRay says of it."""

    uid: str
    revision: str | None
    """The one it asks for; None: somebody took the label away."""
    deletion_delay_seconds: int | None
    """How long a cluster stays that has no traffic any more; None: as KubeRay likes."""
    is_settled: bool = False
    """KubeRay has seen it as it is now, and the cluster that has the traffic is the one it asks for."""
    endpoints: int = 0
    """Ready pods behind its Service."""
    application: str | None = None
    """What Serve says of the application in the cluster that has the traffic; None: KubeRay did not ask lately."""
    problem: str | None = None
    """Why it cannot go on, `Reason: message`; None when nothing is wrong."""


@dataclass(frozen=True, slots=True)
class ServedTraffic:
    """What the pods of one revision answered within one window of time."""

    requests: int = 0
    """Answers and failures alike; what a guard turned away before the model saw it is not among them."""
    errors: int = 0
    """Of those, the failures: answers 5xx, and requests that ran out of time."""
    latencies: tuple[int, ...] = ()
    """How many of the answers took at most `ObservedTraffic.bounds[i]`; cumulative, as in Prometheus."""
    timed: int = 0
    """Answers in all; what `latencies` lacks of them took longer than the last bound. Failures are not timed: one that
    comes at once must not make a revision look quick."""
    compared: int = 0
    """Answers whose predicted class was compared with the proven revision's."""
    different: int = 0
    """Of those, where the two were not the same."""


@dataclass(frozen=True, slots=True)
class ObservedTraffic:
    """What was counted since one moment, at the same time of all revisions."""

    since: str
    """The `status.rollout.since` for which counting began: numbers of another step say nothing about this one."""
    bounds: tuple[float, ...]
    """Upper bounds of the latency buckets, in seconds, ascending."""
    by_revision: Mapping[str, ServedTraffic]
    """Of those that answered."""
    began: float
    """When counting really began (seconds since 1970): later than `since` if another operator counted before this one,
    or none did."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """What the ready pods of a service, whichever their revision, said of its requests at one moment."""

    at: float
    """Seconds since 1970."""
    ready: int
    """Pods that were ready then."""
    answered: int
    """Of those, the ones that told their numbers, so that the sums below lack the others."""
    ongoing: int
    """Requests that were worked on or waited: the sum of `capstan_serving_ongoing_requests`."""
    turned_away: int = 0
    """Since the sample before: requests answered 429 for lack of room, the growth of `capstan_serving_shed_total` with
    reason `queue` or `adaptive_limit`. A client's own rate limit says nothing about room."""


@dataclass(frozen=True, slots=True)
class ObservedLoad:
    """How many requests a service had lately."""

    samples: tuple[LoadSample, ...]
    """Newest last, a few seconds apart. They go back as far as the longer of the two delays of `spec.autoscaling`, and
    one sample further: of a time before the first of them nothing is known."""


@dataclass(frozen=True, slots=True)
class RevisionLatency:
    """How long the answers of one revision took, over about the last minute."""

    p50: float | None
    """Seconds within which half of them came: the upper bound of a bucket. None: too few to tell, or beyond the last
    bucket."""
    p99: float | None
    """The same for 99 of 100; it takes more of them to tell."""
    requests: int
    """Answers that were timed."""


@dataclass(frozen=True, slots=True)
class ObservedServing:
    """All that is known of one InferenceService."""

    service: ObservedService
    job: ObservedJob | None
    """The TrainingJob that spec.modelRef names; None: it names none, or there is none."""
    deployments: tuple[ObservedDeployment, ...]
    """Those owned by this service (by uid), sorted by name."""
    route: ObservedRoute | None
    """None: there is none yet."""
    replicas: tuple[ObservedReplica, ...]
    """Pods of its Deployments, sorted by name."""
    resolvers: tuple[ObservedResolver, ...] = ()
    """Pods that ask a registry for it, sorted by name."""
    traffic: ObservedTraffic | None = None
    """None: nothing was counted."""
    load: ObservedLoad | None = None
    """None: nothing was asked for, or nobody has answered yet."""
    latencies: Mapping[str, RevisionLatency] = field(default_factory=dict)
    """By revision; one that answered nothing of late may be missing."""
    proven: ObservedRoute | None = None
    """The Service `<name>-proven`, owned by the InferenceService; None: there is none."""
    gateway_route: ObservedGatewayRoute | None = None
    """None: there is none."""
    has_gateway_api: bool = False
    """The API server serves HTTPRoutes."""
    budget_api: str | None = None
    """The apiVersion in which the API server serves PodDisruptionBudgets; None: in none that is known here."""
    has_budget: bool = False
    """Its PodDisruptionBudget is there."""
    ray_service: ObservedRayService | None = None
    """None: there is none."""
    has_kuberay: bool = False
    """The API server serves RayServices."""
    ray_token: str = ""
    """What the processes of this service's Ray clusters know each other by; the same at every look."""
    settings: OperatorSettings = field(default_factory=OperatorSettings)
