"""InferenceService: its spec, and the rules that bind several fields."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from capstan_operator.api.autoscaling import Autoscaling
from capstan_operator.api.backend import RAY_SERVICE_RULES, Backend, ray_service_problem
from capstan_operator.api.gateway import Gateway
from capstan_operator.api.managed_by import MANAGED_BY_RULE, ManagedBy
from capstan_operator.api.placement import Placement
from capstan_operator.api.rollout import Rollout
from capstan_operator.api.store import Store
from capstan_runtime.contract.base import OneOf, Record, cel, rules_of
from capstan_runtime.contract.registry import RUN_FOLDER, ModelName, ModelVersion, StageName
from capstan_runtime.contract.serving import Guards

Digest = Annotated[
    str,
    Field(pattern=r"^blake3:[0-9a-f]{64}$", description="A checkpoint's name: the digest of its manifest, blake3:…"),
]
PublicKey = Annotated[
    str,
    Field(
        min_length=1,
        description="PEM of an ECDSA public key. Given: only a checkpoint signed with its private key is served.",
    ),
]
STOP_SECONDS = 10
"""Left to a replica after its last request to take Ray down and write its last words."""
STREAM_SECONDS = 300
"""Left to streams that were begun when a pod goes, where nobody says how long: as Knative leaves to its pods."""
MOST_BY_PODS = 50
"""Percent that a canary can have of the pods, while the other revision keeps all of its own."""


class JobModel(Record):
    """A model that a TrainingJob of the same namespace made."""

    model_config = cel(
        (
            "!(self.track && has(self.digest))",
            "'track follows new checkpoints and digest names one; remove one of the two'",
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the TrainingJob.")]
    track: Annotated[
        bool,
        Field(
            description="Roll out each newer checkpoint once it is verified, one rollout after another. false: what "
            "the job ends with when it succeeds is served, and stays."
        ),
    ] = False
    digest: Annotated[
        Digest | None, Field(description="Serve exactly this checkpoint of the job. Left out: see track.")
    ] = None
    public_key: Annotated[
        PublicKey | None,
        Field(
            description="PEM of an ECDSA public key that the checkpoint must be signed with. Left out: that of the "
            "job's checkpoint.verify, if it has one."
        ),
    ] = None

    @model_validator(mode="after")
    def _follows_or_names(self) -> Self:
        if self.track and self.digest:
            raise ValueError("track follows new checkpoints and digest names one; remove one of the two")
        return self


class StoredModel(Record):
    """A checkpoint in a store, whoever made it."""

    store: Annotated[Store, Field(description="Where it is kept.")]
    run: Annotated[
        str,
        Field(
            pattern=RUN_FOLDER,
            max_length=512,
            description="Folder of the run in the store: <namespace>/<job>/<uid>.",
        ),
    ]
    digest: Annotated[Digest, Field(description="The checkpoint's digest. Nothing else is ever served.")]
    public_key: Annotated[
        PublicKey | None,
        Field(description="PEM of an ECDSA public key that it must be signed with. Left out: it may be unsigned."),
    ] = None


class RegisteredModel(Record):
    """A model by its name in the registry of a store."""

    model_config = cel(
        (
            "has(self.version) != has(self.stage)",
            "'registry: give version, which never changes, or stage, whose promotions are followed; exactly one'",
        ),
    )

    store: Annotated[Store, Field(description="The store that holds the registry, and the checkpoints it names.")]
    name: ModelName
    version: Annotated[ModelVersion | None, Field(description="Serve exactly this version, once it is registered.")] = (
        None
    )
    stage: Annotated[
        StageName | None,
        Field(description="Serve what this stage means, and roll out what is promoted to it, such as production."),
    ] = None
    public_key: Annotated[
        PublicKey | None,
        Field(
            description="PEM of an ECDSA public key that the version's entry must be signed with, which vouches for "
            "every byte of it. Left out: it may be unsigned."
        ),
    ] = None

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if (self.version is None) == (self.stage is None):
            raise ValueError(
                "registry: give version, which never changes, or stage, whose promotions are followed; exactly one"
            )
        return self


class ModelRef(OneOf):
    """What is served. All that is loaded of it is hashed and compared, always."""

    training_job: Annotated[JobModel | None, Field(description="What a TrainingJob made.")] = None
    uri: Annotated[StoredModel | None, Field(description="A checkpoint by its place in a store.")] = None
    registry: Annotated[
        RegisteredModel | None, Field(description="A version of a model that was registered: capstan model list.")
    ] = None


_ONLY_CLASSES = (
    "rollout.strategy.canary.gates.minAgreement: compares predicted classes, and protocols has OpenAI, which is for "
    "language models; remove one of the two"
)
_CANARY = "self.rollout.strategy.canary"
_TOO_MUCH_FOR_PODS = (
    f"rollout.strategy.canary.steps: a weight above {MOST_BY_PODS} needs a Gateway; lower it or set spec.gateway"
)

_TLS_BEHIND_GATEWAY = (
    "gateway: Gateways speak plain HTTP to pods, and with tls pods speak TLS alone; remove tls and let the Gateway's "
    "listener end TLS, or remove gateway"
)


class InferenceServiceSpec(Guards, Placement):
    """What to serve, how it is guarded and how changes are rolled out. The operator never writes here."""

    model_config = cel(
        *rules_of(Guards),
        (
            "!has(self.modelRef.uri) || has(self.runtime)",
            "'runtime: is needed with modelRef.uri, which does not say what trained the model; choose flax or torch'",
        ),
        (
            "!(has(self.replicas) && has(self.autoscaling))",
            "'autoscaling: decides how many pods there are, and replicas ' + string(self.replicas)"
            " + ' does too; remove one of the two'",
        ),
        (
            "!has(self.autoscaling) || self.autoscaling.targetOngoingRequests"
            " <= self.queue.maxOngoingRequests + self.queue.maxQueuedRequests",
            "'autoscaling: targetOngoingRequests ' + string(self.autoscaling.targetOngoingRequests)"
            " + ' is above the ' + string(self.queue.maxOngoingRequests + self.queue.maxQueuedRequests)"
            " + ' that queue lets into a pod (maxOngoingRequests + maxQueuedRequests); lower it'",
        ),
        (
            "!has(self.rollout.strategy.canary) || !has(self.rollout.strategy.canary.gates.minAgreement)"
            " || !('OpenAI' in self.protocols)",
            f"'{_ONLY_CLASSES}'",
        ),
        (
            f"has(self.gateway) || !has({_CANARY}) || {_CANARY}.steps.all(step, step.weight <= {MOST_BY_PODS})",
            f"'{_TOO_MUCH_FOR_PODS}'",
        ),
        ("!(has(self.gateway) && has(self.tls))", f'"{_TLS_BEHIND_GATEWAY}"'),
        (
            "!has(self.terminationGracePeriodSeconds) || double(self.terminationGracePeriodSeconds)"
            f" >= double(self.drainSeconds) + double(self.timeoutSeconds) + {STOP_SECONDS:.1f}",
            "'terminationGracePeriodSeconds: ' + string(self.terminationGracePeriodSeconds) + ' is below drainSeconds '"
            " + string(self.drainSeconds) + ' + timeoutSeconds ' + string(double(self.timeoutSeconds))"
            f" + ' + {STOP_SECONDS} to end; raise it'",
        ),
        *RAY_SERVICE_RULES,
        MANAGED_BY_RULE,
    )

    model_ref: Annotated[ModelRef, Field(description="What is served.")]
    runtime: Annotated[
        Literal["flax", "torch"] | None,
        Field(
            description="What computes it; a checkpoint of either framework loads into both. Left out: the framework "
            "that trained it."
        ),
    ] = None
    backend: Backend = "Auto"
    protocols: Annotated[
        list[Literal["OpenInference", "KServeV1", "OpenAI"]],
        Field(min_length=1, max_length=3, description="What is spoken. OpenAI is for language models."),
    ] = ["OpenInference", "KServeV1"]
    replicas: Annotated[
        int | None, Field(ge=1, le=1000, description="Pods that serve. Left out, and autoscaling too: 1.")
    ] = None
    autoscaling: Annotated[
        Autoscaling | None, Field(description="Requests decide how many pods serve. Instead of replicas.")
    ] = None
    rollout: Annotated[Rollout, Field(description="How a new revision takes over.")] = Rollout()
    gateway: Annotated[
        Gateway | None,
        Field(
            description="Gateways of the Gateway API that lead here. A canary then has its exact weight of what comes "
            "through them. The Service, which clients in the cluster use, leads to the proven revision until the "
            "canary has passed: those clients are in no canary. Left out: the Service alone; weights are shares of "
            "pods."
        ),
    ] = None
    image: Annotated[
        str | None, Field(min_length=1, description="Container image. Left out: the operator's image for serving.")
    ] = None
    gpus: Annotated[int, Field(ge=0, le=16, description="NVIDIA GPUs per pod; 0 computes on the CPU.")] = 0
    drain_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="From SIGTERM until a pod takes no new request: the time that Services, Gateways and load "
            "balancers have to hear that it leaves. Load balancers of clouds need 30 or more. A change makes a new "
            "revision.",
        ),
    ] = 10
    termination_grace_period_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=86400,
            description="From SIGTERM until a pod is killed. What it has begun, streams included, is finished until "
            "10 s before that; it ends as soon as all is. Left out: drainSeconds + timeoutSeconds + 10; with protocol "
            "OpenAI, whose streams may last longer, no less than drainSeconds + 310. A change makes a new revision.",
        ),
    ] = None
    pod_patch: Annotated[
        dict[str, Any] | None,
        Field(
            description="Merged into every pod (strategic merge: containers by name, volumes by name). The container "
            "is called server. terminationGracePeriodSeconds is the spec's own. A change makes a new revision. What it "
            "says of the pod itself, such as serviceAccountName, holds for the pod that asks a registry, too.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None
    managed_by: ManagedBy = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The spec a JSON document describes. Types are strict, as the API server's are: "3" is not 3."""
        return cls.model_validate(document, strict=True, by_alias=True, by_name=False)

    @property
    def guards(self) -> Guards:
        """The part that travels to the pods."""
        return Guards(**{name: getattr(self, name) for name in Guards.model_fields})

    @property
    def request_seconds(self) -> float | None:
        """How long an answer may take; None: streams take as long as they get on."""
        return None if "OpenAI" in self.protocols else self.timeout_seconds

    @property
    def finish_seconds(self) -> float:
        """How long what was begun may take once a pod takes nothing new."""
        if self.termination_grace_period_seconds is not None:
            return float(self.termination_grace_period_seconds - self.drain_seconds - STOP_SECONDS)
        return self.request_seconds or max(self.timeout_seconds, STREAM_SECONDS)

    @model_validator(mode="after")
    def _stored_models_have_a_runtime(self) -> Self:
        if self.model_ref.uri and not self.runtime:
            raise ValueError(
                "runtime: is needed with modelRef.uri, which does not say what trained the model; choose flax or torch"
            )
        return self

    @model_validator(mode="after")
    def _one_decides_the_size(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError(
                f"autoscaling: decides how many pods there are, and replicas {self.replicas} does too; "
                "remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> Self:
        most = self.queue.max_ongoing_requests + self.queue.max_queued_requests
        if self.autoscaling is not None and self.autoscaling.target_ongoing_requests > most:
            raise ValueError(
                f"autoscaling: targetOngoingRequests {self.autoscaling.target_ongoing_requests} is above the {most} "
                "that queue lets into a pod (maxOngoingRequests + maxQueuedRequests); lower it"
            )
        return self

    @model_validator(mode="after")
    def _only_classes_are_compared(self) -> Self:
        canary = self.rollout.strategy.canary
        if canary and canary.gates.min_agreement is not None and "OpenAI" in self.protocols:
            raise ValueError(_ONLY_CLASSES)
        return self

    @model_validator(mode="after")
    def _pods_can_have_the_weights(self) -> Self:
        canary = self.rollout.strategy.canary
        if canary and not self.gateway and any(step.weight > MOST_BY_PODS for step in canary.steps):
            raise ValueError(_TOO_MUCH_FOR_PODS)
        return self

    @model_validator(mode="after")
    def _grace_is_enough(self) -> Self:
        grace = self.termination_grace_period_seconds
        if grace is not None and grace < self.drain_seconds + self.timeout_seconds + STOP_SECONDS:
            raise ValueError(
                f"terminationGracePeriodSeconds: {grace} is below drainSeconds {self.drain_seconds} + timeoutSeconds "
                f"{self.timeout_seconds:g} + {STOP_SECONDS} to end; raise it"
            )
        return self

    @model_validator(mode="after")
    def _gateways_can_talk_to_pods(self) -> Self:
        if self.gateway and self.tls:
            raise ValueError(_TLS_BEHIND_GATEWAY)
        return self

    @model_validator(mode="after")
    def _the_backend_can_do_it(self) -> Self:
        if self.backend == "RayService" and (problem := ray_service_problem(self)):
            raise ValueError(problem)
        return self
