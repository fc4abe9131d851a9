"""`python -m tests.support.numpy_replica ROOT`: a serving pod without Ray and store. Its model is a small one in numpy,
which names wrong classes if ROOT is the checkpoint that it is to serve."""

import asyncio
import os
import sys

import uvicorn

from capstan_runtime.contract import env
from capstan_runtime.serve_replica.settings import read_settings
from capstan_runtime.serving.app import make_app
from tests.serving.models import NumpyClassifier, WrongClassifier


def main(wrong_root: str) -> None:
    settings = read_settings(os.environ)
    model = WrongClassifier() if settings.config.model.root == wrong_root else NumpyClassifier()
    app = make_app(settings.config, model)
    asyncio.run(uvicorn.Server(uvicorn.Config(app, settings.address, env.SERVE_PORT, log_level="warning")).serve())


if __name__ == "__main__":
    main(sys.argv[1])
