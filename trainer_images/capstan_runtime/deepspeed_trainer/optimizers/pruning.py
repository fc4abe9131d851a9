"""Weights that are set to 0. Of whole parameters."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.compression import Nm, Prune


class Pruning:
    """Around each step of the optimizer: what was 0 before it stays 0, and what `pruning_numbers` asks for follows."""

    def __init__(self, prune: Prune, parameters: Sequence[nn.Parameter], numbers: dict[str, float]) -> None:
        """`numbers` are those of the step that is made."""
        self._prune = prune
        self._parameters = parameters
        self._numbers = numbers
        self._zeros: list[Tensor] = []

    @torch.no_grad()
    def before(self, *_: object) -> None:
        if self._numbers["keeps_zeros"]:
            self._zeros = [parameter == 0 for parameter in self._parameters]

    @torch.no_grad()
    def after(self, *_: object) -> None:
        for parameter, zeros in zip(self._parameters, self._zeros, strict=False):  # none yet: nothing is kept
            parameter.masked_fill_(zeros, 0.0)
        self._zeros = []
        if not self._numbers["cuts"]:
            return
        for parameter in self._parameters:
            if parameter.grad is None:  # the update was dropped, and its cut with it
                continue
            if isinstance(self._prune.value, Nm):
                parameter.masked_fill_(~_largest_of_each(self._prune.value, parameter), 0.0)
            else:
                _drop_smallest(parameter, self._numbers["pruned_share"])


def _drop_smallest(weights: Tensor, share: float) -> None:
    """floor(share * size) weights are 0, and those that are as small as the last of them."""
    # In fp32, as the other framework has it.
    count = int(np.floor(np.float32(share) * np.float32(weights.numel())))
    if count:
        largest_gone = weights.abs().flatten().kthvalue(count).values
        weights.masked_fill_(weights.abs() <= largest_gone, 0.0)


def _largest_of_each(config: Nm, weights: Tensor) -> Tensor:
    """Where the n largest of each m neighbours along the inputs are; of equals the first."""
    magnitudes = weights.abs().movedim(1, -1)
    inputs = magnitudes.shape[-1]
    # What fills the last group up is smaller than any weight.
    groups = F.pad(magnitudes, (0, -inputs % config.m), value=-1.0).unflatten(-1, (-1, config.m))
    ranks = groups.neg().argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks < config.n).flatten(-2)[..., :inputs].movedim(-1, 1)
