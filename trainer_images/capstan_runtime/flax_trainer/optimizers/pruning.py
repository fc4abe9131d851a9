"""Weights that are set to 0. Matrices that are stacked stay apart: a leaf's first `stack` dimensions number them."""

import jax
import jax.numpy as jnp

from capstan_runtime.contract.compression import Nm, Prune
from capstan_runtime.flax_trainer.optimizers.adam import Numbers


def with_pruned(prune: Prune, numbers: Numbers, before: jax.Array, weights: jax.Array, stack: int) -> jax.Array:
    """`weights`, which an update made of those `before` it, with what `pruning_numbers` asks for set to 0."""
    weights = jnp.where((before == 0) & (numbers["keeps_zeros"] > 0), 0.0, weights)

    def cut(weights: jax.Array) -> jax.Array:
        if isinstance(prune.value, Nm):
            return jnp.where(_largest_of_each(prune.value, weights, stack), weights, 0.0)
        return _without_smallest(weights, numbers["pruned_share"], stack)

    return jax.lax.cond(numbers["cuts"] > 0, cut, lambda weights: weights, weights)


def _without_smallest(weights: jax.Array, share: jax.Array, stack: int) -> jax.Array:
    """Of each matrix, floor(share * size) weights are 0, and those that are as small as the last of them."""
    magnitudes = jnp.abs(weights).reshape(*weights.shape[:stack], -1)
    count = jnp.floor(share * jnp.float32(magnitudes.shape[-1])).astype(jnp.int32)
    largest_gone = jnp.take(jnp.sort(magnitudes, axis=-1), jnp.maximum(count - 1, 0), axis=-1)
    stays = (magnitudes > largest_gone[..., None]) | (count == 0)
    return jnp.where(stays.reshape(weights.shape), weights, 0.0)


def _largest_of_each(config: Nm, weights: jax.Array, stack: int) -> jax.Array:
    """Where the largest to `keep` of each group of neighbours along the inputs are; of equals the first."""
    magnitudes = jnp.moveaxis(jnp.abs(weights), stack + 1, -1)
    inputs = magnitudes.shape[-1]
    # What fills the last group up is smaller than any weight.
    padding = [(0, 0)] * (magnitudes.ndim - 1) + [(0, -inputs % config.of)]
    groups = jnp.pad(magnitudes, padding, constant_values=-1.0).reshape(*magnitudes.shape[:-1], -1, config.of)
    ranks = jnp.argsort(jnp.argsort(-groups, axis=-1, stable=True), axis=-1)
    stays = (ranks < config.keep).reshape(*magnitudes.shape[:-1], -1)[..., :inputs]
    return jnp.moveaxis(stays, -1, stack + 1)
