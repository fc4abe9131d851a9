"""Weights as integers with one scale per output channel: the arithmetic, and what a checkpoint calls and holds of it.

Symmetric, without a zero point (Jacob et al., 1712.05877, with their range -127 to 127): w is about integer * scale.
`flax_trainer/integers.py` and `deepspeed_trainer/integers.py` are twins of `as_integers`, to the last bit:
scales have 16 significant bits, so that integer * scale is exact in fp32, the largest of a channel stays the largest,
and weights that were made of integers become the same integers again.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from capstan_runtime.engine import Array, TensorSource
from capstan_runtime.errors import ConfigError

Bits = Literal[8, 4]
SMALLEST_SCALE = 2.0**-100
"""Of channels of zeros, and of what is as good as that: well above where machines disagree about what is 0."""
ROUNDING, KEPT_BITS = 0x80, -0x100
"""Added to the bits of a scale, and kept of them: so fp32 is rounded to 16 significant bits."""
_PARAMETERS, INTEGERS, SCALES = "params/", "integers/", "scales/"


def most(bits: Bits) -> int:
    """The largest integer; the smallest is its negative."""
    return int(2 ** (bits - 1)) - 1


def per_integer(bits: Bits) -> np.float32:
    """Scale of a channel whose largest weight is 1: a factor, because XLA makes one of a division by a constant."""
    return np.float32(1.0) / np.float32(most(bits))


def as_integers(
    weights: npt.NDArray[np.float32], channel_dims: int, bits: Bits
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of the weights' shape, and the scales of the channels, which the first `channel_dims` dimensions number.
    Halves are rounded to even."""
    largest = np.abs(weights).max(axis=tuple(range(channel_dims, weights.ndim)), keepdims=True, initial=0.0)
    raw = np.maximum(largest * per_integer(bits), np.float32(SMALLEST_SCALE))
    scales = ((raw.view(np.int32) + ROUNDING) & KEPT_BITS).view(np.float32)
    integers = np.clip(np.rint(weights / scales), -most(bits), most(bits)).astype(np.int8)
    return integers, scales.reshape(weights.shape[:channel_dims])


def as_weights(integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What integers and scales stand for."""
    return integers.astype(np.float32) * scales.reshape(*scales.shape, *[1] * (integers.ndim - scales.ndim))


def stored(integers: npt.NDArray[np.int8], channel_dims: int, bits: Bits) -> Array:
    """As a checkpoint holds them: 8 bits as they are, int8; of 4 bits two to a byte, the first of them in the lower
    half, channel by channel, uint8 [*channels, half of what a channel has]."""
    if bits == 8:
        return integers
    flat = integers.reshape(*integers.shape[:channel_dims], -1)
    padded = np.pad(flat, [(0, 0)] * channel_dims + [(0, flat.shape[-1] % 2)]).view(np.uint8) & 0xF
    halves: Array = padded[..., ::2] | padded[..., 1::2] << 4
    return halves


def stored_shape(shape: tuple[int, ...], channel_dims: int, bits: Bits) -> tuple[int, ...]:
    """Of what `stored` makes of integers of `shape`."""
    return shape if bits == 8 else (*shape[:channel_dims], math.ceil(math.prod(shape[channel_dims:]) / 2))


def _unstored(data: Array, shape: tuple[int, ...], channel_dims: int) -> npt.NDArray[np.int8]:
    if data.dtype == np.int8:
        return data.astype(np.int8, copy=False)
    pairs = data.astype(np.uint8, copy=False)
    halves = np.stack([pairs & 0xF, pairs >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    # The sign is the upper bit of the half.
    signed: npt.NDArray[np.int8] = (halves ^ 8).astype(np.int8) - np.int8(8)
    return signed[..., : math.prod(shape[channel_dims:])].reshape(shape)


def integers_name(parameter: str) -> str:
    """What a checkpoint calls the integers of a parameter that it holds as such; it has no `params/` then."""
    return f"{INTEGERS}{parameter}"


def scales_name(parameter: str) -> str:
    return f"{SCALES}{parameter}"


def holds_integers(source: TensorSource) -> bool:
    """Whether the checkpoint is a model whose weights are integers: the last of its run, and no more than a model."""
    return any(name.startswith(INTEGERS) for name in source.names())


def has_integers_of(source: TensorSource, name: str) -> bool:
    """Whether a checkpoint holds the tensor `name` as integers."""
    if not name.startswith(_PARAMETERS):
        return False
    try:
        source.shape(integers_name(name.removeprefix(_PARAMETERS)))
    except KeyError:
        return False
    return True


def read_weights(source: TensorSource, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The tensor `name`, of which the checkpoint holds integers and scales. Raises ConfigError if they are not of
    `shape`, CorruptCheckpoint if a byte is wrong, KeyError if there are no scales."""
    parameter = name.removeprefix(_PARAMETERS)
    data, scales = source.read(integers_name(parameter)), source.read(scales_name(parameter))
    channel_dims = scales.ndim
    fitting = [stored_shape(shape, channel_dims, bits) for bits in (8, 4)]
    if shape[:channel_dims] != scales.shape or data.shape != fitting[0 if data.dtype == np.int8 else 1]:
        raise ConfigError(
            f"spec.model: {name} has integers of shape {data.shape} and scales of shape {scales.shape} in the "
            f"checkpoint, which make no {shape}; restore the model and data of its run, or start a new job"
        )
    return as_weights(_unstored(data, shape, channel_dims), scales.astype(np.float32, copy=False))
