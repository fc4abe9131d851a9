"""KServe's v1 protocol: `instances` in, `predictions` out."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from capstan_runtime.serving.exchange import JSON, Answer, Exchange
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.scores import Scores
from capstan_runtime.serving.served import Served
from capstan_runtime.serving.tensors import Floats, InputRule, samples_from_json


class _Request(msgspec.Struct):
    instances: msgspec.Raw


_REQUEST = msgspec.json.Decoder(_Request)


class KServeV1:
    """Requests and answers of a classifier."""

    def __init__(self, served: Served, rule: InputRule) -> None:
        self._served = served
        self._rule = rule

    def read(self, body: bytes) -> Floats:
        """Raises Refusal 400."""
        try:
            request = _REQUEST.decode(body)
        except RecursionError:
            raise Refusal(400, "the request is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"the request is not a KServe v1 prediction: {error}") from None
        inputs = samples_from_json(request.instances, self._rule, "instances")
        self._rule.check_values(inputs, "instances")
        return inputs

    def answer(self, scores: Scores, anomalous: npt.NDArray[np.bool_] | None, exchange: Exchange) -> Answer:
        predictions: list[dict[str, Any]] = [
            {"label": label, "confidence": confidence, "energy": energy, "probabilities": probabilities}
            for label, confidence, energy, probabilities in zip(
                scores.labels, scores.confidence, scores.energy, scores.probabilities, strict=True
            )
        ]
        if anomalous is not None:
            for prediction, flag in zip(predictions, anomalous.tolist(), strict=True):
                prediction["anomalous"] = flag
        document = {
            "predictions": predictions,
            "model_name": self._served.model.name,
            "model_version": self._served.model.version,
            "parameters": self._served.parameters(exchange),
        }
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return Answer(200, body, (JSON, *self._served.headers(exchange.trip)))
