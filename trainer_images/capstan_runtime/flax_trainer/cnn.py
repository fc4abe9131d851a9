"""The residual convolutional network as NNX modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, S image side, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Cnn
from capstan_runtime.flax_trainer.components.normalisation import build_norm
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import Kernel, Linear
from capstan_runtime.model_spec import has_projection


class Convolution(nnx.Module):
    """A convolution and the normalisation after it."""

    def __init__(self, config: Cnn, channels_in: int, channels_out: int, size: int) -> None:
        self.conv = Kernel(channels_in, channels_out, size)
        self.norm = build_norm(config.normalisation, channels_out, has_positions=True)

    def __call__(self, x_BSSC: jax.Array, here: Pass, stride: int = 1) -> jax.Array:
        return self.norm(self.conv(x_BSSC, stride), here)


class ResidualBlock(nnx.Module):
    """He et al., 2015 (1512.03385)."""

    def __init__(self, config: Cnn, block: int, channels_in: int, channels: int) -> None:
        self.first = Convolution(config, channels_in, channels, 3)
        self.second = Convolution(config, channels, channels, 3)
        projects = has_projection(block, channels_in, channels)
        self.shortcut = Convolution(config, channels_in, channels, 1) if projects else None
        self.stride = 1 if block == 0 else 2

    def __call__(self, x_BSSC: jax.Array, here: Pass) -> jax.Array:
        y_BSSC = self.second(jax.nn.relu(self.first(x_BSSC, here, self.stride)), here)
        skipped = x_BSSC if self.shortcut is None else self.shortcut(x_BSSC, here, self.stride)
        return jax.nn.relu(y_BSSC + skipped)


class CnnModel(nnx.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int) -> None:
        self.stem = Convolution(config, image_channels, config.channels[0], 3)
        inputs = [config.channels[0], *config.channels]
        self.blocks = nnx.List(
            ResidualBlock(config, block, channels_in, channels)
            for block, (channels_in, channels) in enumerate(zip(inputs, config.channels, strict=False))
        )
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        x_BSSC = jax.nn.relu(self.stem(here.perturbed(inputs), here))
        for number, block in enumerate(self.blocks):
            x_BSSC = block(x_BSSC, here.layer(number))
        return self.head(jnp.mean(x_BSSC, axis=(1, 2)))
