"""What becomes of a residual branch before it is added. Axes: B batch, T time, D model width, F feed-forward width."""

import numpy as np
import torch
from torch import Tensor, nn

from capstan_runtime.contract.decoder_components import AdaptiveDropout
from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import depth_rates
from capstan_runtime.deepspeed_trainer import random
from capstan_runtime.deepspeed_trainer.forward_pass import Pass


class LayerScale(nn.Module):
    """A learnt factor for every coordinate (CaiT, 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.weight.to(x_BTD.dtype)


def drop(x_BTD: Tensor, here: Pass, name: str, rate: float, *shape: int, first: int = 0) -> Tensor:
    """`x_BTD` with 0 where chance drops it, and divided by 1 - `rate` elsewhere: `shape` is that of the mask, without
    the batch, and is stretched; `first` is the number of its first element. Where nothing is random, as it is."""
    keys_B = here.named(name).keys_B
    if keys_B is None:
        return x_BTD
    single = np.float32(rate)
    kept = random.uniform(keys_B, *shape, first=first) >= float(single)
    return torch.where(kept, x_BTD.float() / float(np.float32(1.0) - single), 0.0).to(x_BTD.dtype)


def drop_elements(config: Transformer, x_BTD: Tensor, here: Pass) -> Tensor:
    """After dropout and temporal dropout, those that there are."""
    _, length, dim = x_BTD.shape
    if config.dropout is not None:
        x_BTD = drop(x_BTD, here, "dropout", config.dropout.rate, length, dim, first=here.first * dim)
    if config.temporal_dropout is not None:
        x_BTD = drop(x_BTD, here, "temporal_dropout", config.temporal_dropout.rate, 1, dim)
    return x_BTD


def drop_branch(config: Transformer, x_BTD: Tensor, here: Pass) -> Tensor:
    """What a branch of the layer `here` adds, after everything that may drop some or all of it."""
    x_BTD = drop_elements(config, x_BTD, here)
    if config.stochastic_depth is None or here.number is None:
        return x_BTD
    return drop(
        x_BTD, here, "stochastic_depth", float(depth_rates(config.stochastic_depth, config.layers)[here.number]), 1, 1
    )


def drop_units(
    config: AdaptiveDropout, units_BTF: Tensor, gate_BTF: Tensor, here: Pass, first: int, count: int
) -> Tensor:
    """Units that are kept with a probability that their gates say (standout: Ba and Frey, NIPS 2013); where nothing is
    random, times that probability. They are number `first` and those after it of `count`."""
    kept_share = torch.sigmoid(config.scale * gate_BTF.float() + config.shift)
    keys_B = here.named("adaptive_dropout").keys_B
    if keys_B is None:
        return (units_BTF * kept_share).to(units_BTF.dtype)
    chance = random.uniform(keys_B, *gate_BTF.shape[1:], first=here.first * count + first, row=count)
    return torch.where(chance < kept_share, units_BTF, 0.0)
