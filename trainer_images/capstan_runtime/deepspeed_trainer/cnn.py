"""The residual convolutional network as torch modules. Attribute names are the canonical parameter names of
`model_spec`.

Axes: B batch, S image side, C channels.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Cnn
from capstan_runtime.decoder_spec import depth_rates
from capstan_runtime.deepspeed_trainer.components.branches import LayerScale, drop
from capstan_runtime.deepspeed_trainer.components.conditions import AdaIn, AdaLnZero, Film
from capstan_runtime.deepspeed_trainer.components.gates import SqueezeExcitation
from capstan_runtime.deepspeed_trainer.components.normalisation import build_norm
from capstan_runtime.deepspeed_trainer.forward_pass import Pass, through_block
from capstan_runtime.deepspeed_trainer.layers import Kernel, Linear
from capstan_runtime.model_spec import has_projection, squeezed


class Convolution(nn.Module):
    """A convolution and the normalisation after it."""

    def __init__(self, config: Cnn, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.conv = Kernel(channels_in, channels_out, size)
        self.norm = build_norm(config.normalisation, channels_out, has_positions=True)

    def forward(self, x_BCSS: Tensor, here: Pass, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x_BCSS, stride), here)


class ChannelScale(LayerScale):
    """A learnt factor for every channel."""

    def forward(self, x_BCSS: Tensor) -> Tensor:
        return super().forward(x_BCSS.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """He et al., 2015 (1512.03385)."""

    def __init__(self, config: Cnn, block: int, condition: int = 0) -> None:
        super().__init__()
        channels_in, channels, self.stride = config.blocks[block]
        self.first = Convolution(config, channels_in, channels, 3)
        self.second = Convolution(config, channels, channels, 3)
        squeeze = config.squeeze_excitation
        self.squeeze = SqueezeExcitation(channels, squeezed(squeeze, channels)) if squeeze is not None else None
        self.layer_scale = ChannelScale(channels) if config.layer_scale is not None else None
        film, adaptive = config.conditional_scaling, config.adaptive_norm
        self.film = Film(condition, channels) if film is not None else None
        zero, instance = (adaptive.ada_ln_zero, adaptive.ada_in) if adaptive is not None else (None, None)
        self.ada_ln_zero = AdaLnZero(condition, channels_in, channels, zero.epsilon) if zero is not None else None
        self.ada_in = AdaIn(condition, channels, instance.epsilon) if instance is not None else None
        projects = has_projection(channels_in, channels, self.stride)
        self.shortcut = Convolution(config, channels_in, channels, 1) if projects else None
        self.channel_rate = config.spatial_dropout.rate if config.spatial_dropout is not None else None
        depth = config.stochastic_depth
        self.skip_rate = float(depth_rates(depth, len(config.blocks))[block]) if depth is not None else None

    def forward(self, x_BCSS: Tensor, here: Pass) -> Tensor:
        y_BCSS, gate = (x_BCSS, None) if self.ada_ln_zero is None else self.ada_ln_zero(x_BCSS, here)
        y_BCSS = F.relu(self.first(y_BCSS, here, self.stride))
        if self.channel_rate is not None:
            y_BCSS = drop(y_BCSS, here, "spatial_dropout", self.channel_rate, y_BCSS.shape[1], 1, 1)
        y_BCSS = self.second(y_BCSS, here)
        y_BCSS = self._controlled(y_BCSS, gate, here)
        if self.squeeze is not None:
            y_BCSS = self.squeeze(y_BCSS)
        if self.layer_scale is not None:
            y_BCSS = self.layer_scale(y_BCSS)
        if self.skip_rate is not None:
            y_BCSS = drop(y_BCSS, here, "stochastic_depth", self.skip_rate, 1, 1, 1)
        skipped = x_BCSS if self.shortcut is None else self.shortcut(x_BCSS, here, self.stride)
        return F.relu(y_BCSS + skipped)

    def _controlled(self, y_BCSS: Tensor, gate: Tensor | None, here: Pass) -> Tensor:
        """What the block adds, as the samples' conditions will have it."""
        if self.ada_in is not None:
            y_BCSS = self.ada_in(y_BCSS, here)
        if self.film is not None:
            y_BCSS = self.film(y_BCSS, here)
        return y_BCSS if gate is None else y_BCSS * gate


class CnnModel(nn.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int, condition: int = 0) -> None:
        super().__init__()
        self.stem = Convolution(config, image_channels, config.channels[0], 3)
        self.blocks = nn.ModuleList(ResidualBlock(config, block, condition) for block in range(len(config.blocks)))
        self.dropout = config.dropout.rate if config.dropout is not None else None
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        # Images arrive as [B, S, S, C]: seen as [B, C, S, S] that is torch's channels_last, without a copy.
        x_BCSS = F.relu(self.stem(here.perturbed(inputs).permute(0, 3, 1, 2), here))
        for number, block in enumerate(self.blocks):
            x_BCSS = through_block(block, x_BCSS, here.layer(number))
        x_BC = x_BCSS.mean(dim=(2, 3))
        if self.dropout is not None:
            x_BC = drop(x_BC, here, "dropout", self.dropout, x_BC.shape[-1])
        return self.head(x_BC)
