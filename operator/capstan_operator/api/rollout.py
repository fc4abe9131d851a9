"""How a new revision of an InferenceService takes over, and what a canary must prove before it does."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel

Seconds = Annotated[int, Field(ge=1, le=86400)]


class Gates(Record):
    """What a canary must prove against the revision it is to replace, on the traffic that both get at the same time.

    Confidence holds however often the numbers are looked at, so a verdict comes as soon as they bear it.
    """

    min_requests: Annotated[
        int, Field(ge=1, le=10_000_000, description="Requests the canary must have had in a step to pass it.")
    ] = 100
    max_error_rate_increase: Annotated[
        float,
        Field(
            gt=0.0,
            lt=1.0,
            description="Most by which the share of failed requests may be above that of the other revision; 0.02 is "
            "two in a hundred. Proving 0.02 takes about 400 requests, 0.01 about 900.",
        ),
    ] = 0.02
    max_latency_ratio: Annotated[
        float,
        Field(
            gt=1.0,
            le=100.0,
            description="Most that its 99th percentile of latency may be, as a multiple of the other revision's. The "
            "smaller, the more requests it takes: about 1,000 for 2.",
        ),
    ] = 2.0
    min_agreement: Annotated[
        float | None,
        Field(
            gt=0.0,
            lt=1.0,
            description="Least share of requests for which it must predict the same class as the other revision, which "
            "is sent a sample of what it has answered. A better model differs too: 0.9 allows one in ten. Proving 0.9 "
            "takes about 55 requests when none differs. For classifiers; a change from or to left out makes a new "
            "revision. Left out: answers are not compared.",
        ),
    ] = None
    confidence: Annotated[
        float,
        Field(
            ge=0.5,
            lt=1.0,
            description="Of each verdict. 0.95: of canaries that are just too bad, at most 1 in 20 passes a gate.",
        ),
    ] = 0.95


class CanaryStep(Record):
    """A share of the traffic, and how long it is watched."""

    weight: Annotated[
        int,
        Field(
            ge=1,
            le=99,
            description="Percent of the traffic; after the last step come 100. With spec.gateway it is exact. Without, "
            "it is the share of pods: approximate with few replicas, and at most 50, because the other revision keeps "
            "all its pods.",
        ),
    ]
    hold_seconds: Annotated[
        Seconds, Field(description="Least time at this weight. Gates that are not decided by then extend it, to 4x.")
    ] = 60


class Canary(Record):
    """A growing share of the traffic; each step must pass the gates."""

    model_config = cel(
        (
            "self.steps.map(step, step.weight).isSorted()"
            " && self.steps.all(one, self.steps.exists_one(other, other.weight == one.weight))",
            "'steps: weights must grow from step to step; sort them'",
        )
    )

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=20, description="In order.")] = [
        CanaryStep(weight=5),
        CanaryStep(weight=25),
        CanaryStep(weight=50),
    ]
    gates: Annotated[Gates, Field(description="What must be proven in each step.")] = Gates()

    @model_validator(mode="after")
    def _weights_grow(self) -> Self:
        weights = [step.weight for step in self.steps]
        if any(first >= second for first, second in pairwise(weights)):
            raise ValueError("steps: weights must grow from step to step; sort them")
        return self


class Rolling(Record):
    """Pods of the new revision replace those of the old one as they become ready."""

    max_surge: Annotated[int, Field(ge=1, le=1000, description="Pods there may be beyond replicas meanwhile.")] = 1


class BlueGreen(Record):
    """The new revision is brought up in full size, then all traffic moves at once."""

    hold_seconds: Annotated[
        Annotated[int, Field(ge=0, le=86400)],
        Field(description="How long the old revision stays in full size after that, so that it can take over again."),
    ] = 300


class Strategy(OneOf):
    """How traffic moves from one revision to the next."""

    rolling: Annotated[Rolling | None, Field(description="Pod by pod.")] = None
    canary: Annotated[Canary | None, Field(description="A growing share of traffic, gated by statistics.")] = None
    blue_green: Annotated[BlueGreen | None, Field(description="All at once, with a way back.")] = None


class Rollout(Record):
    """How a new revision takes over, and what happens when it is no good."""

    strategy: Annotated[Strategy, Field(description="How traffic moves. Set exactly one key.")] = Strategy(
        rolling=Rolling()
    )
    auto_rollback: Annotated[
        bool,
        Field(
            description="A revision that fails a gate gives all traffic back. false: it keeps its share and waits for "
            "somebody to change the spec. One that cannot load its checkpoint is given up in any case."
        ),
    ] = True
    progress_deadline_seconds: Annotated[
        Seconds,
        Field(description="Until one more pod of a new revision must be ready, or it has failed."),
    ] = 600
