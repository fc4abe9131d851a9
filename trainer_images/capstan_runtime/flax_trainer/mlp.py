"""The multi-layer perceptron as an NNX module. Attribute names are the canonical parameter names of `model_spec`."""

import jax
from flax import nnx

from capstan_runtime.contract.models import Mlp
from capstan_runtime.flax_trainer.components.branches import drop
from capstan_runtime.flax_trainer.components.conditions import Film
from capstan_runtime.flax_trainer.components.fourier import FourierFeatures
from capstan_runtime.flax_trainer.components.normalisation import build_norm
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import Linear


class MlpModel(nnx.Module):
    def __init__(self, config: Mlp, inputs: int, outputs: int, condition: int = 0) -> None:
        waves = config.fourier_features
        self.fourier = FourierFeatures(inputs, waves.count) if waves is not None else None
        widths = [inputs if waves is None else 2 * waves.count, *config.hidden]
        self.dropout = config.dropout.rate if config.dropout is not None else None
        self.layers = nnx.List(
            Linear(width_in, width_out, bias=True) for width_in, width_out in zip(widths, config.hidden, strict=False)
        )
        norms = (
            [build_norm(config.norm.value, width, has_positions=False) for width in config.hidden]
            if config.norm is not None
            else []
        )
        self.norms = nnx.List(norms)
        films = config.hidden if config.conditional_scaling is not None else []
        self.films = nnx.List(Film(condition, width) for width in films)
        self.head = Linear(widths[-1], outputs, bias=True)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        x = here.perturbed(inputs).reshape(len(inputs), -1)
        if self.fourier is not None:
            x = self.fourier(x)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms:
                x = self.norms[number](x, here)
            if self.films:
                x = self.films[number](x, here)
            x = jax.nn.gelu(x, approximate=False)
            if self.dropout is not None:
                x = drop(x, here.layer(number), "dropout", self.dropout, x.shape[-1])
        return self.head(x)
