"""Fourier features. Axes: B batch, I inputs, F rows of the random matrix."""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.flax_trainer.forward_pass import Buffer


class FourierFeatures(nnx.Module):
    """Tancik et al., 2020 (2006.10739), computed in fp32: angles of many turns lose too much in less."""

    def __init__(self, inputs: int, count: int) -> None:
        self.weight = Buffer(jnp.zeros((count, inputs), jnp.float32))

    def __call__(self, x_BI: jax.Array) -> jax.Array:
        """[B, 2 F]: the cosines, then the sines."""
        turns_BF = jnp.einsum("bi,fi->bf", x_BI.astype(jnp.float32), self.weight[...], precision="highest")
        angles_BF = 2.0 * jnp.pi * (turns_BF - jnp.round(turns_BF))
        return jnp.concatenate([jnp.cos(angles_BF), jnp.sin(angles_BF)], axis=-1).astype(x_BI.dtype)
