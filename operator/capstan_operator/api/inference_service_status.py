"""The status of an InferenceService: what is served now, and what is on its way."""

from typing import Annotated, Literal

from pydantic import Field

from capstan_operator.api.meta import Condition
from capstan_operator.api.store import Store
from capstan_runtime.contract.base import Record


class ModelStatus(Record):
    """The checkpoint that spec.modelRef means. With `track` it moves on; otherwise it stays."""

    source: Annotated[
        str, Field(description="What it was found by; when the spec names something else, it is found anew.")
    ]
    run: Annotated[str, Field(description="Folder of its run in the store: <namespace>/<job>/<uid>.")]
    digest: Annotated[str, Field(description="Digest of its manifest.")]
    version: Annotated[
        str | None, Field(description="Its name and version in the registry; absent: it was not found there.")
    ] = None
    step: Annotated[int | None, Field(description="Optimizer steps it holds; absent: nobody said.")] = None
    framework: Annotated[
        Literal["flax", "torch"] | None, Field(description="What trained it; absent: nobody said.")
    ] = None
    store: Annotated[Store, Field(description="Where it is kept.")]
    public_key: Annotated[str | None, Field(description="Key it must be signed with; absent: it need not be.")] = None


class GateStatus(Record):
    """What one gate says of a canary's current or last step."""

    name: Annotated[Literal["ErrorRate", "LatencyP99", "Agreement"], Field(description="What is compared.")]
    verdict: Annotated[Literal["Pass", "Fail", "Inconclusive"], Field(description="What the numbers bear so far.")]
    message: Annotated[str, Field(description="The numbers at the time of the verdict.")]


class RevisionFailure(Record):
    """Why a revision was given up. With CorruptCheckpoint or GateFailed it is not tried again while another can serve;
    otherwise once the spec is changed, and where nothing else can serve, after a pause."""

    reason: Annotated[str, Field(description="In one CamelCase word.")]
    message: Annotated[str, Field(description="In one sentence.")]
    pod: Annotated[str | None, Field(description="The pod that showed it; absent: it was no single pod.")] = None
    exit_code: Annotated[int | None, Field(description="How its container ended; 128 + N for signal N.")] = None
    generation: Annotated[
        int | None,
        Field(
            description="Generation of the spec that asked for it; absent: it has asked for another revision since, so "
            "this does not keep it from being tried again."
        ),
    ] = None
    at: Annotated[str, Field(description="When it was seen (RFC 3339).")]


class LatencyStatus(Record):
    """How long answers took, over about a minute before `at`. It follows great changes at once, at most once a minute,
    and small ones when status changes otherwise."""

    p50_milliseconds: Annotated[
        float | None, Field(description="Half of the answers took at most that long; absent: it cannot be told.")
    ] = None
    p99_milliseconds: Annotated[
        float | None, Field(description="99 of 100 answers took at most that long; absent: it cannot be told.")
    ] = None
    at: Annotated[str, Field(description="When it was so (RFC 3339).")]


class RevisionStatus(Record):
    """One revision: a checkpoint, an image, a configuration and a pod template that never change."""

    name: Annotated[str, Field(description="Its name, and that of its Deployment, Service and Secret.")]
    digest: Annotated[str, Field(description="The checkpoint it serves.")]
    job: Annotated[str | None, Field(description="TrainingJob that made that; absent: nobody said.")] = None
    version: Annotated[
        str | None, Field(description="Its name and version in the registry; absent: it was not found there.")
    ] = None
    step: Annotated[int | None, Field(description="Optimizer steps that holds; absent: nobody said.")] = None
    asked: Annotated[
        str | None,
        Field(
            description="Digest of what spec and model asked for when it was made. While they ask for the same, it "
            "stays, whatever a newer operator would make of that. Absent: nobody noted it."
        ),
    ] = None
    phase: Annotated[
        str, Field(description="Starting, Canary, Shifting, Holding, Live, Leaving or Failed; for people.")
    ]
    weight: Annotated[int, Field(description="Percent of the traffic, as trafficMode says.")] = 0
    ready: Annotated[int, Field(description="Pods that are ready.")] = 0
    total: Annotated[int, Field(description="Pods wanted.")] = 0
    images: Annotated[
        list[str],
        Field(
            description="What its pods run, by digest, as their nodes resolved the image. More than one: its tag was "
            "moved meanwhile."
        ),
    ] = []
    latency: Annotated[
        LatencyStatus | None, Field(description="How long its answers take; absent: it had too few to tell.")
    ] = None
    gates: Annotated[list[GateStatus], Field(description="What the gates of a canary say.")] = []
    failure: Annotated[RevisionFailure | None, Field(description="Why it was given up; absent: it was not.")] = None
    failures: Annotated[int, Field(description="How often it was given up.")] = 0


class RolloutStatus(Record):
    """A new revision on its way to all traffic."""

    candidate: Annotated[str, Field(description="Name of the new revision.")]
    phase: Annotated[
        Literal["Starting", "Canary", "Shifting", "Holding"],
        Field(
            description="Starting: pods come up, no traffic. Canary: a share of the traffic. Shifting: the rest moves. "
            "Holding: it has all traffic, the old revision is still there."
        ),
    ]
    step: Annotated[int | None, Field(description="Index of the canary's step; absent: it is in none.")] = None
    started_at: Annotated[
        str | None,
        Field(
            description="When this phase or step began, got one more pod ready or was first seen to lack one of those "
            "its Deployment is to have; the deadline counts from it. Absent: that lacks none, so no deadline runs."
        ),
    ] = None
    ready: Annotated[int, Field(description="Most pods of the candidate that were ready at a time in this phase.")] = 0
    since: Annotated[
        str | None,
        Field(description="When this phase or step had its pods ready, so that its time counts; absent: not yet."),
    ] = None


class InferenceServiceStatus(Record):
    """The truth about the service, written by the operator alone."""

    observed_generation: Annotated[int | None, Field(description="Generation of the spec this describes.")] = None
    reason: Annotated[str | None, Field(description="What is going on, in one CamelCase word.")] = None
    message: Annotated[str | None, Field(description="The same in one sentence.")] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="Facts about the service, one per type.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    url: Annotated[str | None, Field(description="The stable address; it never changes.")] = None
    ready: Annotated[str | None, Field(description="Ready pods behind it, of those wanted.")] = None
    replicas: Annotated[int | None, Field(description="Pods wanted by autoscaling; absent: spec.replicas says.")] = None
    scaled: Annotated[
        str | None, Field(description="How and why autoscaling last changed that; absent: it never did.")
    ] = None
    model: Annotated[ModelStatus | None, Field(description="What spec.modelRef means.")] = None
    served: Annotated[str | None, Field(description="The model most traffic goes to: job@step.")] = None
    digest: Annotated[str | None, Field(description="Its digest, short.")] = None
    traffic: Annotated[str | None, Field(description="Percent of traffic by revision, most first.")] = None
    traffic_mode: Annotated[
        Literal["Selector", "ReplicaRatio", "Gateway"] | None,
        Field(
            description="Selector: one revision has all traffic. ReplicaRatio: each pod has about as much as any "
            "other, so the weights are approximate. Gateway: weights are exact, of what comes through Gateways; url "
            "leads to the proven revision."
        ),
    ] = None
    stable: Annotated[str | None, Field(description="The newest revision that has proven itself; absent: none.")] = None
    rollout: Annotated[RolloutStatus | None, Field(description="A new revision on its way; absent: there is none.")] = (
        None
    )
    revisions: Annotated[
        list[RevisionStatus],
        Field(
            description="Revisions that have pods, and the newest five that failed.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
