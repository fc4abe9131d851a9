"""Tensors as they travel: JSON numbers or raw little-endian bytes, to and from numpy.

What comes from outside is typed before it is an array: a string, a null or a boolean never passes for a number.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from capstan_runtime.serving.refusal import Refusal

Floats = npt.NDArray[np.float32]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Names of the Open Inference Protocol. BYTES and BF16 are not among them: no model here takes text as a tensor, and
numpy has no bfloat16."""

_SCALARS: dict[str, Any] = {"b": bool, "u": int, "i": int, "f": float}


@dataclass(frozen=True, slots=True)
class InputRule:
    """What every input must obey: the checkpoint's signature and the service's own bounds."""

    sample_shape: tuple[int, ...]
    most_samples: int
    bounds: tuple[float, float] | None = None
    """Of every value; None: any finite one."""

    def check_shape(self, shape: tuple[int, ...], field: str) -> None:
        if len(shape) != 1 + len(self.sample_shape) or shape[1:] != self.sample_shape:
            wanted = ", ".join(["n", *map(str, self.sample_shape)])
            raise Refusal(400, f"{field}: shape {_shown(shape)} does not fit the model; send [{wanted}]")
        if not 1 <= shape[0] <= self.most_samples:
            raise Refusal(400, f"{field}: {shape[0]} samples in one request; send 1 to {self.most_samples}")

    def check_values(self, inputs: Floats, field: str) -> None:
        # One pass each for the least and the greatest: NaN and infinities show in them.
        least, greatest = float(inputs.min()), float(inputs.max())
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise Refusal(400, f"{field}: a value is NaN, infinite or too large for FP32; send finite numbers")
        if self.bounds is not None and (least < self.bounds[0] or greatest > self.bounds[1]):
            raise Refusal(
                400,
                f"{field}: values from {least:g} to {greatest:g} leave the range {self.bounds[0]:g} to "
                f"{self.bounds[1]:g}; scale them as in training",
            )


def as_floats(array: npt.NDArray[Any]) -> Floats:
    """The values as FP32, contiguous. What does not fit becomes infinite, which `check_values` refuses."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def digest_of(array: npt.NDArray[Any]) -> str:
    """SHA-256 of type, shape and row-major little-endian values: the same however they travelled."""
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def dtype_of(datatype: str, field: str) -> np.dtype[Any]:
    try:
        return DATATYPES[datatype]
    except KeyError:
        raise Refusal(
            400, f"{field}: datatype {datatype[:40]!r} is not supported; use one of {', '.join(DATATYPES)}"
        ) from None


def from_json(raw: msgspec.Raw, datatype: str, shape: tuple[int, ...], field: str) -> npt.NDArray[Any]:
    """The array [*shape] of JSON `raw`, flat in row-major order or nested as its shape. `shape` was checked."""
    dtype = dtype_of(datatype, field)
    depth = len(shape) if _is_nested(raw) else 1
    try:
        values = _numbers(dtype.kind, depth).decode(raw)
    except RecursionError:
        raise Refusal(400, f"{field}: nested too deeply; send {len(shape)} levels or one") from None
    except msgspec.DecodeError as error:
        raise Refusal(400, f"{field}: {error}; datatype {datatype} wants plain numbers of its kind") from None
    return _array(values, dtype, datatype, shape, field)


def samples_from_json(raw: msgspec.Raw, rule: InputRule, field: str) -> Floats:
    """[n, *sample_shape] of JSON `raw`: a list of samples, each flat or nested; the list itself says how many."""
    depth = _nesting(raw)
    full = 1 + len(rule.sample_shape)
    if depth not in (2, full):
        wanted = _shown(rule.sample_shape)
        raise Refusal(400, f"{field}: must be a list of samples of shape {wanted}, each flat or nested as its shape")
    try:
        values = _numbers("f", depth).decode(raw)
    except msgspec.DecodeError as error:
        raise Refusal(400, f"{field}: {error}") from None
    shape = (len(values), *rule.sample_shape)
    rule.check_shape(shape, field)
    per_sample = rule.sample_shape if depth == full else (math.prod(rule.sample_shape),)
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32)
    except (ValueError, OverflowError):
        raise Refusal(400, f"{field}: samples differ in shape; each must be {_shown(rule.sample_shape)}") from None
    if array.shape != (len(values), *per_sample):
        raise Refusal(400, f"{field}: samples have shape {_shown(array.shape[1:])}; send {_shown(rule.sample_shape)}")
    return array.reshape(shape)


def from_bytes(raw: memoryview, datatype: str, shape: tuple[int, ...], field: str) -> npt.NDArray[Any]:
    """The array [*shape] of raw little-endian `raw`; it shares its memory."""
    dtype = dtype_of(datatype, field)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise Refusal(
            400, f"{field}: binary_data_size {len(raw)} does not fit {datatype} {_shown(shape)}: {expected} bytes"
        )
    if dtype.kind == "b":
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def _array(values: Any, dtype: np.dtype[Any], datatype: str, shape: tuple[int, ...], field: str) -> npt.NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except OverflowError:
        raise Refusal(400, f"{field}: a value does not fit datatype {datatype}") from None
    except ValueError:
        raise Refusal(400, f"{field}: rows of different lengths; the data must fill shape {_shown(shape)}") from None
    if array.ndim > 1 and array.shape != shape:
        raise Refusal(400, f"{field}: nested data has shape {_shown(array.shape)}, shape says {_shown(shape)}")
    if array.size != math.prod(shape):
        raise Refusal(400, f"{field}: {array.size} values do not fill shape {_shown(shape)}; send {math.prod(shape)}")
    return array.reshape(shape)


@cache
def _numbers(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    numbers: Any = _SCALARS[kind]
    for _ in range(depth):
        numbers = list.__class_getitem__(numbers)
    return msgspec.json.Decoder(numbers)


def _is_nested(raw: msgspec.Raw) -> bool:
    return _nesting(raw) > 1


def _nesting(raw: msgspec.Raw) -> int:
    """How many lists open before the first value, 65 at most."""
    depth = 0
    for byte in bytes(memoryview(raw)[:256]):
        if byte == 0x5B:
            depth += 1
            if depth > 64:
                break
        elif byte not in b" \t\r\n":
            break
    return depth


def _shown(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"of {len(shape)} dimensions"
