"""The residual convolutional network as NNX modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, S image side, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Cnn
from capstan_runtime.decoder_spec import depth_rates
from capstan_runtime.flax_trainer.components.branches import LayerScale, drop
from capstan_runtime.flax_trainer.components.conditions import AdaIn, AdaLnZero, Film
from capstan_runtime.flax_trainer.components.gates import SqueezeExcitation
from capstan_runtime.flax_trainer.components.normalisation import build_norm
from capstan_runtime.flax_trainer.forward_pass import Pass, through_block
from capstan_runtime.flax_trainer.layers import Kernel, Linear
from capstan_runtime.model_spec import has_projection, squeezed


class Convolution(nnx.Module):
    """A convolution and the normalisation after it."""

    def __init__(self, config: Cnn, channels_in: int, channels_out: int, size: int) -> None:
        self.conv = Kernel(channels_in, channels_out, size)
        self.norm = build_norm(config.normalisation, channels_out, has_positions=True)

    def __call__(self, x_BSSC: jax.Array, here: Pass, stride: int = 1) -> jax.Array:
        return self.norm(self.conv(x_BSSC, stride), here)


class ResidualBlock(nnx.Module):
    """He et al., 2015 (1512.03385)."""

    def __init__(self, config: Cnn, block: int, condition: int = 0) -> None:
        channels_in, channels, self.stride = config.blocks[block]
        self.first = Convolution(config, channels_in, channels, 3)
        self.second = Convolution(config, channels, channels, 3)
        squeeze = config.squeeze_excitation
        self.squeeze = SqueezeExcitation(channels, squeezed(squeeze, channels)) if squeeze is not None else None
        self.layer_scale = LayerScale(channels) if config.layer_scale is not None else None
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

    def __call__(self, x_BSSC: jax.Array, here: Pass) -> jax.Array:
        y_BSSC, gate = (x_BSSC, None) if self.ada_ln_zero is None else self.ada_ln_zero(x_BSSC, here)
        y_BSSC = jax.nn.relu(self.first(y_BSSC, here, self.stride))
        if self.channel_rate is not None:
            y_BSSC = drop(y_BSSC, here, "spatial_dropout", self.channel_rate, 1, 1, y_BSSC.shape[-1])
        y_BSSC = self.second(y_BSSC, here)
        y_BSSC = self._controlled(y_BSSC, gate, here)
        if self.squeeze is not None:
            y_BSSC = self.squeeze(y_BSSC)
        if self.layer_scale is not None:
            y_BSSC = self.layer_scale(y_BSSC)
        if self.skip_rate is not None:
            y_BSSC = drop(y_BSSC, here, "stochastic_depth", self.skip_rate, 1, 1, 1)
        skipped = x_BSSC if self.shortcut is None else self.shortcut(x_BSSC, here, self.stride)
        return jax.nn.relu(y_BSSC + skipped)

    def _controlled(self, y_BSSC: jax.Array, gate: jax.Array | None, here: Pass) -> jax.Array:
        """What the block adds, as the samples' conditions will have it."""
        if self.ada_in is not None:
            y_BSSC = self.ada_in(y_BSSC, here)
        if self.film is not None:
            y_BSSC = self.film(y_BSSC, here)
        return y_BSSC if gate is None else y_BSSC * gate


class CnnModel(nnx.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int, condition: int = 0) -> None:
        self.stem = Convolution(config, image_channels, config.channels[0], 3)
        self.blocks = nnx.List(ResidualBlock(config, block, condition) for block in range(len(config.blocks)))
        self.dropout = config.dropout.rate if config.dropout is not None else None
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        x_BSSC = jax.nn.relu(self.stem(here.perturbed(inputs), here))
        for number, block in enumerate(self.blocks):
            x_BSSC = through_block(block, x_BSSC, here.layer(number))
        x_BC = jnp.mean(x_BSSC, axis=(1, 2))
        if self.dropout is not None:
            x_BC = drop(x_BC, here, "dropout", self.dropout, x_BC.shape[-1])
        return self.head(x_BC)
