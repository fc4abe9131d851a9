"""What a sample's condition does to its features. Axes: B batch, K elements of the condition, C channels.

Features are [B, C, …]; all is computed in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Linear


class FromCondition(nn.Module):
    """Vectors for each sample, made of its condition by one layer."""

    def __init__(self, condition: int, *widths: int) -> None:
        super().__init__()
        self.made = Linear(condition, sum(widths), bias=True)
        self.widths = list(widths)

    def forward(self, here: Pass, positions: int, *, activated: bool = False) -> list[Tensor]:
        """Each [B, C, 1, …], to be stretched over so many axes of positions. `activated`: by SiLU first, as in DiT."""
        assert here.conditions is not None
        condition_BK = here.conditions.float()
        made = self.made(F.silu(condition_BK) if activated else condition_BK)
        return [part.reshape(*part.shape, *[1] * positions) for part in made.split(self.widths, dim=-1)]


class Film(nn.Module):
    """Perez et al., 2017 (1709.07871): the factor is 1 + what is made of the condition."""

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.modulation = FromCondition(condition, channels, channels)

    def forward(self, x: Tensor, here: Pass) -> Tensor:
        scale, shift = self.modulation(here, x.ndim - 2)
        return (x.float() * (1.0 + scale) + shift).to(x.dtype)


class AdaIn(nn.Module):
    """Huang and Belongie, 2017 (1703.06868), the target's statistics made of the condition."""

    def __init__(self, condition: int, channels: int, epsilon: float) -> None:
        super().__init__()
        self.modulation = FromCondition(condition, channels, channels)
        self.epsilon = epsilon

    def forward(self, x_BCSS: Tensor, here: Pass) -> Tensor:
        scale, shift = self.modulation(here, 2)
        return (_normal(x_BCSS, (2, 3), self.epsilon) * (1.0 + scale) + shift).to(x_BCSS.dtype)


class AdaLnZero(nn.Module):
    """Peebles and Xie, 2022 (2212.09748)."""

    def __init__(self, condition: int, channels_in: int, channels: int, epsilon: float) -> None:
        super().__init__()
        self.modulation = FromCondition(condition, channels_in, channels_in, channels)
        self.epsilon = epsilon

    def forward(self, x_BCSS: Tensor, here: Pass) -> tuple[Tensor, Tensor]:
        """The block's input, and the gate of what it adds, [B, C, 1, 1]."""
        shift, scale, gate = self.modulation(here, 2, activated=True)
        normal = _normal(x_BCSS, (1,), self.epsilon)
        return (normal * (1.0 + scale) + shift).to(x_BCSS.dtype), gate.to(x_BCSS.dtype)


def _normal(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    exact = x.float()
    centred = exact - exact.mean(dim=axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)
