"""The serving half of an InferenceService: how requests are met, guarded and answered, and what a replica is told.

Like `config.py`, these models are embedded in the CRD's `spec` and travel unchanged to the pods. A guard without a
default that is left out is absent: a request passes no code of it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Fraction, Record, cel
from capstan_runtime.contract.saving import Verification

PositiveSeconds = Annotated[float, Field(gt=0.0, le=86400.0)]


API_KEYS_FOLDER = "/etc/capstan/api-keys"
"""Where a pod finds the Secret that `guards.auth` names: a file for each client, named after it, with its key."""
TLS_FOLDER = "/etc/capstan/tls"
"""Where it finds the Secret that `guards.tls` names: tls.crt and tls.key."""


class LocalObjectReference(Record):
    """An object of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Its name.")]


class Auth(Record):
    """Requests must carry an API key, as `Authorization: Bearer` or `X-Api-Key`. Probes and metrics need none."""

    api_keys_secret_ref: Annotated[
        LocalObjectReference,
        Field(
            description="Secret with one entry per client: the entry's name is the client's, its value the key. "
            "Changes take effect without a restart."
        ),
    ]


class Tls(Record):
    """Requests, probes and metrics are answered over TLS alone, 1.2 or newer."""

    secret_ref: Annotated[
        LocalObjectReference,
        Field(
            description="Secret of type kubernetes.io/tls: tls.crt, with the chain that clients need, and tls.key. "
            "A renewal takes effect without a restart, for new connections."
        ),
    ]


class Queue(Record):
    """How many requests a replica takes on. Beyond that it answers 429 with Retry-After at once."""

    max_ongoing_requests: Annotated[
        int, Field(ge=1, le=100_000, description="Requests a replica works on at a time, batches included.")
    ] = 64
    max_queued_requests: Annotated[
        int, Field(ge=0, le=1_000_000, description="Requests that may wait for one of those places, per replica.")
    ] = 256


class Batching(Record):
    """Requests that arrive within a short window are computed together."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096, description="Most samples computed together.")] = 32
    wait_milliseconds: Annotated[
        float, Field(ge=0.0, le=10_000.0, description="How long the first request of a batch waits for others.")
    ] = 2.0


class AdaptiveLimit(Record):
    """Finds how many requests at a time a replica can take without making them wait (gradient of the latency)."""

    min_ongoing: Annotated[int, Field(ge=1, description="Never fewer at a time.")] = 2
    latency_ratio: Annotated[
        float, Field(gt=1.0, le=100.0, description="Latency over that of an idle replica from which fewer are taken.")
    ] = 2.0


class RateLimit(Record):
    """How many requests a client may make. A client is an API key or, without keys, an address."""

    requests: Annotated[int, Field(ge=1, description="Requests allowed in each `seconds`, per client and replica.")]
    seconds: Annotated[int, Field(ge=1, le=86400, description="Length of the window, in seconds.")] = 1
    burst: Annotated[
        int | None, Field(ge=1, description="Requests a client that was quiet may make at once; left out: `requests`.")
    ] = None


class CircuitBreaker(Record):
    """After too many failures in a row of the model, requests are turned away until a trial succeeds."""

    failures: Annotated[int, Field(ge=1, le=10_000, description="Failed batches in a row that open the circuit.")] = 5
    open_seconds: Annotated[
        float, Field(gt=0.0, le=3600.0, description="Seconds until one request is let through as a trial.")
    ] = 10.0


class Cache(Record):
    """Answers of a deterministic model are kept, least recently used first out."""

    max_mebibytes: Annotated[int, Field(ge=1, le=1_048_576, description="Memory for kept answers, in MiB.")] = 64
    ttl_seconds: Annotated[
        float | None, Field(gt=0.0, description="Seconds an answer is kept at most. Left out: as long as it fits.")
    ] = None


class InputRange(Record):
    """Values an input may have."""

    model_config = cel(
        ("self.min <= self.max", "'min ' + string(self.min) + ' is above max ' + string(self.max) + '; lower min'")
    )

    min: Annotated[float, Field(description="The least.")]
    max: Annotated[float, Field(description="The greatest.")]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; lower min")
        return self


class InputValidation(Record):
    """What is refused before the model sees it. Shape, type and finite numbers are always checked."""

    max_body_kibibytes: Annotated[
        int, Field(ge=1, le=1_048_576, description="Size of a request's body, in KiB; a larger one is answered 413.")
    ] = 4096
    max_samples: Annotated[int, Field(ge=1, le=65536, description="Samples in one request.")] = 256
    range: Annotated[InputRange | None, Field(description="Of every input value. Left out: any finite one.")] = None


class Anomaly(Record):
    """Marks or refuses inputs that are unlike those the model was trained on, by the energy of its logits
    (Liu et al., 2020, arXiv 2010.03759)."""

    model_config = cel(
        ("has(self.energyAbove) || has(self.confidenceBelow)", "'set energyAbove, confidenceBelow or both'"),
    )

    action: Annotated[
        Literal["Flag", "Reject"], Field(description="Flag: the answer says so. Reject: the answer is 422.")
    ] = "Flag"
    energy_above: Annotated[
        float | None,
        Field(description="Energy, -logsumexp(logits), from which an input is anomalous. Left out: not checked."),
    ] = None
    confidence_below: Annotated[
        Fraction | None, Field(description="Greatest class probability below which it is. Left out: not checked.")
    ] = None

    @model_validator(mode="after")
    def _has_a_threshold(self) -> Self:
        if self.energy_above is None and self.confidence_below is None:
            raise ValueError("set energyAbove, confidenceBelow or both")
        return self


class Audit(Record):
    """A line of JSON for every request: who, what digest, which outcome; each holds the hash of the one before it."""

    payload: Annotated[bool, Field(description="Keep inputs and outputs too, not only their hashes.")] = False
    max_buffered: Annotated[
        int, Field(ge=1, le=1_000_000, description="Lines that may wait to be written; more are dropped and counted.")
    ] = 10_000


class Tracing(Record):
    """OpenTelemetry spans for the queue, the batch and the model."""

    endpoint: Annotated[str, Field(pattern=r"^https?://", description="OTLP/HTTP collector.")]
    sampling_ratio: Annotated[Fraction, Field(description="Share of requests that are traced.")] = 0.01


class Guards(Record):
    """All that stands between a request and the model."""

    model_config = cel(
        (
            "!has(self.adaptiveLimit) || self.adaptiveLimit.minOngoing <= self.queue.maxOngoingRequests",
            "'adaptiveLimit.minOngoing ' + string(self.adaptiveLimit.minOngoing)"
            " + ' is above queue.maxOngoingRequests ' + string(self.queue.maxOngoingRequests) + '; lower minOngoing'",
        ),
    )

    auth: Annotated[Auth | None, Field(description="Left out: everybody is answered.")] = None
    tls: Annotated[Tls | None, Field(description="Left out: plain HTTP.")] = None
    timeout_seconds: Annotated[
        PositiveSeconds, Field(description="Until a request that was not answered gets 504. No header can raise it.")
    ] = 30.0
    queue: Annotated[Queue, Field(description="How many requests a replica takes on.")] = Queue()
    batching: Annotated[
        Batching | None, Field(description="Left out: up to 32 samples of 2 ms. maxBatchSize 1: each by itself.")
    ] = Batching()
    rate_limit: Annotated[RateLimit | None, Field(description="Left out: none.")] = None
    adaptive_limit: Annotated[AdaptiveLimit | None, Field(description="Left out: `queue` alone bounds it.")] = None
    circuit_breaker: Annotated[
        CircuitBreaker | None, Field(description="Left out: opens for 10 s after 5 failed batches in a row.")
    ] = CircuitBreaker()
    cache: Annotated[Cache | None, Field(description="Left out: every answer is computed.")] = None
    validation: Annotated[InputValidation, Field(description="What is refused unseen.")] = InputValidation()
    anomaly: Annotated[Anomaly | None, Field(description="Left out: answers carry confidence and energy only.")] = None
    audit: Annotated[Audit | None, Field(description="Left out: no record is kept.")] = None
    tracing: Annotated[Tracing | None, Field(description="Left out: no spans.")] = None

    @model_validator(mode="after")
    def _adaptive_limit_fits(self) -> Self:
        if self.adaptive_limit is not None and self.adaptive_limit.min_ongoing > self.queue.max_ongoing_requests:
            raise ValueError(
                f"adaptiveLimit.minOngoing {self.adaptive_limit.min_ongoing} is above queue.maxOngoingRequests "
                f"{self.queue.max_ongoing_requests}; lower minOngoing"
            )
        return self


class ServedModel(Record):
    """The one checkpoint that a revision serves."""

    name: str
    """Under which clients ask for it: the InferenceService's name."""
    version: str
    """Name of the revision."""
    run: str
    """Uid of the TrainingJob that made it; its folder in the store is the environment's business (`env.STORE`)."""
    root: str
    """The checkpoint's digest. Nothing else is ever served."""
    verify: Verification = Verification()


class Compare(Record):
    """A sample of the requests that were answered is asked of the proven revision too, and the classes are compared."""

    url: str
    """Of the Service that always leads to the proven revision: scheme, host and port."""
    most_per_second: Annotated[float, Field(gt=0.0)] = 10.0
    """Requests that a replica compares; more are not sampled."""


class ServeConfig(Record):
    """One revision, the same document for each of its pods (file `serve.json` of the revision's Secret)."""

    service: str
    """`namespace/name`, for messages, metrics and audit."""
    model: ServedModel
    runtime: Literal["flax", "torch"]
    """What computes it; a checkpoint of either framework loads into both."""
    protocols: tuple[Literal["OpenInference", "KServeV1", "OpenAI"], ...] = ("OpenInference", "KServeV1")
    guards: Guards = Guards()
    drain_seconds: Annotated[float, Field(ge=0.0)] = 10.0
    """From SIGTERM until no new request can come any more: the routes' time to hear of it."""
    finish_seconds: Annotated[float | None, Field(ge=0.0)] = None
    """From then until what was begun is cut off. None: `guards.timeoutSeconds`; only streams outlast it."""
    compare: Compare | None = None
    """None: answers are not compared."""

    @property
    def longest_finish_seconds(self) -> float:
        return self.guards.timeout_seconds if self.finish_seconds is None else self.finish_seconds
