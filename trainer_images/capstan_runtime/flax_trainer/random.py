"""`capstan_runtime.randomness` for JAX: the same bits. Axes: B samples."""

import jax
import jax.numpy as jnp
import numpy as np

from capstan_runtime import randomness
from capstan_runtime.randomness import FIRST_FACTOR, SECOND_FACTOR, STRIDE, UNIT


def mix(words: jax.Array) -> jax.Array:
    """The hash of each uint32 word, same shape."""
    words = (words ^ (words >> 16)) * jnp.uint32(FIRST_FACTOR)
    words = (words ^ (words >> 13)) * jnp.uint32(SECOND_FACTOR)
    return words ^ (words >> 16)


def at(keys_B: jax.Array, place: int | jax.Array) -> jax.Array:
    """The keys of `place`, the number of a site or of a layer, uint32 [B]."""
    number = jnp.uint32(place) if isinstance(place, int) else place.astype(jnp.uint32)
    return mix(keys_B ^ mix(number * jnp.uint32(STRIDE)))


def uniform(keys_B: jax.Array, *shape: int) -> jax.Array:
    """Numbers in [0, 1), float32 [B, *shape]."""
    count = int(np.prod(shape))
    elements = mix(jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(STRIDE)).reshape(shape)
    words = mix(keys_B.reshape(-1, *[1] * len(shape)) ^ elements)
    return (words >> 8).astype(jnp.float32) * jnp.float32(UNIT)


def named(keys_B: jax.Array, name: str) -> jax.Array:
    """The keys of the place called `name`."""
    return at(keys_B, randomness.site(name))
