"""Layers of two matrices in the place of one: which those are, `capstan_runtime.low_rank` says."""

from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from capstan_runtime.flax_trainer.components.experts import ExpertLinear
from capstan_runtime.flax_trainer.layers import Kernel, Linear, parameter


class Product(nnx.Module):
    """In the place of a Linear or an ExpertLinear."""

    def __init__(self, first: nnx.Module, second: nnx.Module, bias: nnx.Param[jax.Array] | None) -> None:
        self.first, self.second, self.bias = first, second, bias

    def __call__(self, x: jax.Array, *sizes: jax.Array | None) -> jax.Array:
        y = self.second(self.first(x, *sizes), *sizes)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class KernelProduct(nnx.Module):
    """In the place of a Kernel: the second is of 1 x 1."""

    def __init__(self, channels_in: int, rank: int, channels_out: int, size: int) -> None:
        self.first, self.second = Kernel(channels_in, rank, size), Kernel(rank, channels_out, 1)

    def __call__(self, x_BSSC: jax.Array, stride: int) -> jax.Array:
        return self.second(self.first(x_BSSC, stride), 1)


def factor(module: nnx.Module, layers: Iterable[str], rank: int) -> None:
    """Puts products in the place of `layers` of `module`, named as in `model_spec`; values have no meaning yet. A
    stack is one layer."""
    for name in layers:
        owner: Any = module
        *path, last = name.split(".")
        for part in path:
            if not part.isdigit():
                owner = getattr(owner, part)
            elif isinstance(owner, nnx.List):
                owner = owner[int(part)]
        whole = owner[int(last)] if last.isdigit() else getattr(owner, last)
        if isinstance(whole, Product):  # by the name of another layer of the stack
            continue
        if last.isdigit():
            owner[int(last)] = _factored(whole, rank)
        else:
            setattr(owner, last, _factored(whole, rank))


def _factored(whole: Linear | ExpertLinear | Kernel, rank: int) -> Product | KernelProduct:
    shape = whole.weight.shape
    match whole:
        case Kernel():
            outputs, inputs, size, _ = shape
            return KernelProduct(inputs, rank, outputs, size)
        case ExpertLinear():
            *stack, experts, outputs, inputs = shape
            first, second = ExpertLinear(experts, inputs, rank), ExpertLinear(experts, rank, outputs)
            return Product(_stacked(first, stack), _stacked(second, stack), None)
        case Linear():
            *stack, outputs, inputs = shape
            narrow, wide = Linear(inputs, rank), Linear(rank, outputs)
            return Product(_stacked(narrow, stack), _stacked(wide, stack), whole.bias)


def _stacked(layer: Linear | ExpertLinear, stack: list[int]) -> nnx.Module:
    if stack:
        layer.weight = parameter(*stack, *layer.weight.shape)
    return layer
