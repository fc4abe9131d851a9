"""Squeeze-and-excitation. Axes: B batch, S image side, C channels."""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.flax_trainer.layers import Linear


class SqueezeExcitation(nnx.Module):
    """Hu et al., 2017 (1709.01507)."""

    def __init__(self, channels: int, hidden: int) -> None:
        self.reduce = Linear(channels, hidden, bias=True)
        self.expand = Linear(hidden, channels, bias=True)

    def __call__(self, x_BSSC: jax.Array) -> jax.Array:
        squeezed_BC = jax.nn.relu(self.reduce(jnp.mean(x_BSSC, axis=(1, 2))))
        return x_BSSC * jax.nn.sigmoid(self.expand(squeezed_BC))[:, None, None]
