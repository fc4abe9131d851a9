"""Weights as what their integers stand for: the twin of `capstan_runtime.integers.as_integers`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capstan_runtime.integers import KEPT_BITS, ROUNDING, SMALLEST_SCALE, Bits, most, per_integer
from capstan_runtime.model_spec import ParameterSpec


def as_if_integers(weights: Tensor, channel_dims: int, bits: Bits) -> Tensor:
    """The weights, rounded to what integers of `bits` with one scale per channel can say. The first `channel_dims`
    dimensions number the channels."""
    largest = weights.abs().amax(dim=tuple(range(channel_dims, weights.ndim)), keepdim=True)
    raw = (largest * float(per_integer(bits))).clamp(min=SMALLEST_SCALE)
    scales = ((raw.view(torch.int32) + ROUNDING) & KEPT_BITS).view(torch.float32)
    return (weights / scales).round().clamp(-most(bits), most(bits)) * scales


@contextmanager
def seen_as_integers(parameters: Sequence[tuple[nn.Parameter, ParameterSpec]], bits: Bits) -> Iterator[None]:
    """For a while, whole parameters are what their integers stand for, and have the gradients of that; afterwards they
    are the weights again, to the last bit."""
    with torch.no_grad():
        kept = [parameter.clone() for parameter, _ in parameters]
        for parameter, spec in parameters:
            parameter.copy_(as_if_integers(parameter, spec.unit_dims, bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), weights in zip(parameters, kept, strict=True):
                parameter.copy_(weights)
