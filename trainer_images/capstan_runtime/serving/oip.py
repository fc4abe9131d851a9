"""Open Inference Protocol v2 over REST, with its binary tensor data extension.

https://github.com/kserve/open-inference-protocol and, for the extension, Triton's `protocol/extension_binary_data.md`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from capstan_runtime.serving.exchange import JSON, Answer, Exchange, Header
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.scores import Scores
from capstan_runtime.serving.served import Served
from capstan_runtime.serving.tensors import Floats, InputRule, as_floats, dtype_of, from_bytes, from_json

INPUT = "input"
_HEADER_LENGTH = b"inference-header-content-length"
_OCTETS: Header = (b"content-type", b"application/octet-stream")
_MOST_DIMENSIONS = 8
_MOST_ID_CHARACTERS = 256


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] = {}


_REQUEST = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class Ask:
    inputs: Floats
    id: str
    outputs: tuple[tuple[str, bool], ...] | None
    """Name of each output that is asked for, and whether it is to come as bytes. None: all of them."""
    is_binary: bool
    """Outputs come as bytes unless they say otherwise."""


class OpenInference:
    """Requests and answers of a classifier."""

    def __init__(self, served: Served, rule: InputRule, *, flags_anomalies: bool) -> None:
        self._served = served
        self._rule = rule
        classes = served.signature.outputs
        self._outputs: dict[str, tuple[str, list[int]]] = {
            "label": ("INT64", [-1]),
            "confidence": ("FP32", [-1]),
            "energy": ("FP32", [-1]),
            "probabilities": ("FP32", [-1, classes]),
        }
        if flags_anomalies:
            self._outputs["anomalous"] = ("BOOL", [-1])

    def metadata(self) -> dict[str, Any]:
        """Of the model: `GET /v2/models/{name}`."""
        return {
            "name": self._served.model.name,
            "versions": [self._served.model.version],
            "platform": "capstan",
            "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *self._rule.sample_shape]}],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, (datatype, shape) in self._outputs.items()
            ],
            "parameters": {"model_digest": self._served.model.root},
        }

    def read(self, body: bytes, exchange: Exchange) -> Ask:
        """Raises Refusal 400."""
        header_length = exchange.headers.get(_HEADER_LENGTH)
        document, binary = _split(body, header_length)
        try:
            request = _REQUEST.decode(document)
        except RecursionError:
            raise Refusal(400, "the request is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"the request is not one of the Open Inference Protocol: {error}") from None
        if len(request.id) > _MOST_ID_CHARACTERS:
            raise Refusal(400, f"id: {len(request.id)} characters; send at most {_MOST_ID_CHARACTERS}")
        return Ask(
            self._inputs(request, binary),
            request.id,
            None if request.outputs is None else self._wanted(request.outputs, request.parameters),
            _flag(request.parameters, "binary_data_output", "parameters"),
        )

    def _inputs(self, request: _Request, binary: memoryview) -> Floats:
        if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
            names = [tensor.name[:40] for tensor in request.inputs[:4]]
            raise Refusal(400, f"inputs: got {names}; the model has one, called {INPUT!r}")
        tensor = request.inputs[0]
        field = f"inputs[{INPUT}]"
        if len(tensor.shape) > _MOST_DIMENSIONS:
            raise Refusal(
                400, f"{field}: {len(tensor.shape)} dimensions; the model has {1 + len(self._rule.sample_shape)}"
            )
        shape = tuple(tensor.shape)
        self._rule.check_shape(shape, field)
        size = tensor.parameters.get("binary_data_size")
        array: npt.NDArray[Any]
        if size is None:
            if len(binary):
                raise Refusal(400, f"{len(binary)} bytes follow the JSON, but no input has binary_data_size")
            if not bytes(tensor.data):
                raise Refusal(400, f"{field}: has neither data nor parameters.binary_data_size")
            array = from_json(tensor.data, tensor.datatype, shape, field)
        else:
            if bytes(tensor.data):
                raise Refusal(400, f"{field}: has both data and binary_data_size; send one of them")
            if type(size) is not int or size != len(binary):
                shown = size if type(size) is int else "no number"
                raise Refusal(400, f"{field}: binary_data_size is {shown}, but {len(binary)} bytes follow the JSON")
            array = from_bytes(binary, tensor.datatype, shape, field)
        inputs = as_floats(array)
        self._rule.check_values(inputs, field)
        return inputs

    def _wanted(self, outputs: list[_Output], parameters: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
        default = _flag(parameters, "binary_data_output", "parameters")
        wanted: dict[str, bool] = {}
        for output in outputs:
            field = f"outputs[{output.name[:40]}]"
            if output.name not in self._outputs:
                raise Refusal(400, f"{field}: there is no such output; the model has {', '.join(self._outputs)}")
            if output.parameters.get("classification"):
                raise Refusal(400, f"{field}: the classification extension is not supported; ask for probabilities")
            wanted[output.name] = _flag(output.parameters, "binary_data", field, default)
        return tuple(wanted.items())

    def answer(self, ask: Ask, scores: Scores, anomalous: npt.NDArray[np.bool_] | None, exchange: Exchange) -> Answer:
        wanted = ask.outputs
        if wanted is None:
            wanted = tuple((name, ask.is_binary) for name in self._outputs)
        outputs: list[dict[str, Any]] = []
        binary: list[bytes] = []
        for name, is_binary in wanted:
            array: npt.NDArray[Any] | None = anomalous if name == "anomalous" else getattr(scores, _ATTRIBUTES[name])
            assert array is not None
            datatype = self._outputs[name][0]
            output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
            if is_binary:
                raw = np.ascontiguousarray(array, dtype_of(datatype, name)).tobytes()
                output["parameters"] = {"binary_data_size": len(raw)}
                binary.append(raw)
            else:
                output["data"] = array.reshape(-1)
            outputs.append(output)
        document: dict[str, Any] = {
            "model_name": self._served.model.name,
            "model_version": self._served.model.version,
            "parameters": self._served.parameters(exchange),
            "outputs": outputs,
        }
        if ask.id:
            document["id"] = ask.id
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = self._served.headers(exchange.trip)
        if not binary:
            return Answer(200, body, (JSON, *headers))
        length = (_HEADER_LENGTH, b"%d" % len(body))
        return Answer(200, b"".join([body, *binary]), (_OCTETS, length, *headers))


_ATTRIBUTES = {"label": "labels", "confidence": "confidence", "energy": "energy", "probabilities": "probabilities"}


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The protocol's form, which KServe's v1 shares; the id is in the header."""
    return orjson.dumps({"error": refusal.message})


def _split(body: bytes, header_length: bytes | None) -> tuple[memoryview, memoryview]:
    """JSON, and the bytes after it."""
    whole = memoryview(body)
    if header_length is None:
        return whole, whole[len(whole) :]
    if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(body):
        raise Refusal(
            400, "Inference-Header-Content-Length is not the length of the JSON at the head of the body, in bytes"
        )
    at = int(header_length)
    return whole[:at], whole[at:]


def _flag(parameters: dict[str, Any], name: str, field: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(400, f"{field}: {name} must be true or false")
    return value
