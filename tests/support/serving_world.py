"""A cluster as far as an InferenceService sees it: Deployments whose pods come, get ready, fail and go; a Gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from capstan_operator.api.inference_service_status import InferenceServiceStatus, RevisionStatus
from capstan_operator.api.meta import LABEL_REVISION
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.serving_children import proven_name
from capstan_operator.cluster.gateway_routes import decode_http_route, observe_gateway_route
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.serving.types import ChildDeletion, ServingDecision
from capstan_operator.decide.times import seconds_since_1970
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.observe_serving import (
    LoadSample,
    ObservedDeployment,
    ObservedGatewayRoute,
    ObservedLoad,
    ObservedReplica,
    ObservedResolver,
    ObservedRoute,
    ObservedService,
    ObservedServing,
    ObservedTraffic,
    RevisionLatency,
    ServedTraffic,
)
from capstan_runtime.contract.registry import RESOLVE, Resolved, ResolveTask
from tests.support.looks import make_job, merged, root

NAMESPACE, SERVICE, SERVICE_UID = "default", "digits", "51ab"
PROVEN = proven_name(SERVICE)
SERVING_SPEC: dict[str, Any] = {"modelRef": {"trainingJob": {"name": "digits"}}, "replicas": 2}
BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1)


GATEWAY = {"parentRefs": [{"name": "public"}]}


def trained(step: int = 200, *, is_verified: bool = True, is_done: bool = True, **spec: Any) -> ObservedJob:
    """The TrainingJob `digits` with a checkpoint of `step`; done: it has succeeded."""
    checkpoint = {"step": step, "root": root(step), "summary": f"{step}@{root(step)[7:15]}"}
    if is_verified:
        checkpoint["verifiedAt"] = "1970-01-01T00:00:00Z"
    ended = {"type": "Succeeded", "status": "True", "reason": "Completed", "lastTransitionTime": "1970-01-01T00:00:00Z"}
    return make_job(spec, TrainingJobStatus.parse({"checkpoint": checkpoint, "conditions": [ended] if is_done else []}))


@dataclass
class GatewayWorld:
    """A Gateway, and what it has heard of the service's HTTPRoute."""

    route: dict[str, Any] | None = None
    """The HTTPRoute as it is stored; None: there is none."""
    is_served: bool = True
    """The API server serves HTTPRoutes."""
    is_quick: bool = True
    """It hears of each change at once; otherwise only when it is told to `hear`."""
    takes: bool | None = True
    """Whether it accepts the route; None: it does not speak."""
    weights: dict[str, int] = field(default_factory=dict)
    """What it does: by name of a Service."""

    def look(self) -> ObservedGatewayRoute | None:
        return observe_gateway_route(decode_http_route(json.dumps(self.route))) if self.route else None

    def apply(self, manifest: dict[str, Any]) -> None:
        generation = self.route["metadata"]["generation"] + 1 if self.route else 1
        metadata = manifest["metadata"] | {"uid": "http-route-uid", "generation": generation}
        status = self.route["status"] if self.route else {}
        self.route = manifest | {"metadata": metadata, "status": status}
        if self.is_quick:
            self.hear()

    def delete(self) -> None:
        self.route = None
        if self.is_quick:
            self.hear()

    def hear(self) -> None:
        """It does what the route says now, and says so."""
        seen = self.look()
        self.weights = dict(seen.weights) if seen and self.takes else {}
        if self.route is None:
            return
        says = {
            True: [{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "True"}],
            False: [
                {
                    "type": "Accepted",
                    "status": "False",
                    "reason": "NotAllowedByListeners",
                    "message": "no listener allows routes from default",
                }
            ],
            None: [],
        }[self.takes]
        generation = self.route["metadata"]["generation"]
        conditions = [{**condition, "observedGeneration": generation} for condition in says]
        self.route["status"] = {"parents": [{"parentRef": {"name": "public"}, "conditions": conditions}]}


@dataclass
class World:
    """One InferenceService and what there is of it. What a decision asks for is there at once; pods get ready when
    `get_ready` says so."""

    spec: dict[str, Any] = field(default_factory=dict)
    """What is merged into the least spec to begin with; from then on the whole of it."""
    job: ObservedJob | None = field(default_factory=trained)
    status: InferenceServiceStatus = field(default_factory=InferenceServiceStatus)
    deployments: dict[str, int] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)
    route: ObservedRoute | None = None
    proven: ObservedRoute | None = None
    """The Service that answers are compared by."""
    pods: dict[str, ObservedReplica] = field(default_factory=dict)
    traffic: dict[str, ServedTraffic] = field(default_factory=dict)
    counted_from: float = 0.0
    """When the operator that is there began to count."""
    load: list[LoadSample] = field(default_factory=list)
    latencies: dict[str, RevisionLatency] = field(default_factory=dict)
    gateway: GatewayWorld = field(default_factory=GatewayWorld)
    resolvers: dict[str, ObservedResolver] = field(default_factory=dict)
    """Pods that ask a registry, by name."""
    questions: dict[str, ResolveTask] = field(default_factory=dict)
    """What they ask, of those that are gone too."""
    budget_api: str | None = None
    """The apiVersion in which PodDisruptionBudgets are served; None: they are not."""
    budget: dict[str, Any] | None = None
    """The PodDisruptionBudget; None: there is none."""
    now: float = 100.0
    events: list[str] = field(default_factory=list)
    generation: int = 1
    quota: str | None = None
    """Why no further pod is made; None: they are."""
    made: int = 0
    """Pods there ever were."""
    settings: OperatorSettings = field(default_factory=OperatorSettings)
    """Of the operator that leads now."""

    def __post_init__(self) -> None:
        self.spec = self._seen_spec = merged(SERVING_SPEC, self.spec)

    @property
    def stable(self) -> str | None:
        return self.status.stable

    @property
    def candidate(self) -> str | None:
        return self.status.rollout.candidate if self.status.rollout else None

    def look(self) -> ObservedServing:
        """All that the operator can see now."""
        if self.spec != self._seen_spec:
            self._seen_spec, self.generation = self.spec, self.generation + 1
        rollout = self.status.rollout
        counted = None
        if rollout and rollout.since:
            began = max(seconds_since_1970(rollout.since), self.counted_from)
            counted = ObservedTraffic(rollout.since, BOUNDS, dict(self.traffic), began)
        return ObservedServing(
            service=ObservedService(NAMESPACE, SERVICE, SERVICE_UID, self.generation, False, self.spec, self.status),
            job=self.job,
            deployments=tuple(
                ObservedDeployment(name, f"{name}-uid", size, failure=self.quota)
                for name, size in sorted(self.deployments.items())
            ),
            route=self.route,
            replicas=tuple(sorted(self.pods.values(), key=lambda pod: pod.name)),
            resolvers=tuple(one for _, one in sorted(self.resolvers.items())),
            traffic=counted,
            load=ObservedLoad(tuple(self.load)) if self.load else None,
            latencies=dict(self.latencies),
            proven=self.proven,
            gateway_route=self.gateway.look() if self.gateway.is_served else None,
            has_gateway_api=self.gateway.is_served,
            budget_api=self.budget_api,
            has_budget=self.budget is not None,
            settings=self.settings,
        )

    def replace_operator(self) -> None:
        """Another one leads from now on: it has the record and what can be seen, but no numbers."""
        self.traffic, self.counted_from = {}, self.now

    def decide(self) -> ServingDecision:
        """One look, and what was decided on it carried out."""
        decision = decide_inference_service(self.look(), self.now)
        self.carry_out(decision)
        return decision

    def settle(self, *, passes: int = 12) -> None:
        """Look and act until nothing changes any more at this moment."""
        for _ in range(passes):
            before = self.status
            decision = self.decide()
            parts = (decision.apply, decision.scale, decision.delete, decision.create, decision.delete_pods)
            if self.status == before and not any(parts):
                return
        raise AssertionError(f"still deciding after {passes} looks: {self.status.message}")

    def carry_out(self, decision: ServingDecision) -> None:
        for manifest in decision.apply:
            self._apply(manifest)
        for scale in decision.scale:
            self.deployments[scale.deployment] = scale.replicas
        for deletion in decision.delete:
            self._delete(deletion)
        for pod in decision.create:
            self._create(pod)
        for gone in decision.delete_pods:
            del self.resolvers[gone.name]
        self.status = InferenceServiceStatus.parse(decision.status.document())
        self.events += [f"{note.type} {note.reason}: {note.message}" for note in decision.events]
        self.match_pods()

    def answer(self, version: str, step: int) -> None:
        """The pod that asks a registry has found out: the version is the checkpoint of this step."""
        (name,) = self.resolvers
        answer = Resolved(
            name=self.questions[name].name,
            version=version,
            digest=root(step),
            run="default/digits/7f3a",
            step=step,
            framework="deepspeed",
        )
        self.resolvers[name] = replace(self.resolvers[name], is_over=True, answer=answer)

    def match_pods(self) -> None:
        """What the Deployment controller does: pods for those that lack some, fewer for those that have too many."""
        for name, size in self.deployments.items():
            own = [pod for pod in self.pods.values() if pod.revision == name and not pod.is_deleting]
            for _ in range(0 if self.quota else size - len(own)):
                self.made += 1
                pod = f"{name}-{self.made}"
                self.pods[pod] = ObservedReplica(pod, f"{pod}-uid", name, is_ready=False, is_deleting=False)
            surplus = sorted(own, key=lambda pod: pod.is_ready)[: max(0, len(own) - size)]
            for gone in surplus:
                del self.pods[gone.name]
        for name in [pod.name for pod in self.pods.values() if pod.revision not in self.deployments]:
            del self.pods[name]

    def get_ready(self, revision: str | None = None, count: int | None = None) -> None:
        """Pods of this revision, or of all, become ready."""
        waiting = [pod for pod in self.pods.values() if not pod.is_ready and revision in (None, pod.revision)]
        for pod in waiting[:count]:
            self.pods[pod.name] = replace(pod, is_ready=True)

    def note_load(self, ongoing: int, turned_away: int = 0, silent: int = 0) -> None:
        """The ready pods, but for the silent ones, are asked how many requests they have."""
        ready = sum(pod.is_ready and not pod.is_deleting for pod in self.pods.values())
        self.load.append(LoadSample(self.now, ready, max(0, ready - silent), ongoing, turned_away))

    def change_pods(self, revision: str | None, **changes: Any) -> None:
        for pod in [pod for pod in self.pods.values() if pod.revision == revision]:
            self.pods[pod.name] = replace(pod, **changes)

    def lose_pods(self, revision: str | None, count: int) -> None:
        """So many ready pods are ready no more."""
        for pod in [pod for pod in self.pods.values() if pod.revision == revision and pod.is_ready][:count]:
            self.pods[pod.name] = replace(pod, is_ready=False)

    def behind(self) -> dict[str, int]:
        """Ready pods that get requests now, by revision."""
        if self.route is None:
            return {}
        ready = [pod.revision for pod in self.pods.values() if pod.is_ready and not pod.is_deleting]
        chosen = [name for name in ready if self.route.revision in (None, name)]
        return {name: chosen.count(name) for name in sorted(set(chosen))}

    def through_gateway(self) -> dict[str, int]:
        """Percent of what comes through the Gateway, by revision; of none ("") what goes to Services that are gone."""
        total = sum(self.gateway.weights.values())
        shares: dict[str, int] = {}
        for service, weight in self.gateway.weights.items():
            percent = 100 * weight // total
            if service != SERVICE:
                shares[service if service in self.services else ""] = percent
                continue
            behind = self.behind()
            for name, count in behind.items():
                shares[name] = percent * count // sum(behind.values())
        return shares

    def revision(self, name: str | None) -> RevisionStatus:
        return next(one for one in self.status.revisions if one.name == name)

    def _apply(self, manifest: Mapping[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Secret":
                self.secrets.add(name)
                self.change_pods(name, is_stuck=False)
            case "Deployment":
                self.deployments[name] = manifest["spec"]["replicas"]
            case "Service" if name == SERVICE:
                self.route = ObservedRoute("route-uid", manifest["spec"]["selector"].get(LABEL_REVISION), "127.1.2.3")
            case "Service" if name == PROVEN:
                self.proven = ObservedRoute("proven-uid", manifest["spec"]["selector"][LABEL_REVISION], "127.1.2.4")
            case "Service":
                self.services.add(name)
            case "HTTPRoute":
                self.gateway.apply(dict(manifest))
            case "PodDisruptionBudget":
                self.budget = dict(manifest)

    def _create(self, pod: Mapping[str, Any]) -> None:
        name = pod["metadata"]["name"]
        assert name not in self.resolvers
        self.resolvers[name] = ObservedResolver(name, f"{name}-uid", self.now, is_deleting=False)
        (question,) = (one["value"] for one in pod["spec"]["containers"][0]["env"] if one["name"] == RESOLVE)
        self.questions[name] = ResolveTask.model_validate_json(question)

    def _delete(self, deletion: ChildDeletion) -> None:
        match deletion.kind:
            case "Deployment":
                self.deployments.pop(deletion.name, None)
            case "Service":
                self.services.discard(deletion.name)
                self.proven = None if deletion.name == PROVEN else self.proven
            case "Secret":
                self.secrets.discard(deletion.name)
            case "HTTPRoute":
                self.gateway.delete()
            case "PodDisruptionBudget":
                self.budget = None


def live(*, job: ObservedJob | None = None, settings: OperatorSettings | None = None, **spec: Any) -> World:
    """A world whose first revision has all traffic and has settled."""
    world = World(spec=spec, job=job or trained(), settings=settings or OperatorSettings())
    world.settle()
    world.get_ready()
    world.settle()
    assert world.status.reason == "Live", world.status
    return world
