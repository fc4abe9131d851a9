"""What Prometheus is told about the request path, beside what Ray says of its own."""

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.serving.refusal import Outcome, Shed

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_TENTHS_OF_A_DECADE = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
_LATENCY_BUCKETS = tuple(round(step * 10.0**power, 6) for power in range(-3, 2) for step in _TENTHS_OF_A_DECADE)
"""1 ms to 80 s in the preferred numbers R10 (ISO 3). A canary is compared by them: percentiles that are as much as a
factor of two apart must not fall into the same bucket."""
_CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Compared(StrEnum):
    """How a comparison with the proven revision ended."""

    SAME = "same"
    DIFFERENT = "different"
    FAILED = "failed"
    """The proven revision gave no answer."""
    DROPPED = "dropped"
    """Too many were waiting, or this replica stopped."""


class Metrics:
    """One replica's. What is looked up on every request is looked up here once."""

    def __init__(self, model: ServedModel) -> None:
        self._registry = CollectorRegistry()
        requests = Counter(
            "capstan_serving_requests", "Inference requests by how they ended.", ["outcome"], registry=self._registry
        )
        self._requests = {outcome: requests.labels(outcome.value) for outcome in Outcome}
        mirrored = Counter(
            "capstan_serving_mirrored_requests",
            "Inference requests marked as mirrored, by how they ended; in no other count of requests.",
            ["outcome"],
            registry=self._registry,
        )
        self._mirrored = {outcome: mirrored.labels(outcome.value) for outcome in Outcome}
        compared = Counter(
            "capstan_serving_compared",
            "Answers whose predicted class was compared with the proven revision's.",
            ["result"],
            registry=self._registry,
        )
        self._compared = {result: compared.labels(result.value) for result in Compared}
        shed = Counter(
            "capstan_serving_shed", "Requests turned away for lack of room.", ["reason"], registry=self._registry
        )
        self._shed = {reason: shed.labels(reason.value) for reason in Shed}
        self._latency = Histogram(
            "capstan_serving_latency_seconds",
            "From a request's first byte to its answer, of those that were answered.",
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "capstan_serving_batch_size",
            "Samples, or sequences, computed together.",
            buckets=_BATCH_BUCKETS,
            registry=self._registry,
        )
        self._confidence = Histogram(
            "capstan_serving_confidence",
            "Probability of the likeliest class.",
            buckets=_CONFIDENCE_BUCKETS,
            registry=self._registry,
        )
        lookups = Counter(
            "capstan_serving_cache_lookups", "Looks into the cache of answers.", ["result"], registry=self._registry
        )
        self._hits, self._misses = lookups.labels("hit"), lookups.labels("miss")
        self._anomalous = Counter(
            "capstan_serving_anomalous_samples",
            "Samples unlike those the model was trained on.",
            registry=self._registry,
        )
        self._tokens = Counter("capstan_serving_generated_tokens", "Tokens generated.", registry=self._registry)
        self._dropped = Counter("capstan_serving_audit_dropped", "Audit lines that were lost.", registry=self._registry)
        info = Gauge(
            "capstan_serving_model_info", "What is served.", ["model", "version", "digest"], registry=self._registry
        )
        info.labels(model.name, model.version, model.root).set(1)

    def show(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"capstan_serving_{name}", text, registry=self._registry).set_function(value)

    def note_end(self, outcome: Outcome, shed: Shed | None, seconds: float) -> None:
        self._requests[outcome].inc()
        if shed is not None:
            self._shed[shed].inc()
        if outcome is Outcome.OK:
            self._latency.observe(seconds)

    def note_mirrored(self, outcome: Outcome) -> None:
        self._mirrored[outcome].inc()

    def note_compared(self, result: Compared) -> None:
        self._compared[result].inc()

    def note_batch(self, size: int) -> None:
        self._batch.observe(size)

    def note_confidence(self, confidence: list[float]) -> None:
        for value in confidence:
            self._confidence.observe(value)

    def note_lookup(self, is_hit: bool) -> None:
        (self._hits if is_hit else self._misses).inc()

    def note_anomalous(self, samples: int) -> None:
        self._anomalous.inc(samples)

    def note_tokens(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    def note_dropped(self, lines: int) -> None:
        self._dropped.inc(lines)

    def render(self) -> bytes:
        return generate_latest(self._registry)
