"""Weights that are set to 0. Of whole parameters."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.compression import Nm, Prune
from capstan_runtime.model_spec import ParameterSpec


class Pruning:
    """Around each step of the optimizer: what was 0 before it stays 0, and what `pruning_numbers` asks for follows."""

    def __init__(
        self, prune: Prune, parameters: Sequence[tuple[nn.Parameter, ParameterSpec]], numbers: dict[str, float]
    ) -> None:
        """`numbers` are those of the step that is made."""
        self._prune = prune
        self._parameters = parameters
        self._numbers = numbers
        self._zeros: list[Tensor] = []

    @torch.no_grad()
    def before(self, *_: object) -> None:
        if self._numbers["keeps_zeros"]:
            self._zeros = [parameter == 0 for parameter, _ in self._parameters]

    @torch.no_grad()
    def after(self, *_: object) -> None:
        for kept, zeros in zip(self._parameters, self._zeros, strict=False):  # none yet: nothing is kept
            kept[0].masked_fill_(zeros, 0.0)
        self._zeros = []
        if not self._numbers["cuts"]:
            return
        for parameter, spec in self._parameters:
            if parameter.grad is None:  # the update was dropped, and its cut with it
                continue
            for weights in parameter.view(-1, *spec.shape[spec.matrix_dims :]):
                if isinstance(self._prune.value, Nm):
                    weights.masked_fill_(~_largest_of_each(self._prune.value, weights), 0.0)
                else:
                    _drop_smallest(weights, self._numbers["pruned_share"])

    def sparsity(self) -> float | None:
        """Share of the weights that are 0; None if there are none. Waits for the device."""
        if not self._parameters:
            return None
        zeros = torch.stack([(parameter == 0).sum() for parameter, _ in self._parameters]).sum()
        return int(zeros) / sum(spec.size for _, spec in self._parameters)


def _drop_smallest(weights: Tensor, share: float) -> None:
    """floor(share * size) weights are 0, and those that are as small as the last of them."""
    # In fp32, as the other framework has it.
    count = int(np.floor(np.float32(share) * np.float32(weights.numel())))
    if count:
        largest_gone = weights.abs().flatten().kthvalue(count).values
        weights.masked_fill_(weights.abs() <= largest_gone, 0.0)


def _largest_of_each(config: Nm, weights: Tensor) -> Tensor:
    """Where the largest to `keep` of each group of neighbours along the inputs are; of equals the first."""
    magnitudes = weights.abs().movedim(1, -1)
    inputs = magnitudes.shape[-1]
    # What fills the last group up is smaller than any weight.
    groups = F.pad(magnitudes, (0, -inputs % config.of), value=-1.0).unflatten(-1, (-1, config.of))
    ranks = groups.neg().argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks < config.keep).flatten(-2)[..., :inputs].movedim(-1, 1)
