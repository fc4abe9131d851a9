"""The residual convolutional network as torch modules. Attribute names are the canonical parameter names of
`model_spec`.

Axes: B batch, S image side, C channels.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Cnn
from capstan_runtime.deepspeed_trainer.components.normalisation import build_norm
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Kernel, Linear
from capstan_runtime.model_spec import has_projection


class Convolution(nn.Module):
    """A convolution and the normalisation after it."""

    def __init__(self, config: Cnn, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.conv = Kernel(channels_in, channels_out, size)
        self.norm = build_norm(config.normalisation, channels_out, has_positions=True)

    def forward(self, x_BCSS: Tensor, here: Pass, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x_BCSS, stride), here)


class ResidualBlock(nn.Module):
    """He et al., 2015 (1512.03385)."""

    def __init__(self, config: Cnn, block: int, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = Convolution(config, channels_in, channels, 3)
        self.second = Convolution(config, channels, channels, 3)
        projects = has_projection(block, channels_in, channels)
        self.shortcut = Convolution(config, channels_in, channels, 1) if projects else None
        self.stride = 1 if block == 0 else 2

    def forward(self, x_BCSS: Tensor, here: Pass) -> Tensor:
        y_BCSS = self.second(F.relu(self.first(x_BCSS, here, self.stride)), here)
        skipped = x_BCSS if self.shortcut is None else self.shortcut(x_BCSS, here, self.stride)
        return F.relu(y_BCSS + skipped)


class CnnModel(nn.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = Convolution(config, image_channels, config.channels[0], 3)
        inputs = [config.channels[0], *config.channels]
        self.blocks = nn.ModuleList(
            ResidualBlock(config, block, channels_in, channels)
            for block, (channels_in, channels) in enumerate(zip(inputs, config.channels, strict=False))
        )
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        # Images arrive as [B, S, S, C]: seen as [B, C, S, S] that is torch's channels_last, without a copy.
        x_BCSS = F.relu(self.stem(here.perturbed(inputs).permute(0, 3, 1, 2), here))
        for number, block in enumerate(self.blocks):
            x_BCSS = block(x_BCSS, here.layer(number))
        return self.head(x_BCSS.mean(dim=(2, 3)))
