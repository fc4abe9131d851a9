"""Sums and exchanges through which gradients flow (Megatron-LM, 1909.08053; Ulysses, 2309.14509)."""

# Calling an autograd function has no type.
# mypy: disable-error-code="no-any-return"

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime.deepspeed_trainer.parallel.groups import Group


def with_summed_gradient(x: Tensor, group: Group) -> Tensor:
    """`x`, the same on all of `group`, each of which computes a part of what follows: its gradient is the sum of
    theirs."""
    return _SummedGradient.apply(x, group)


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over `group`, each of which goes on with it in the same way: so each has the whole gradient."""
    return _Summed.apply(x, group)


def exchanged(x_P: Tensor, group: Group) -> Tensor:
    """Each of the P in `group` gets what all others have at its place of the first dimension, in their order."""
    return _Exchanged.apply(x_P, group)


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum_of(gradient, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _sum_of(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_P: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _exchange(x_P, group)

    @staticmethod
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradient_P, ctx.group), None


def _exchange(x_P: Tensor, group: Group) -> Tensor:
    x_P = x_P.contiguous()
    found_P = torch.empty_like(x_P)
    dist.all_to_all_single(found_P, x_P, group=group.process_group)
    return found_P


def _sum_of(x: Tensor, group: Group) -> Tensor:
    # Not in place: whoever recomputes activations may have kept `x`.
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group.process_group)
    return total
