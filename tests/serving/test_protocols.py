"""Clients of the protocols, over real HTTP."""

from __future__ import annotations

import aiohttp
import numpy as np

from capstan_runtime.serving.app import make_app
from tests.serving.conftest import Serve
from tests.serving.models import ROOT, NumpyClassifier, serve_config


async def test_open_inference_and_kserve_v1_give_the_models_own_answer(serve: Serve) -> None:
    model = NumpyClassifier()
    url = serve(make_app(serve_config(), model))
    inputs = np.arange(8, dtype=np.float32).reshape(2, 4)
    logits = model.expected(inputs)
    async with aiohttp.ClientSession(url) as session:
        tensor = {"name": "input", "shape": [2, 4], "datatype": "FP32", "data": inputs.reshape(-1).tolist()}
        async with session.post("/v2/models/digits/infer", json={"id": "a", "inputs": [tensor]}) as response:
            oip = await response.json()
            assert response.status == 200, oip
        async with session.post("/v1/models/digits:predict", json={"instances": inputs.tolist()}) as response:
            v1 = await response.json()
    labels = logits.argmax(axis=1).tolist()
    assert [prediction["label"] for prediction in v1["predictions"]] == labels
    outputs = {output["name"]: output["data"] for output in oip["outputs"]}
    assert outputs["label"] == labels
    assert (oip["id"], oip["model_name"], oip["model_version"]) == ("a", "digits", "digits-00001")
    assert oip["parameters"]["model_digest"] == ROOT
    np.testing.assert_allclose(outputs["energy"], -np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)
