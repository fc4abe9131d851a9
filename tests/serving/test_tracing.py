"""Spans of requests, and a collector that is not there."""

from __future__ import annotations

import subprocess
import sys
import time

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from capstan_runtime.contract.serving import Tracing
from capstan_runtime.serving.tracing import Tracer
from tests.serving.asgi import classifier_app, running
from tests.serving.models import ROOT, NumpyClassifier, serve_config

TRACING = Tracing(endpoint="http://127.0.0.1:9", sampling_ratio=1.0)


async def test_a_request_has_spans_for_queue_batch_and_model_within_its_own() -> None:
    exporter = InMemorySpanExporter()
    model = NumpyClassifier()
    app = classifier_app(model=model)
    tracer = app._tracer = Tracer(TRACING, serve_config(), exporter)
    async with running(app) as client:
        model.on_call = lambda inputs: time.sleep(0.02)
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "r-7"}
        await client.infer([[0.0, 1.0, 2.0, 3.0]], headers)
        await client.infer([[0.0]], {"traceparent": "nonsense\xff"})
        tracer._provider.force_flush()
    *stages, whole, refused = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["queue", "batch", "model"]
    assert whole.attributes == {"http.response.status_code": 200, "capstan.request_id": "r-7"}
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 400
    assert f"{whole.context.trace_id:032x}" == trace
    assert {span.parent.span_id for span in stages if span.parent} == {whole.context.span_id}
    times = [(span.start_time or 0, span.end_time or 0) for span in (*stages, whole)]
    assert all(times[-1][0] <= start <= end <= times[-1][1] for start, end in times)
    assert times[2][1] - times[2][0] >= 15e6
    assert abs(times[-1][1] / 1e9 - time.time()) < 5
    assert whole.resource.attributes["capstan.model.digest"] == ROOT


SERVE_AND_STOP = """
import asyncio
from capstan_runtime.contract.serving import Guards, Tracing
from tests.serving.asgi import classifier_app, running

async def main():
    tracing = Tracing(endpoint="http://127.0.0.1:9", sampling_ratio=1.0)
    async with running(classifier_app(Guards(tracing=tracing))) as client:
        print([(await client.infer([[0.0, 1.0, 2.0, 3.0]])).status for _ in range(3)])

asyncio.run(main())
print("stopped")
"""


def test_a_collector_that_is_not_there_costs_its_spans_but_no_request_and_no_long_farewell() -> None:
    """In a process of its own, which must end by itself; the library alone waits half a minute."""
    shown = subprocess.run(
        [sys.executable, "-c", SERVE_AND_STOP], capture_output=True, text=True, check=True, timeout=25
    )
    assert shown.stdout == "[200, 200, 200]\nstopped\n"


def test_without_tracing_nothing_of_it_is_imported_and_no_framework_either() -> None:
    code = (
        "import sys, capstan_runtime.serving.app; "
        "heavy = {'opentelemetry', 'ray', 'jax', 'torch', 'fastapi', 'aiohttp', 'uvicorn', 'starlette'}; "
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "[]\n"
