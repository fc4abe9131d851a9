"""The safetensors file format, as far as a writer needs it: 8 bytes of header length, a JSON header, the tensors."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from capstan_runtime.engine import LocalTensor

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
TYPES = tuple(_NAMES)
"""What elements of tensors may be, by numpy's names."""
_NUMPY = {name: numpy_name for numpy_name, name in _NAMES.items()}
_HEADER_ALIGNMENT = 64
"""Tensors of any type then start at a multiple of their element size."""


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Raises TypeError for what safetensors cannot hold."""
    if dtype.name not in _NAMES or dtype.byteorder == ">":
        raise TypeError(f"a tensor of type {dtype} cannot be saved; use one of {', '.join(_NAMES)}")
    return _NAMES[dtype.name]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Raises TypeError for names this numpy does not know."""
    if name == "BF16":
        import ml_dtypes  # numpy has no bfloat16 of its own; the package comes with jax

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if name not in _NUMPY:
        raise TypeError(f"no numpy type for safetensors type {name}")
    return np.dtype(_NUMPY[name])


def item_bytes(name: str) -> int:
    """Bytes of one element of safetensors type `name`. Raises ValueError for what no tensor of ours can be."""
    if name not in _NUMPY:
        raise ValueError(f"{name[:40]!r} is no type of a tensor")
    return 1 if name == "BOOL" else int(name.lstrip("BFUI")) // 8


def chunk_name(tensor: LocalTensor) -> str:
    """The tensor's own name if it is whole, else `name@start`: other readers then see where the piece belongs."""
    if tensor.start == 0 and tensor.data.size == math.prod(tensor.shape):
        return tensor.name
    return f"{tensor.name}@{tensor.start}"


def header_bytes(tensors: Sequence[LocalTensor]) -> bytes:
    """The start of a file that holds `tensors` one after the other, in this order, without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "capstan-shards/2"}}
    offset = 0
    for tensor in tensors:
        name = chunk_name(tensor)
        shape = list(tensor.shape) if name == tensor.name else [tensor.data.size]
        end = offset + tensor.data.nbytes
        header[name] = {"dtype": dtype_name(tensor.data.dtype), "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return framed_header(header)


def framed_header(header: Mapping[str, object]) -> bytes:
    """The start of a file whose header is `header`: its length, the JSON, spaces so that the tensors are aligned."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def in_file_order(tensors: Sequence[LocalTensor]) -> list[LocalTensor]:
    """Widest elements first, so that every tensor is aligned without gaps."""
    return sorted(tensors, key=lambda tensor: -tensor.data.dtype.itemsize)
