"""Whatever comes, it is answered with a 4xx in the protocol's form, or with the right answer."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from capstan_runtime.contract.serving import Guards, InputRange, InputValidation
from capstan_runtime.serving.app import Application
from tests.serving.asgi import Client, Response, classifier_app, decoder_app, metric, running
from tests.serving.conftest import Serve
from tests.serving.models import NumpyClassifier

INFER = "/v2/models/digits/infer"
PREDICT = "/v1/models/digits:predict"
COMPLETE = "/v1/completions"
GOOD = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}


def oip(**changes: Any) -> bytes:
    return orjson.dumps({"inputs": [{**GOOD, **changes}]})


def v1(instances: Any) -> bytes:
    return orjson.dumps({"instances": instances})


BAD_OIP: list[tuple[bytes, str]] = [
    (b"", "truncated"),
    (b"not json", "malformed"),
    (b'{"inputs": [', "truncated"),
    (b"[]", "Expected `object`"),
    (b"{}", "missing required field `inputs`"),
    (b'{"inputs": []}', "inputs: got \\[\\]"),
    (b'{"inputs": {}}', "Expected `array`"),
    (b"\xff\xfe", "malformed"),
    (b'{"inputs": [{"name": "\xff"}]}', "not one of the Open Inference Protocol"),
    (b"[" * 100_000, "nested too deeply|Expected `object`"),
    (b'{"inputs":' + b"[" * 100_000, "nested too deeply|Expected `object`"),
    (b'{"x":' + b"[" * 100_000, "nested too deeply|truncated"),
    (b'{"x":' + b'{"a":' * 100_000, "nested too deeply|truncated"),
    (oip(data="[1]"), "Expected `array`"),
    (oip(data=[0, 1, 2, "3"]), "Expected `float`, got `str`"),
    (oip(data=[0, 1, 2, None]), "Expected `float`, got `null`"),
    (oip(data=[0, 1, 2, True]), "Expected `float`, got `bool`"),
    (oip(data=[0, 1, 2]), "3 values do not fill shape \\[1, 4\\]; send 4"),
    (oip(data=[0, 1, 2, 3, 4]), "5 values do not fill"),
    (oip(data=[[0, 1], [2, 3]]), "nested data has shape \\[2, 2\\]"),
    (oip(data=[[0, 1, 2], [3]]), "rows of different lengths"),
    (oip(data=[[[0, 1, 2, 3]]]), "Expected `float`, got `array`"),
    (oip(data=[[]]), "nested data has shape \\[1, 0\\]"),
    (oip(data=[]), "0 values do not fill"),
    (oip(data=[0, 1, 2, 1e39]), "NaN, infinite or too large for FP32"),
    (oip().replace(b"[0,1,2,3]", b"[0,1,2,NaN]"), "malformed|invalid"),
    (oip().replace(b"[0,1,2,3]", b"[0,1,2,Infinity]"), "malformed|invalid"),
    (oip().replace(b"[0,1,2,3]", b"[0,1,2,1e999]"), "out of range"),
    (oip().replace(b"[0,1,2,3]", b"[0,1,2,3"), "malformed|truncated"),
    (oip().replace(b"[0,1,2,3]", b"[" * 5000 + b"]" * 5000), "got `array`|nested too deeply"),
    (oip(shape=[4]), "shape \\[4\\] does not fit the model; send \\[n, 4\\]"),
    (oip(shape=[1, 5]), "does not fit"),
    (oip(shape=[-1, 4]), "-1 samples in one request"),
    (oip(shape=[0, 4], data=[]), "0 samples in one request; send 1 to 256"),
    (oip(shape=[257, 4]), "257 samples"),
    (oip(shape=[1 << 62, 4]), "samples in one request"),
    (oip(shape=[1, 4] * 50), "100 dimensions"),
    (oip(shape=[1.5, 4]), "Expected `int`"),
    (oip(shape="4"), "Expected `array`"),
    (oip(datatype="BYTES", data=["a"]), "datatype 'BYTES' is not supported; use one of BOOL"),
    (oip(datatype="FP8"), "datatype 'FP8' is not supported"),
    (oip(datatype=5), "Expected `str`"),
    (oip(datatype="UINT8", data=[0, 1, 2, 256]), "a value does not fit datatype UINT8"),
    (oip(datatype="UINT8", data=[0, 1, 2, -1]), "a value does not fit datatype UINT8"),
    (oip(datatype="INT64", data=[0, 1, 2, 0.5]), "Expected `int`, got `float`"),
    (oip(datatype="BOOL", data=[0, 1, 0, 1]), "Expected `bool`"),
    (oip(name="image"), "the model has one, called 'input'"),
    (orjson.dumps({"inputs": [GOOD, GOOD]}), "the model has one, called 'input'"),
    (orjson.dumps({"inputs": [GOOD], "id": "a" * 300}), "id: 300 characters"),
    (orjson.dumps({"inputs": [GOOD], "id": 5}), "Expected `str`"),
    (orjson.dumps({"inputs": [GOOD], "outputs": [{"name": "logits"}]}), "there is no such output"),
    (orjson.dumps({"inputs": [GOOD], "outputs": ["label"]}), "Expected `object`"),
    (orjson.dumps({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}), "must be true or false"),
    (
        orjson.dumps({"inputs": [GOOD], "outputs": [{"name": "label", "parameters": {"classification": 3}}]}),
        "classification extension is not supported",
    ),
    (oip(parameters={"binary_data_size": 16}), "both data and binary_data_size"),
    (orjson.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32"}]}), "neither data nor"),
]


@pytest.mark.parametrize(("body", "message"), BAD_OIP, ids=range(len(BAD_OIP)))
async def test_a_bad_open_inference_request_is_told_what_is_wrong(body: bytes, message: str) -> None:
    model = NumpyClassifier()
    async with running(classifier_app(model=model)) as client:
        calls = len(model.batches)
        response = await client.request("POST", INFER, body)
        assert response.status == 400
        assert list(response.json) == ["error"]
        assert re.search(message, response.error), response.error
        assert len(model.batches) == calls
        assert len(response.error) < 400


BAD_V1: list[tuple[bytes, str]] = [
    (b"{}", "missing required field `instances`"),
    (v1([]), "instances: must be a list of samples"),
    (v1([[]]), "instances: must be a list of samples|samples have shape"),
    (v1([0, 1, 2, 3]), "must be a list of samples of shape \\[4\\]"),
    (v1([[0, 1, 2]]), "samples have shape \\[3\\]; send \\[4\\]"),
    (v1([[0, 1, 2, 3], [0]]), "samples differ in shape"),
    (v1([[0, 1, 2, "3"]]), "Expected `float`, got `str`"),
    (v1([[[0, 1, 2, 3]]]), "must be a list of samples"),
    (v1([[0, 1, 2, 3]] * 257), "257 samples in one request"),
    (v1({"input": [0, 1, 2, 3]}), "must be a list of samples"),
    (v1("text"), "must be a list of samples"),
    (v1(None), "must be a list of samples"),
    (v1([[0, 1, 2, 1e300]]), "NaN, infinite or too large"),
    (b'{"instances": ' + b"[" * 100_000, "nested too deeply|truncated"),
]


@pytest.mark.parametrize(("body", "message"), BAD_V1, ids=range(len(BAD_V1)))
async def test_a_bad_kserve_v1_request_is_told_what_is_wrong(body: bytes, message: str) -> None:
    async with running(classifier_app()) as client:
        response = await client.request("POST", PREDICT, body)
        assert (response.status, list(response.json)) == (400, ["error"])
        assert re.search(message, response.error), response.error


@pytest.mark.parametrize(
    ("header", "size", "raw", "message"),
    [
        ("x", 16, bytes(16), "is not the length of the JSON"),
        ("-1", 16, bytes(16), "is not the length of the JSON"),
        ("9" * 30, 16, bytes(16), "is not the length of the JSON"),
        ("1e2", 16, bytes(16), "is not the length of the JSON"),
        ("0", 16, bytes(16), "truncated"),
        ("+5", 16, bytes(16), "malformed|truncated|protocol"),
        ("-5", 16, bytes(16), "malformed|truncated|is not the length"),
        (None, 16, bytes(16), "malformed|trailing"),
        ("", 15, bytes(15), "binary_data_size 15 does not fit FP32 \\[1, 4\\]: 16 bytes"),
        ("", 16, bytes(15), "binary_data_size is 16, but 15 bytes follow"),
        ("", 16, bytes(17), "binary_data_size is 16, but 17 bytes follow"),
        ("", -16, b"", "binary_data_size is -16"),
        ("", True, bytes(1), "binary_data_size is no number"),
        ("", "16", bytes(16), "binary_data_size is no number"),
        ("", 1 << 80, bytes(16), "binary_data_size is"),
        ("", 16, struct.pack("<4f", 0, 0, 0, float("nan")), "NaN, infinite"),
        ("", 16, struct.pack("<4f", 0, 0, 0, float("-inf")), "NaN, infinite"),
    ],
)
async def test_a_bad_binary_request_is_told_what_is_wrong(
    header: str | None, size: Any, raw: bytes, message: str
) -> None:
    """`header`: "" the right length, "+5" five more, "-5" five fewer, None left out, else as it is."""
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": "SIZE"}}
    # A number that orjson will not write is put in as text.
    literal = str(size).lower() if isinstance(size, bool | int) else orjson.dumps(size).decode()
    document = orjson.dumps({"inputs": [tensor]}).replace(b'"SIZE"', literal.encode())
    shift = {"": 0, "+5": 5, "-5": -5}.get(header or "")
    headers = {}
    if header is not None:
        headers["inference-header-content-length"] = header if shift is None else str(len(document) + shift)
    async with running(classifier_app()) as client:
        response = await client.request("POST", INFER, document + raw, headers)
        assert response.status == 400, response.body
        assert re.search(message, response.error), response.error


@pytest.mark.parametrize("path", [INFER, PREDICT])
async def test_values_outside_the_range_are_refused(path: str) -> None:
    guards = Guards(validation=InputValidation(range=InputRange(min=0, max=2)))
    async with running(classifier_app(guards)) as client:
        body = oip() if path == INFER else v1([[0, 1, 2, 3]])
        response = await client.request("POST", path, body)
        assert response.status == 400
        assert "values from 0 to 3 leave the range 0 to 2; scale them as in training" in response.error


@pytest.mark.parametrize(("path", "is_decoder"), [(INFER, False), (PREDICT, False), (COMPLETE, True)])
async def test_an_oversized_body_is_refused_before_it_is_read(path: str, is_decoder: bool) -> None:
    guards = Guards(validation=InputValidation(max_body_kibibytes=1))
    async with running(decoder_app(guards) if is_decoder else classifier_app(guards)) as client:
        reads = 0

        def parts() -> Any:
            nonlocal reads
            for _ in range(100):
                reads += 1
                yield b"x" * 512

        for headers, most_reads in (({"content-length": "51200"}, 0), ({}, 3)):
            reads = 0
            response = await _send_lazily(client.app, path, parts(), headers)
            assert (response.status, response.headers["connection"]) == (413, "close")
            assert response.error == "the body is larger than 1024 bytes; send fewer samples at a time"
            assert reads <= most_reads
        absurd = await client.request("POST", path, b"", {"content-length": "9" * 5000})
        assert absurd.status == 413


@pytest.mark.parametrize("declared", ["5", "500", "-1", "abc", "0x10", "1_0", "٣".encode().decode("latin-1")])
async def test_a_content_length_that_is_not_the_bodys_is_refused(declared: str) -> None:
    async with running(classifier_app()) as client:
        response = await client.request("POST", INFER, oip(), {"content-length": declared})
        assert response.status == 400
        assert "Content-Length" in response.error


async def test_a_body_that_does_not_come_is_given_up_at_the_deadline() -> None:
    async with running(classifier_app(Guards(timeout_seconds=0.1))) as client:

        async def receive() -> Any:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b" ", "more_body": True}

        response = await _call(client.app, INFER, receive, {})
        assert (response.status, response.error) == (408, "the request did not arrive within 0.1 s")


async def test_a_client_that_goes_away_in_the_midst_of_its_body_is_no_error() -> None:
    async with running(classifier_app()) as client:
        response = await client.request("POST", INFER, [b'{"inp'], is_truncated=True)
        assert response.status == 0
        rendered = (await client.request("GET", "/metrics")).body
        assert metric(rendered, 'capstan_serving_requests_total{outcome="gone"}') == 1
        assert metric(rendered, 'capstan_serving_requests_total{outcome="failed"}') == 0


async def test_headers_cannot_change_the_servers_deadline() -> None:
    model = NumpyClassifier()
    async with running(classifier_app(Guards(timeout_seconds=0.15), model)) as client:
        model.on_call = lambda inputs: time.sleep(0.4)
        headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "1"}
        response = await client.infer([[0, 0, 0, 0]], headers)
        assert response.status == 504


SETTINGS = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=9), children, max_size=4),
    max_leaves=12,
)


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A request of which a few parts are something else."""
    tensor = dict(GOOD)
    for name in draw(st.sets(st.sampled_from([*GOOD, "parameters"]), max_size=2)):
        tensor[name] = draw(JSON)
    document: dict[str, Any] = {"inputs": [tensor]}
    for name in draw(st.sets(st.sampled_from(["id", "outputs", "parameters", "inputs"]), max_size=1)):
        document[name] = draw(JSON)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def test_no_request_is_the_servers_fault() -> None:
    with kept_running(classifier_app()) as (client, run):

        @SETTINGS
        @given(body=nearly_right() | st.binary(max_size=60), header=st.none() | st.text("0123456789x-", max_size=4))
        @example(body=b"", header="0")
        def ask(body: bytes, header: str | None) -> None:
            headers = {} if header is None else {"inference-header-content-length": header}
            for path in (INFER, PREDICT):
                response = run(client.request("POST", path, body, headers))
                assert response.status in (200, 400), response.body
                assert response.status == 200 or response.error

        ask()


@st.composite
def nearly_a_completion(draw: st.DrawFn) -> bytes:
    document: dict[str, Any] = {"model": "digits", "prompt": "a", "max_tokens": 3}
    fields = ["model", "prompt", "max_tokens", "temperature", "top_p", "stop", "seed", "stream", "logprobs", "n"]
    for name in draw(st.sets(st.sampled_from(fields), max_size=2)):
        document[name] = draw(JSON)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def test_no_completion_is_the_servers_fault() -> None:
    with kept_running(decoder_app()) as (client, run):

        @SETTINGS
        @given(nearly_a_completion() | st.binary(max_size=40))
        def ask(body: bytes) -> None:
            response = run(client.request("POST", COMPLETE, body))
            assert response.status in (200, 400, 404), response.body
            assert response.status == 200 or set(response.json["error"]) == {"message", "type", "param", "code"}

        ask()


ROWS = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    min_size=1,
    max_size=9,
)


def test_json_and_binary_are_the_same_request() -> None:
    model = NumpyClassifier()
    seen: list[bytes] = []
    model.on_call = lambda inputs: seen.append(inputs.tobytes())
    with kept_running(classifier_app(model=model)) as (client, run):

        @SETTINGS
        @given(ROWS)
        def ask(rows: list[list[float]]) -> None:
            array = np.array(rows, np.float32)
            seen.clear()
            run(client.infer(rows))
            tensor = {"name": "input", "shape": list(array.shape), "datatype": "FP32"}
            document = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}]})
            headers = {"Inference-Header-Content-Length": str(len(document))}
            run(client.request("POST", INFER, document + array.tobytes(), headers))
            run(client.request("POST", PREDICT, v1(rows)))
            assert seen == [array.tobytes()] * 3

        ask()


@contextmanager
def kept_running(app: Application) -> Iterator[tuple[Client, Callable[[Awaitable[Any]], Any]]]:
    """A client, and how to await its answers: all examples of a property meet the same application, as in life."""
    with asyncio.Runner() as runner:

        async def result_of(awaited: Awaitable[Any]) -> Any:
            return await awaited

        runner.run(app.start())
        yield Client(app), lambda awaited: runner.run(result_of(awaited))
        runner.run(app.stop())


def test_raw_bytes_that_are_no_http_do_not_hurt_the_server(serve: Serve) -> None:
    url = serve(classifier_app(Guards(timeout_seconds=0.3)))
    host, port = url.removeprefix("http://").split(":")
    truncated = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{" % INFER.encode()
    for raw in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", truncated):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(raw)
            head = connection.recv(65536).split(b"\r\n")[0]
            assert head.split(b" ")[1] in (b"400", b"404", b"408"), head
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("POST", INFER, oip())
    assert connection.getresponse().status == 200
    connection.close()


async def _send_lazily(app: Any, path: str, parts: Any, headers: dict[str, str]) -> Response:
    async def receive() -> Any:
        return {"type": "http.request", "body": next(parts), "more_body": True}

    return await _call(app, path, receive, headers)


async def _call(app: Any, path: str, receive: Any, headers: dict[str, str]) -> Response:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "POST", "path": path, "headers": raw, "client": None}, receive, send)
    pairs = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Response(sent[0]["status"], pairs, b"".join(message["body"] for message in sent[1:]))
