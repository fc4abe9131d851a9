"""Layers in fp32 weights that are cast to the activations' type on use: bf16 arithmetic with fp32 master weights.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width, I inputs, O outputs.
Shapes are all that the constructors decide: values come from `model_spec.initial_parameter` or a checkpoint.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x_BI: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        bias = None if self.bias is None else self.bias.to(x_BI.dtype)
        return F.linear(x_BI, self.weight.to(x_BI.dtype), bias)


class Embedding(nn.Module):
    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, dim))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, T] to [B, T, D] of type `dtype`."""
        return F.embedding(tokens_BT, self.weight).to(dtype)


class RmsNorm(nn.Module):
    """Zhang and Sennrich, 2019 (1910.07467), computed in fp32."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.epsilon = epsilon

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.rms_norm(x_BTD.float(), self.weight.shape, self.weight, self.epsilon).to(x_BTD.dtype)


class Kernel(nn.Module):
    """The weight of a convolution without bias; zeros around the image keep its size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, size, size))

    def forward(self, x_BCSS: Tensor, stride: int) -> Tensor:
        return F.conv2d(x_BCSS, self.weight.to(x_BCSS.dtype), stride=stride, padding=self.weight.shape[-1] // 2)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair of coordinates at each position, fp32 [T, 1, H / 2] each for positions [T],
    [B, T, 1, H / 2] for [B, T] (Su et al., 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = (positions.float()[..., None] * theta**-exponents)[..., None, :]
    return angles.cos(), angles.sin()


def rotate(x_BTNH: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turns coordinate i together with i + H / 2 by its angle; computed in fp32."""
    cos, sin = table
    first, second = x_BTNH.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTNH.dtype)
