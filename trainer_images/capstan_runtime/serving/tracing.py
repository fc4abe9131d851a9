"""OpenTelemetry spans of a request. Nothing of it is imported where tracing is off."""

import threading
import time
from time import perf_counter

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from capstan_runtime.contract.serving import ServeConfig, Tracing
from capstan_runtime.serving.exchange import Exchange
from capstan_runtime.serving.refusal import Outcome

_EXPORT_SECONDS = 2.0
"""For one attempt to send, its retries included."""


class Tracer:
    """A request's spans are made when it has ended, from the times it passed its stations: nothing runs while it is on
    its way. A collector that does not answer loses spans, never requests: they are sent by a thread of the library."""

    def __init__(self, config: Tracing, service: ServeConfig, exporter: SpanExporter | None = None) -> None:
        """`exporter` None: to the configured endpoint."""
        resource = Resource.create(
            {
                "service.name": service.service,
                "service.version": service.model.version,
                "capstan.model.name": service.model.name,
                "capstan.model.digest": service.model.root,
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(config.sampling_ratio),
            resource=resource,
            shutdown_on_exit=False,  # it would wait for a collector that is not there
        )
        exporter = exporter or OTLPSpanExporter(
            endpoint=f"{config.endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("capstan_runtime.serving")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, exchange: Exchange) -> None:
        """The spans of a request that has ended: itself, and within it queue, batch and model, as far as it came."""
        ended = perf_counter()
        # Spans have wall-clock times, stations those of a clock that never jumps.
        offset = time.time_ns() - int(ended * 1e9)
        parent = exchange.headers.get(b"traceparent")
        carrier = {} if parent is None else {"traceparent": parent.decode("latin-1")}
        trip = exchange.trip
        root = self._tracer.start_span(
            exchange.path,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            start_time=offset + int(trip.received * 1e9),
            attributes={"http.response.status_code": exchange.status, "capstan.request_id": exchange.request_id},
        )
        if root.is_recording():
            if exchange.outcome is Outcome.FAILED:
                root.set_status(Status(StatusCode.ERROR))
            within = set_span_in_context(root)
            stations = (
                ("queue", trip.admitted, trip.batched),
                ("batch", trip.batched, trip.computing),
                ("model", trip.computing, trip.computed),
            )
            for name, begin, end in stations:
                if begin and end:
                    span = self._tracer.start_span(name, within, start_time=offset + int(begin * 1e9))
                    span.end(offset + int(end * 1e9))
        root.end(offset + int(ended * 1e9))

    def stop(self, patience_seconds: float) -> None:
        """Sends what waits, for at most so long: the library itself waits for a dead collector far longer."""
        stopping = threading.Thread(target=self._provider.shutdown, name="tracing-stop", daemon=True)
        stopping.start()
        stopping.join(patience_seconds)
