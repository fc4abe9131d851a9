"""The architectures as NNX modules; the decoder has a file of its own. Attribute names are the canonical parameter
names of `model_spec`.

Axes: B batch, S image side, C channels.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.flax_trainer.decoder import TransformerModel
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import Convolution, Linear
from capstan_runtime.model_spec import has_projection


class MlpModel(nnx.Module):
    def __init__(self, config: Mlp, inputs: int, outputs: int) -> None:
        widths = [inputs, *config.hidden]
        self.layers = nnx.List(
            Linear(width_in, width_out, bias=True) for width_in, width_out in zip(widths, config.hidden, strict=False)
        )
        self.head = Linear(widths[-1], outputs, bias=True)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        x = here.perturbed(inputs).reshape(len(inputs), -1)
        for layer in self.layers:
            x = jax.nn.gelu(layer(x), approximate=False)
        return self.head(x)


class ResidualBlock(nnx.Module):
    """He et al., 2015 (1512.03385), with group normalisation."""

    def __init__(self, block: int, channels_in: int, channels: int, groups: int) -> None:
        self.first = Convolution(channels_in, channels, 3, groups)
        self.second = Convolution(channels, channels, 3, groups)
        projects = has_projection(block, channels_in, channels)
        self.shortcut = Convolution(channels_in, channels, 1, groups) if projects else None
        self.stride = 1 if block == 0 else 2

    def __call__(self, x_BSSC: jax.Array, here: Pass) -> jax.Array:
        y_BSSC = self.second(jax.nn.relu(self.first(x_BSSC, self.stride)))
        skipped = x_BSSC if self.shortcut is None else self.shortcut(x_BSSC, self.stride)
        return jax.nn.relu(y_BSSC + skipped)


class CnnModel(nnx.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int) -> None:
        self.stem = Convolution(image_channels, config.channels[0], 3, config.groups)
        inputs = [config.channels[0], *config.channels]
        self.blocks = nnx.List(
            ResidualBlock(block, channels_in, channels, config.groups)
            for block, (channels_in, channels) in enumerate(zip(inputs, config.channels, strict=False))
        )
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        x_BSSC = jax.nn.relu(self.stem(here.perturbed(inputs)))
        for number, block in enumerate(self.blocks):
            x_BSSC = block(x_BSSC, here.layer(number))
        return self.head(jnp.mean(x_BSSC, axis=(1, 2)))


AnyModel = MlpModel | CnnModel | TransformerModel


def build_model(model: Model, data: DataSpec) -> AnyModel:
    """The module, with parameters of the right shapes and no meaningful values.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    """
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs)
        case Transformer() as config:
            return TransformerModel(config, data.outputs)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")
