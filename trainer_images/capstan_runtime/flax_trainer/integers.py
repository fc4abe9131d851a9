"""Weights as what their integers stand for: the twin of `capstan_runtime.integers.as_integers`."""

import jax
import jax.numpy as jnp

from capstan_runtime.integers import KEPT_BITS, ROUNDING, SMALLEST_SCALE, Bits, most, per_integer


def as_if_integers(weights: jax.Array, channel_dims: int, bits: Bits) -> jax.Array:
    """The weights, rounded to what integers of `bits` with one scale per channel can say. The first `channel_dims`
    dimensions number the channels."""
    largest = jnp.max(jnp.abs(weights), axis=tuple(range(channel_dims, weights.ndim)), keepdims=True)
    raw = jnp.maximum(largest * per_integer(bits), jnp.float32(SMALLEST_SCALE))
    whole = (jax.lax.bitcast_convert_type(raw, jnp.int32) + ROUNDING) & KEPT_BITS
    scales = jax.lax.bitcast_convert_type(whole, jnp.float32)
    return jnp.clip(jnp.round(weights / scales), -most(bits), most(bits)) * scales
