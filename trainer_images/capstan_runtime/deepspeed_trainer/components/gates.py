"""Squeeze-and-excitation. Axes: B batch, S image side, C channels."""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.layers import Linear


class SqueezeExcitation(nn.Module):
    """Hu et al., 2017 (1709.01507)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = Linear(channels, hidden, bias=True)
        self.expand = Linear(hidden, channels, bias=True)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        squeezed_BC = F.relu(self.reduce(x_BCSS.mean(dim=(2, 3))))
        return x_BCSS * self.expand(squeezed_BC).sigmoid()[:, :, None, None]
