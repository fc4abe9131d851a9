"""Fourier features. Axes: B batch, I inputs, F rows of the random matrix."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Tancik et al., 2020 (2006.10739), computed in fp32: angles of many turns lose too much in less."""

    weight: Tensor

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(count, inputs))

    def forward(self, x_BI: Tensor) -> Tensor:
        """[B, 2 F]: the cosines, then the sines."""
        turns_BF = F.linear(x_BI.float(), self.weight)
        angles_BF = 2.0 * math.pi * (turns_BF - turns_BF.round())
        return torch.cat([angles_BF.cos(), angles_BF.sin()], dim=-1).to(x_BI.dtype)
