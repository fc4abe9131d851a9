"""The moving average of the model: that of buffers, and for a while all of it in place of the model itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from capstan_runtime.deepspeed_trainer.fragments import Fragment
from capstan_runtime.updates import EMA


@torch.no_grad()
def average_buffers(buffers: Sequence[Fragment], rate: float) -> None:
    """After an update, as of the weights."""
    for own, average in _averages_of(buffers).items():
        average.lerp_(own, rate)


@contextmanager
def averaged_model(engine: Any, buffers: Sequence[Fragment]) -> Iterator[None]:
    """What `engine`, a DeepSpeedEngine, computes with is the average of its weights and `buffers`, if its optimizer
    keeps one; afterwards it is what it was, to the last bit. Needs no memory but for the largest tensor. Collective
    from ZeRO stage 1 on."""
    averages = {p: state[EMA] for p, state in engine.basic_optimizer.state.items() if EMA in state}
    if not averages:
        yield
        return
    averages |= _averages_of(buffers)
    _swap(averages)
    _spread_masters(engine)
    try:
        yield
    finally:
        _swap(averages)
        _spread_masters(engine)


def _averages_of(buffers: Sequence[Fragment]) -> dict[Tensor, Tensor]:
    """By the tensor that is averaged, where there is one."""
    return {
        buffer.tensors[None]: tensor
        for buffer in buffers
        for kind, tensor in buffer.tensors.items()
        if kind is not None and kind.name == EMA
    }


@torch.no_grad()
def _swap(averages: Mapping[Tensor, Tensor]) -> None:
    for weights, average in averages.items():
        kept = weights.clone()
        weights.copy_(average)
        average.copy_(kept)


@torch.no_grad()
def _spread_masters(engine: Any) -> None:
    """Brings what the forward pass reads up to the fp32 masters, as DeepSpeed does after a step."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()  # else what is whole now would be taken for up to date
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small ones, which are whole on every rank all the time
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
