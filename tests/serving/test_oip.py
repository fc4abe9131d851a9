"""Open Inference Protocol and KServe v1: tritonclient, binary tensors, datatypes, outputs, errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
import tritonclient.http as triton

from capstan_runtime.contract.serving import Anomaly, Guards
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.app import make_app
from capstan_runtime.serving.tensors import DATATYPES
from tests.serving.asgi import Client, classifier_app, running
from tests.serving.conftest import Serve
from tests.serving.models import ROOT, NumpyClassifier, serve_config

ROWS = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]


def labels_of(model: NumpyClassifier, rows: Any) -> list[int]:
    return [int(label) for label in model.expected(np.array(rows, np.float32)).argmax(axis=1)]


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_gets_the_models_answer_for_images(serve: Serve, is_binary: bool) -> None:
    model = NumpyClassifier((8, 8, 1), classes=10)
    url = serve(make_app(serve_config(), model))
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "digits-00001")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 8, 8, 1]}]
    images = np.random.default_rng(1).random((3, 8, 8, 1), np.float32)
    tensor = triton.InferInput("input", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=is_binary)
    outputs = [
        triton.InferRequestedOutput("label", binary_data=is_binary),
        triton.InferRequestedOutput("probabilities", binary_data=not is_binary),
    ]
    for wanted in (outputs, None):
        result = client.infer("digits", [tensor], outputs=wanted, request_id="r-1")
        assert result.get_response()["id"] == "r-1"
        assert result.as_numpy("label").tolist() == labels_of(model, images)
        np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1.0, rtol=1e-5)
    with pytest.raises(triton.InferenceServerException, match="there is no such output"):
        client.infer("digits", [tensor], outputs=[triton.InferRequestedOutput("logits")])
    client.close()


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
async def test_every_datatype_and_form_means_the_same(datatype: str, form: str) -> None:
    model = NumpyClassifier()
    array = np.array([[0, 1, 1, 0], [1, 1, 0, 0]]).astype(DATATYPES[datatype])
    tensor: dict[str, Any] = {"name": "input", "shape": [2, 4], "datatype": datatype}
    headers = {}
    raw = b""
    if form == "binary":
        raw = array.tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = (array.reshape(-1) if form == "flat" else array).tolist()
    document = orjson.dumps({"inputs": [tensor]})
    if form == "binary":
        headers["Inference-Header-Content-Length"] = str(len(document))
    async with running(classifier_app(model=model)) as client:
        response = await client.request("POST", "/v2/models/digits/infer", document + raw, headers)
        assert response.status == 200, response.body
        assert response.json["outputs"][0]["data"] == labels_of(model, array)


async def test_an_answer_says_who_gave_it_how_sure_it_is_and_how_long_it_took() -> None:
    model = NumpyClassifier()
    async with running(classifier_app(model=model)) as client:
        response = await client.infer(ROWS, {"X-Request-Id": "mine-1"}, id="body-id")
        document = response.json
        logits = model.expected(np.array(ROWS, np.float32)).astype(np.float64)
        outputs = {output["name"]: output for output in document["outputs"]}
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert list(outputs) == ["label", "confidence", "energy", "probabilities"]
        assert outputs["probabilities"]["shape"] == [2, 3]
        np.testing.assert_allclose(outputs["probabilities"]["data"], expected.reshape(-1), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(outputs["confidence"]["data"], expected.max(axis=1), rtol=1e-4)
        np.testing.assert_allclose(outputs["energy"]["data"], -np.log(np.exp(logits).sum(axis=1)), rtol=1e-4)
        parameters = document["parameters"]
        times = {name: parameters.pop(name) for name in ("queue_ms", "batch_ms", "model_ms", "total_ms")}
        assert parameters == {"request_id": "mine-1", "model_digest": ROOT, "cached": False}
        assert all(0 <= times[name] <= times["total_ms"] for name in times)
        assert document["id"] == "body-id"
        headers = response.headers
        assert headers["x-request-id"] == "mine-1"
        assert (headers["x-model-version"], headers["x-model-digest"], headers["x-cached"]) == (
            "digits-00001",
            ROOT,
            "false",
        )
        assert headers["server-timing"].startswith("queue;dur=")


@pytest.mark.parametrize("given", ["", "a" * 129, "with space", 'quote"', "new\nline", "é"])
async def test_a_request_id_that_may_not_stand_in_a_header_is_replaced(given: str) -> None:
    async with running(classifier_app()) as client:
        first = (await client.infer(ROWS, {"x-request-id": given})).headers["x-request-id"]
        second = (await client.infer(ROWS, {"x-request-id": given})).headers["x-request-id"]
        assert first != second
        assert len(first) == len(bytes.fromhex(first)) * 2 == 32


async def test_anomalies_are_an_output_where_they_are_looked_for() -> None:
    guards = Guards(anomaly=Anomaly(energy_above=-1.0))
    model = NumpyClassifier()
    rows = [[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]
    logits = model.expected(np.array(rows, np.float32))
    expected = (-np.log(np.exp(logits - 0.0).sum(axis=1)) > -1.0).tolist()
    assert expected[0] is not expected[1]
    async with running(classifier_app(guards, model)) as client:
        flagged = {output["name"]: output for output in (await client.infer(rows)).json["outputs"]}["anomalous"]
        assert flagged == {"name": "anomalous", "datatype": "BOOL", "shape": [2], "data": expected}
        v1 = await client.request("POST", "/v1/models/digits:predict", orjson.dumps({"instances": rows}))
        assert [prediction["anomalous"] for prediction in v1.json["predictions"]] == expected
        assert (await client.request("GET", "/v2/models/digits")).json["outputs"][-1]["name"] == "anomalous"


@pytest.mark.parametrize("reads_flat", [True, False])
async def test_kserve_v1_takes_samples_flat_or_nested(reads_flat: bool) -> None:
    model = NumpyClassifier((4, 4, 1))
    images = np.random.default_rng(2).random((3, 4, 4, 1), np.float32)
    instances = images.reshape(3, -1) if reads_flat else images
    async with running(classifier_app(model=model)) as client:
        body = orjson.dumps({"instances": instances.tolist()})
        response = await client.request("POST", "/v1/models/digits:predict", body)
        assert [prediction["label"] for prediction in response.json["predictions"]] == labels_of(model, images)
        assert response.json["parameters"]["model_digest"] == ROOT
        assert (await client.request("GET", "/v1/models/digits")).json == {"name": "digits", "ready": True}
        assert (await client.request("GET", "/v1/models")).json == {"models": ["digits"]}


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v2/models/other", 404, None),
        ("POST", "/v2/models/other/infer", 404, None),
        ("POST", "/v2/models/digits/versions/9/infer", 404, None),
        ("POST", "/v1/completions", 404, None),
        ("GET", "/v2/models/digits/infer", 405, "POST"),
        ("DELETE", "/v2/models/digits", 405, "GET"),
        ("POST", "/v2/health/live", 405, "GET"),
        ("PUT", "/v1/models/digits:predict", 405, "POST"),
    ],
)
async def test_unknown_paths_and_wrong_methods_are_told_so(
    method: str, path: str, status: int, allow: str | None
) -> None:
    async with running(classifier_app()) as client:
        response = await client.request(method, path)
        assert (response.status, response.headers.get("allow")) == (status, allow)
        assert response.error
        assert response.headers["content-type"] == "application/json"
        assert "x-request-id" in response.headers


def test_protocols_of_language_models_are_refused_for_a_classifier_at_the_start() -> None:
    with pytest.raises(ConfigError, match="protocols: OpenAI serves models of tokens"):
        make_app(serve_config(protocols=["OpenInference", "OpenAI"]), NumpyClassifier())


async def test_a_protocol_that_is_not_asked_for_is_not_there() -> None:
    async with running(make_app(serve_config(protocols=["KServeV1"]), NumpyClassifier())) as client:
        assert (await client.infer(ROWS)).status == 404
        assert (await client.request("GET", "/v2/health/ready")).status == 200


async def test_readiness_follows_the_models_warmth_and_the_drain() -> None:
    app = classifier_app()
    model_ready = "/v2/models/digits/ready"
    cold = Client(app)
    assert [(await cold.request("GET", path)).status for path in (model_ready, "/v2/health/ready")] == [503, 503]
    assert (await cold.request("GET", "/v2/health/live")).status == 200
    refused = await cold.infer(ROWS)
    assert (refused.status, refused.error) == (503, "the model is not ready yet; try again")
    async with running(app) as client:
        assert (await client.request("GET", "/v2/health/ready")).json == {"ready": True}
        app.drain()
        assert (await client.request("GET", model_ready)).status == 503
        assert (await client.request("GET", "/v2/health/live")).status == 200
        assert (await client.infer(ROWS)).status == 200


async def test_a_model_that_cannot_answer_is_not_started() -> None:
    model = NumpyClassifier()
    model.on_call = lambda inputs: 1 / 0  # type: ignore[assignment]
    app = classifier_app(model=model)
    sent: list[Any] = []
    events = iter([{"type": "lifespan.startup"}])

    async def receive() -> Any:
        return next(events)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.failed", "message": "ZeroDivisionError: division by zero"}]


async def test_a_hung_model_makes_the_replica_not_live(serve: Serve) -> None:
    model = NumpyClassifier()
    resume = threading.Event()
    url = serve(make_app(serve_config(Guards(timeout_seconds=0.1)), model))
    model.on_call = lambda inputs: (resume.wait(10), None)[1]
    async with aiohttp.ClientSession(url) as session:
        async with session.post("/v1/models/digits:predict", json={"instances": ROWS}) as response:
            assert response.status == 504
            assert (await response.json())["error"] == "there was no answer within 0.1 s"
        await eventually(lambda: status_of(session, "/v2/health/live"), 503)
        resume.set()
        await eventually(lambda: status_of(session, "/v2/health/live"), 200)


async def status_of(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as response:
        return response.status


async def eventually(look: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(10):
        while await look() != wanted:
            await asyncio.sleep(0.01)
