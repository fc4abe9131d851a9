"""Layers whose inputs the backward pass computes again from their outputs (RevNet, 1707.04585; Reformer, 2001.04451).

A layer is two branches over two streams: first += attention(second), then second += feed_forward(first). Backwards each
can be taken off again, so nothing is kept of a layer but its weights. What is random is a function of keys, and comes
out the same the second time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.forward_pass import Pass

Streams = tuple[Tensor, Tensor]
"""fp32, so that what is taken off is what was added to within its last bits."""
Branch = Callable[[Tensor, Pass], Tensor]


def enter(x: Tensor) -> Streams:
    """Both begin alike."""
    return x.float(), x.float()


def leave(streams: Streams, dtype: torch.dtype) -> Tensor:
    """Their mean."""
    return ((streams[0] + streams[1]) / 2).to(dtype)


class Link:
    """What the backward pass of one layer of a call hands to that of the layer before: the streams between them."""

    def __init__(self) -> None:
        self.streams: Streams | None = None


def through_reversible_layer(
    branches: tuple[Branch, Branch], streams: Streams, parameters: Sequence[nn.Parameter], here: Pass, link: Link
) -> Streams:
    """`streams` through the layer of `branches` that compute with `parameters`. All layers of a call share `link`."""
    if not torch.is_grad_enabled():
        first = streams[0] + branches[0](streams[1].to(here.dtype), here)
        return first, streams[1] + branches[1](first.to(here.dtype), here)
    names: list[str] = []
    first, second, *losses = _Layer.apply(branches, here, link, names, *streams, *parameters)
    for name, loss in zip(names, losses, strict=True):
        here.add_loss(name, loss)
    return first, second


class _Layer(torch.autograd.Function):
    """Parameters are inputs, so that their gradients reach them in the ordinary way, and in the ordinary order."""

    @staticmethod
    def forward(
        ctx: Any, branches: tuple[Branch, Branch], here: Pass, link: Link, names: list[str], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        first, second, *parameters = tensors
        said = [replace(here, losses={}, measured={}) for _ in branches]
        first = first + branches[0](second.to(here.dtype), said[0])
        second = second + branches[1](first.to(here.dtype), said[1])
        for each in said:
            names += each.losses
            for name, values in each.measured.items():
                here.measure_all(name, values)
        ctx.branches, ctx.here, ctx.link, ctx.parameters = branches, here, link, parameters
        ctx.counts = [len(each.losses) for each in said]
        link.streams = first.detach(), second.detach()
        return first, second, *(loss for each in said for loss in each.losses.values())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        d_first, d_second, *d_losses = slopes
        first, second = ctx.link.streams
        cut = ctx.counts[0]
        delta, d_x, d_parameters = _take_off(ctx, 1, first, [d_second, *d_losses[cut:]])
        second, d_first = second - delta, d_first + d_x
        delta, d_x, d_more_parameters = _take_off(ctx, 0, second, [d_first, *d_losses[:cut]])
        first, d_second = first - delta, d_second + d_x
        ctx.link.streams = first, second
        sums = [_sum(*each) for each in zip(d_parameters, d_more_parameters, strict=True)]
        return None, None, None, None, d_first, d_second, *sums


def _take_off(
    ctx: Any, which: int, x: Tensor, slopes: list[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """What a branch added, and the slopes of `x` and of all parameters; None: it does not use them."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        inside = replace(ctx.here, losses={}, measured={})
        delta = ctx.branches[which](x.to(ctx.here.dtype), inside)
        outputs = [delta.float(), *inside.losses.values()]
    d_x, *d_parameters = torch.autograd.grad(outputs, [x, *ctx.parameters], slopes, allow_unused=True)
    return delta.detach(), d_x, tuple(d_parameters)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
