"""Arrays and errors of frameworks that the program has imported, and this package never does."""

import re
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from capstan_runtime.engine import Array
from capstan_runtime.errors import ConfigError, Failure, GpuOutOfMemory, PeerLost

Kind = Literal["torch", "jax", "numpy"]
"""Which library's array something is, and is given back as."""

_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|ALLOC_FAILED|out of memory|can't allocate memory", re.I)
_PEER_LOST = re.compile(
    r"gloo|nccl|coordinat|connection (closed|reset|refused)|broken pipe|timed out|socket|"
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED",
    re.I,
)


def kind_of(value: object) -> Kind | None:
    """Whose array `value` is; None: it is none. What else can become a numpy array is numpy's."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(value, torch.Tensor):
        return "torch"
    if jax is not None and isinstance(value, jax.Array):
        return "jax"
    is_array = (
        isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")
    )
    return "numpy" if is_array else None


def shape_of(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.shape(value))


def dtype_of(value: Any) -> str:
    """The name of the elements' type, as numpy and ml_dtypes have it."""
    dtype = getattr(value, "dtype", None)
    return str(np.asarray(value).dtype if dtype is None else dtype).removeprefix("torch.")


def scalar_later(value: Any) -> Callable[[], float]:
    """What gives `value`, one number, as it is now. A device that still computes it is not waited for before that."""
    match kind_of(value):
        case "torch":
            value = value.detach().clone()  # the graph behind it goes, and who writes into it later changes nothing
        case "jax":
            pass  # nobody can write into it
        case _:
            value = float(value)
    return lambda: float(value)


def elements(value: Any, kind: Kind, path: str) -> Callable[[int, int], Array]:
    """What gives elements [start, stop) of `value`, flattened in C order, as a one-dimensional array in host memory. No
    others leave the device. Raises ConfigError, which names `path`, for what one rank does not have all of."""
    if kind == "torch":
        return _of_torch(value, path)
    if kind == "jax":
        return _of_jax(value, path)
    array = np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    flat = np.ascontiguousarray(array).reshape(-1)
    return lambda start, stop: flat[start:stop]


def _of_torch(tensor: Any, path: str) -> Callable[[int, int], Array]:
    torch = sys.modules["torch"]
    if hasattr(tensor, "full_tensor") or tensor.layout != torch.strided or tensor.is_quantized:
        raise _not_whole(path, "a sharded, sparse or quantised tensor", "its full_tensor(), or dense parts of it")

    def part(start: int, stop: int) -> Array:
        host = tensor.detach().reshape(-1)[start:stop].cpu().contiguous()
        if host.dtype == torch.bfloat16:
            import ml_dtypes  # numpy has no bfloat16 of its own

            found: Array = host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return found
        found = host.resolve_conj().resolve_neg().numpy()
        return found

    return part


def _of_jax(array: Any, path: str) -> Callable[[int, int], Array]:
    if not (array.is_fully_addressable or array.is_fully_replicated):
        raise _not_whole(path, "an array that is divided over processes", "a replicated one")

    def part(start: int, stop: int) -> Array:
        whole = array.addressable_data(0) if array.is_fully_replicated else array
        return np.asarray(whole).reshape(-1)[start:stop]

    return part


def _not_whole(path: str, what: str, instead: str) -> ConfigError:
    return ConfigError(f"job.save: {path} is {what}; every rank saves a part of what all of them hold: give {instead}")


def as_kind(array: Array, kind: Kind) -> Any:
    """`array` as an array of that library, on the host; as it is where the program has not imported that library."""
    if kind == "torch" and (torch := sys.modules.get("torch")) is not None:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    if kind == "jax" and (jax := sys.modules.get("jax")) is not None:
        return jax.numpy.asarray(array)
    return array


def translated(error: BaseException) -> BaseException:
    """What `error` stands for: GpuOutOfMemory or PeerLost, caused by it, where a framework's error means that; else
    `error` itself."""
    if isinstance(error, Failure) or not isinstance(error, Exception):
        return error
    names = {each.__name__ for each in type(error).__mro__}
    line = str(error).strip().partition("\n")[0]
    meaning: Failure | None = None
    if names & {"OutOfMemoryError"} or (_is_of_framework(error) and _OUT_OF_MEMORY.search(line)):
        meaning = GpuOutOfMemory(line)
    elif names & {"DistError"} or (_is_of_framework(error) and _PEER_LOST.search(line)):
        meaning = PeerLost(line)
    if meaning is None:
        return error
    meaning.__cause__ = error
    return meaning


def _is_of_framework(error: BaseException) -> bool:
    """Raised by torch, which has no type of its own for most errors, or by JAX."""
    module = type(error).__module__.partition(".")[0]
    return module in ("torch", "jax", "jaxlib") or (type(error) is RuntimeError and "torch" in sys.modules)
