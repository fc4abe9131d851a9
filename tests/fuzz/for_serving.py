"""What a replica reads: requests in every protocol, their headers, other replicas' answers, its configuration."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
import orjson
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from capstan_runtime.contract import env
from capstan_runtime.contract.serving import Audit, Cache, Guards, InputRange, InputValidation, RateLimit, Tracing
from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica.settings import read_settings
from capstan_runtime.serving.exchange import Exchange
from capstan_runtime.serving.labels import label_form
from capstan_runtime.serving.tracing import Tracer
from tests.fuzz.loop import run
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target
from tests.serving.asgi import Client, Response, classifier_app, decoder_app
from tests.serving.models import serve_config

T = TypeVar("T")

_INFER, _PREDICT, _COMPLETE = "/v2/models/digits/infer", "/v1/models/digits:predict", "/v1/completions"
_TENSOR = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}


@cache
def _client(kind: str) -> Client:
    """Of an application that has started, with every guard that reads something of a request."""
    quiet = {"audit_sink": lambda line: None, "log": lambda line: None}
    guards = Guards(
        timeout_seconds=60.0, audit=Audit(), cache=Cache(), rate_limit=RateLimit(requests=1_000_000),
        validation=InputValidation(max_body_kibibytes=64, range=InputRange(min=-1e6, max=1e6)),
    )  # fmt: skip
    app = (
        classifier_app(guards, **quiet) if kind == "classifier" else decoder_app(Guards(timeout_seconds=60.0), **quiet)
    )
    run(app.start())
    return Client(app)


def _answered(response: Response) -> bool:
    """A 4xx in the protocol's form, or the right answer; it is never the server that fails."""
    assert response.is_complete
    assert response.status == 200 or 400 <= response.status < 500, (response.status, response.body[:500])
    if response.status != 200:
        assert 0 < len(response.error) < 500
    return response.status == 200


def _body_of(kind: str, path: str) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        return _answered(run(_client(kind).request("POST", path, data)))

    return feed


def _binary(data: bytes) -> bool:
    """The first line is the header that says how long the JSON is."""
    header, _, body = data.partition(b"\n")
    headers = {"inference-header-content-length": header.decode("latin-1")}
    return _answered(run(_client("classifier").request("POST", _INFER, body, headers)))


def _binary_seeds() -> list[bytes]:
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    document = orjson.dumps({"inputs": [tensor]})
    return [b"%d\n" % len(document) + document + struct.pack("<4f", 0, 1, 2, 3)]


def _headers(data: bytes) -> bool:
    """A good request with these headers; a server hands over none that has a line end in it."""
    pairs = [line.decode("latin-1").partition(": ") for line in data.replace(b"\r", b"").split(b"\n") if line]
    headers = {name: value for name, _, value in pairs}
    response = run(_client("classifier").request("POST", _INFER, orjson.dumps({"inputs": [_TENSOR]}), headers))
    return _answered(response)


_GOOD_HEADERS = (
    b"content-type: application/json\nx-request-id: 5f-1\ntraceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\n"
    b"capstan-mirrored: 1\nauthorization: Bearer k\naccept: */*\nuser-agent: x"
)


@cache
def _tracer() -> Tracer:
    return Tracer(Tracing(endpoint="http://127.0.0.1:9"), serve_config(), InMemorySpanExporter())


def _trace(data: bytes) -> bool:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("no body is read for a trace")

    scope = {"path": "/v2", "headers": [(b"traceparent", data)]}
    _tracer().record(Exchange(scope, nothing, nothing))
    return True


def _label(data: bytes) -> bool:
    is_taken = False
    for protocol in ("OpenInference", "KServeV1"):
        try:
            label_form([protocol], "digits").read(data)
            is_taken = True
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return is_taken


def _config(data: bytes) -> bool:
    path = scratch() / "serve.json"
    path.write_bytes(data)
    try:
        read_settings({env.SERVE_CONFIG: str(path), env.POD_IP: "127.0.0.1", env.STORE: "/store"})
    except ConfigError:
        return False
    return True


def _dumped(*documents: Any) -> Callable[[], Sequence[bytes]]:
    return lambda: [json.dumps(document).encode() for document in documents]


TARGETS = (
    Target("infer", "clients", "serving.oip", "4xx", "json",
           _dumped({"inputs": [_TENSOR]}, {"inputs": [{**_TENSOR, "data": [[0, 1, 2, 3]]}], "id": "1",
                   "outputs": [{"name": "label"}], "parameters": {"binary_data_output": True}}),
           _body_of("classifier", _INFER)),
    Target("infer-binary", "clients", "serving.oip", "4xx", "bytes", _binary_seeds, _binary),
    Target("infer-headers", "clients", "serving.exchange", "4xx", "lines", lambda: [_GOOD_HEADERS], _headers),
    Target("predict", "clients", "serving.kserve_v1", "4xx", "json", _dumped({"instances": [[0, 1, 2, 3]]}),
           _body_of("classifier", _PREDICT)),
    Target("completions", "clients", "serving.openai", "4xx", "json",
           _dumped({"model": "digits", "prompt": "def ", "max_tokens": 3, "temperature": 0, "stop": ["x"], "seed": 1},
                   {"model": "digits", "prompt": [1, 2], "max_tokens": 2, "logprobs": 2, "stream": True,
                    "stream_options": {"include_usage": True}}),
           _body_of("decoder", _COMPLETE)),
    Target("traceparent", "clients", "serving.tracing.Tracer", "a trace of its own", "bytes",
           lambda: [b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"], _trace),
    Target("label", "other replicas", "serving.labels", "what msgspec raises", "json",
           _dumped({"outputs": [{"data": [3]}]}, {"predictions": [{"label": 3}]}), _label),
    Target("serve-config", "the operator", "serve_replica.settings.read_settings", "ConfigError", "json",
           lambda: [serve_config().model_dump_json(by_alias=True).encode()], _config),
)  # fmt: skip
