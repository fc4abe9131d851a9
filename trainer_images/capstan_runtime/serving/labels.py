"""How another replica is asked for the class of one sample, and where that stands in its answer."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import orjson

from capstan_runtime.serving.oip import INPUT
from capstan_runtime.serving.tensors import Floats

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class LabelForm:
    """Of one protocol."""

    path: str
    ask: Callable[[Floats], tuple[bytes, Headers]]
    """Body and headers of the request for the class of `inputs` [1, …]."""
    read: Callable[[bytes], int]
    """The class, of a body that comes with status 200. Raises DecodeError, UnicodeDecodeError, RecursionError."""


def label_form(protocols: Collection[str], model: str) -> LabelForm:
    """Of the model's first choice: the Open Inference Protocol, where numbers need not be written as text."""
    if "OpenInference" in protocols:
        return LabelForm(f"/v2/models/{model}/infer", _ask_oip, _read_oip)
    return LabelForm(f"/v1/models/{model}:predict", _ask_kserve, _read_kserve)


class _Output(msgspec.Struct):
    data: Annotated[list[int], msgspec.Meta(min_length=1)]


class _OipAnswer(msgspec.Struct):
    outputs: Annotated[list[_Output], msgspec.Meta(min_length=1)]


class _Prediction(msgspec.Struct):
    label: int


class _KserveAnswer(msgspec.Struct):
    predictions: Annotated[list[_Prediction], msgspec.Meta(min_length=1)]


_OIP_ANSWER = msgspec.json.Decoder(_OipAnswer)
_KSERVE_ANSWER = msgspec.json.Decoder(_KserveAnswer)


def _ask_oip(inputs: Floats) -> tuple[bytes, Headers]:
    raw = np.ascontiguousarray(inputs, "<f4").tobytes()
    tensor = {"name": INPUT, "shape": inputs.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]})
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return head + raw, headers


def _read_oip(body: bytes) -> int:
    return _OIP_ANSWER.decode(body).outputs[0].data[0]


def _ask_kserve(inputs: Floats) -> tuple[bytes, Headers]:
    body = orjson.dumps({"instances": np.ascontiguousarray(inputs)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return body, {"content-type": "application/json"}


def _read_kserve(body: bytes) -> int:
    return _KSERVE_ANSWER.decode(body).predictions[0].label
