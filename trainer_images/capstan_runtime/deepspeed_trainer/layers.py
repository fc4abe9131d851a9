"""Layers in fp32 weights that are cast to the activations' type on use: bf16 arithmetic with fp32 master weights.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width, I inputs, O outputs.
Shapes are all that the constructors decide: values come from `model_spec.initial_parameter` or a checkpoint.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.model_spec import GROUP_NORM_EPSILON


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


class GroupNorm(nn.Module):
    """Wu and He, 2018 (1803.08494), computed in fp32: unlike batch statistics, it does not see how a batch is cut."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.groups = groups

    def forward(self, x_BCSS: Tensor) -> Tensor:
        normal = F.group_norm(x_BCSS.float(), self.groups, self.weight, self.bias, GROUP_NORM_EPSILON)
        return normal.to(x_BCSS.dtype)


class Kernel(nn.Module):
    """The weight of a convolution without bias; zeros around the image keep its size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, size, size))

    def forward(self, x_BCSS: Tensor, stride: int) -> Tensor:
        return F.conv2d(x_BCSS, self.weight.to(x_BCSS.dtype), stride=stride, padding=self.weight.shape[-1] // 2)


class Convolution(nn.Module):
    """A convolution and the group normalisation after it."""

    def __init__(self, channels_in: int, channels_out: int, size: int, groups: int) -> None:
        super().__init__()
        self.conv = Kernel(channels_in, channels_out, size)
        self.norm = GroupNorm(channels_out, groups)

    def forward(self, x_BCSS: Tensor, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x_BCSS, stride))


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
