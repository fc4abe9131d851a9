"""For a while, the weights' moving average in place of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from capstan_runtime.updates import EMA


@contextmanager
def averaged_weights(engine: Any) -> Iterator[None]:
    """What `engine`, a DeepSpeedEngine, computes with is the average, if its optimizer keeps one; afterwards it is the
    weights again, to the last bit. Needs no memory but for the largest tensor. Collective from ZeRO stage 1 on."""
    averages = {p: state[EMA] for p, state in engine.basic_optimizer.state.items() if EMA in state}
    if not averages:
        yield
        return
    _swap(averages)
    _spread_masters(engine)
    try:
        yield
    finally:
        _swap(averages)
        _spread_masters(engine)


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
