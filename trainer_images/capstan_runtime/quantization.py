"""Which weights become integers, and when; and a model of integers as a checkpoint holds it.

The arithmetic is in `integers.py`. Passes that see integers take the weights as what those stand for, and their
gradient is taken for that of the fp32 weights: so nothing is differentiated, and the update knows nothing of it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.compression import Compression, Quantize
from capstan_runtime.contract.training import Training
from capstan_runtime.engine import Array, LocalTensor
from capstan_runtime.errors import ConfigError
from capstan_runtime.integers import Bits, as_integers, integers_name, scales_name, stored, stored_shape
from capstan_runtime.model_spec import STEP_NAME, ParameterSpec
from capstan_runtime.parallel.tiling import tile_evenly
from capstan_runtime.pruning import is_pruned

Weights = tuple[ParameterSpec, Callable[[], npt.NDArray[np.float32]]]
"""A parameter or buffer, and what brings its whole value to the host."""


def is_quantized(spec: ParameterSpec) -> bool:
    """Whether this parameter becomes integers: the matrices and kernels that may be pruned. In embeddings and the
    output layer a channel is a token or a class, of which a rare one is worth its precision."""
    return is_pruned(spec)


def require_aware_steps(compression: Compression | None, training: Training, steps: int) -> None:
    """Raises ConfigError if of a run of `steps` steps, which is what `training` comes to, none sees integers."""
    aware = None if compression is None or compression.quantize is None else compression.quantize.aware
    if aware is None or aware.begin_step < steps:
        return
    said = f"steps {training.steps}" if training.epochs is None else f"epochs {training.epochs}, {steps} steps"
    raise ConfigError(
        f"spec.compression.quantize.aware: begins after step {aware.begin_step}, and spec.training.{said}, has none "
        "after it; lower beginStep"
    )


def sees_integers(quantize: Quantize | None, step: int) -> bool:
    """Whether passes of optimizer step number `step` (from 1), or evaluations after it, take the weights as what their
    integers stand for."""
    return quantize is not None and quantize.aware is not None and step > quantize.aware.begin_step


def quantization_numbers(quantize: Quantize | None, step: int) -> dict[str, float]:
    """The numbers of optimizer step number `step` (from 1), by name; every step of a run has the same names."""
    if quantize is None or quantize.aware is None:
        return {}
    return {"sees_integers": float(sees_integers(quantize, step))}


def weight_bytes(table: Iterable[ParameterSpec], bits: Bits | None) -> int:
    """Of the parameters and buffers in `table` as they are saved: those that are quantized as integers of `bits` and
    their scales, all others fp32. None: all are fp32."""
    return sum(item * size for spec in table for _, shape, item in _tensors_of(spec, bits) for size in [_size(shape)])


def export_integers(weights: Sequence[Weights], step: int, bits: Bits, rank: int, world: int) -> Iterator[LocalTensor]:
    """This rank's even share of a model of integers, of which every rank has all. The weights stand for integers
    already: they become the same ones again."""
    tensors = [(number, each) for number, (spec, _) in enumerate(weights) for each in _tensors_of(spec, bits)]
    known: dict[str, Array] = {}
    for part in tile_evenly([*(_size(shape) for _, (_, shape, _) in tensors), 1], rank, world):
        if part.tensor == len(tensors):
            yield LocalTensor(STEP_NAME, (), 0, np.asarray([step], np.int64))
            continue
        number, (name, shape, _) = tensors[part.tensor]
        if name not in known:
            known = _values(*weights[number], bits)
        yield LocalTensor(
            name, shape, part.start, np.ascontiguousarray(known[name]).reshape(-1)[part.start : part.stop]
        )


def _tensors_of(spec: ParameterSpec, bits: Bits | None) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape and bytes of an element of what a checkpoint holds of it."""
    if bits is None or not is_quantized(spec):
        return [(spec.tensor_name(), spec.shape, 4)]
    channels = spec.shape[: spec.unit_dims]
    integers = stored_shape(spec.shape, spec.unit_dims, bits)
    return [(integers_name(spec.name), integers, 1), (scales_name(spec.name), channels, 4)]


def _values(spec: ParameterSpec, fetch: Callable[[], npt.NDArray[np.float32]], bits: Bits) -> dict[str, Array]:
    if not is_quantized(spec):
        return {spec.tensor_name(): fetch()}
    integers, scales = as_integers(fetch(), spec.unit_dims, bits)
    return {integers_name(spec.name): stored(integers, spec.unit_dims, bits), scales_name(spec.name): scales}


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
