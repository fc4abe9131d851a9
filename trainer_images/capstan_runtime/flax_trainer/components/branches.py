"""What becomes of a residual branch before it is added. Axes: B batch, T time, D model width, F feed-forward width."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capstan_runtime.contract.decoder_components import AdaptiveDropout
from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import depth_rates
from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.forward_pass import Pass


class LayerScale(nnx.Module):
    """A learnt factor for every coordinate (CaiT, 2103.17239)."""

    def __init__(self, dim: int) -> None:
        self.weight = nnx.Param(jnp.zeros(dim, jnp.float32))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD * self.weight[...].astype(x_BTD.dtype)


def drop(x_BTD: jax.Array, here: Pass, name: str, rate: jax.Array | float, *shape: int) -> jax.Array:
    """`x_BTD` with 0 where chance drops it, and divided by 1 - `rate` elsewhere: `shape` is that of the mask, without
    the batch, and is stretched. Where nothing is random, as it is."""
    keys_B = here.named(name).keys_B
    if keys_B is None:
        return x_BTD
    rate = jnp.asarray(rate, jnp.float32)
    kept = random.uniform(keys_B, *shape) >= rate
    return jnp.where(kept, x_BTD.astype(jnp.float32) / (1.0 - rate), 0.0).astype(x_BTD.dtype)


def drop_elements(config: Transformer, x_BTD: jax.Array, here: Pass) -> jax.Array:
    """After dropout and temporal dropout, those that there are."""
    _, length, dim = x_BTD.shape
    if config.dropout is not None:
        x_BTD = drop(x_BTD, here, "dropout", config.dropout.rate, length, dim)
    if config.temporal_dropout is not None:
        x_BTD = drop(x_BTD, here, "temporal_dropout", config.temporal_dropout.rate, 1, dim)
    return x_BTD


def drop_branch(config: Transformer, x_BTD: jax.Array, here: Pass) -> jax.Array:
    """What a branch of the layer `here` adds, after everything that may drop some or all of it."""
    x_BTD = drop_elements(config, x_BTD, here)
    if config.stochastic_depth is None or here.number is None:
        return x_BTD
    rate = jnp.asarray(depth_rates(config.stochastic_depth, config.layers))[here.number]
    return drop(x_BTD, here, "stochastic_depth", rate, 1, 1)


def drop_units(config: AdaptiveDropout, units_BTF: jax.Array, gate_BTF: jax.Array, here: Pass) -> jax.Array:
    """Units that are kept with a probability that their gates say (standout: Ba and Frey, NIPS 2013); where nothing is
    random, times that probability."""
    kept_share = jax.nn.sigmoid(np.float32(config.scale) * gate_BTF.astype(jnp.float32) + np.float32(config.shift))
    keys_B = here.named("adaptive_dropout").keys_B
    if keys_B is None:
        return (units_BTF * kept_share).astype(units_BTF.dtype)
    return jnp.where(random.uniform(keys_B, *gate_BTF.shape[1:]) < kept_share, units_BTF, 0)
