"""Usual ways to serve the same model: `python -m benchmarks.serving_baselines KIND PORT CONFIG STORE`.

KIND `uvicorn`: FastAPI and pydantic under uvicorn. KIND `ray`: the same application as a Ray Serve deployment with
Ray's defaults. Neither has guards, nor batches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.serving.load import load


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    inputs: list[Tensor]


class Answer(BaseModel):
    model_name: str
    outputs: list[Tensor]


def build_app(config_file: Path, store: str) -> FastAPI:
    config = ServeConfig.model_validate_json(config_file.read_bytes())
    model = load(config, open_store(store, os.environ))
    model.warm([1])  # type: ignore[call-arg]  # a classifier
    app = FastAPI()

    @app.post(f"/v2/models/{config.model.name}/infer")
    async def infer(request: Request) -> Answer:
        tensor = request.inputs[0]
        logits = model.logits(np.asarray(tensor.data, np.float32).reshape(tensor.shape))  # type: ignore[union-attr]
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        output = Tensor(
            name="probabilities", shape=list(probabilities.shape), datatype="FP32", data=probabilities.ravel().tolist()
        )
        return Answer(model_name=config.model.name, outputs=[output])

    return app


def main(kind: str, port: int, config_file: Path, store: str) -> None:
    if kind == "uvicorn":
        import uvicorn

        uvicorn.run(build_app(config_file, store), host="127.0.0.1", port=port, access_log=False, log_level="error")
        return
    import ray
    from ray import serve

    from benchmarks import serving_baselines  # by its name: replicas cannot import what is `__main__` here

    def build() -> FastAPI:
        return serving_baselines.build_app(config_file, store)

    class Model:
        """FastAPI answers."""

    ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=str(config_file.parent / "r"))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(max_ongoing_requests=1000)(serve.ingress(build)(Model)).bind(), blocking=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
