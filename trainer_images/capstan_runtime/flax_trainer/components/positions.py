"""Where the tokens of a sequence stand, and what attention is told of it.

Axes: B batch, T time, S time of keys, D model width, N query heads, H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import alibi_slopes, taken_tokens
from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import rotary_table

RotaryTable = tuple[jax.Array, jax.Array]


class Positions(NamedTuple):
    rotary: RotaryTable | None
    """None: queries and keys are not turned."""
    bias: jax.Array | None
    """Of the scores, [1 or B, N, T, T] of the type that is computed in. None: there is none."""
    taken: jax.Array | None = None
    """Which tokens of its input a layer takes, [B, T] ascending. None: all of them."""

    def take(self, x_BTD: jax.Array) -> jax.Array:
        """The tokens that the layer takes."""
        return x_BTD if self.taken is None else jnp.take_along_axis(x_BTD, self.taken[..., None], axis=1)

    def spread(self, delta_BTD: jax.Array, length: int) -> jax.Array:
        """What is added to the tokens that were taken as what is added to all `length`: nothing to the others."""
        if self.taken is None:
            return delta_BTD
        batch, _, dim = delta_BTD.shape
        zeros = jnp.zeros((batch, length, dim), delta_BTD.dtype)
        return zeros.at[jnp.arange(batch)[:, None], self.taken].set(delta_BTD, unique_indices=True)


def positions_of(
    config: Transformer, numbers: jax.Array, dtype: jnp.dtype, taken: jax.Array | None = None
) -> Positions:
    """Of tokens that stand at `numbers`, [T] or [B, T]."""
    if config.alibi is None:
        rotary = rotary_table(numbers, config.dim // config.heads, config.rope_theta)
        return Positions(rotary, None, taken)
    bias = alibi_bias(config.heads, numbers, numbers).astype(dtype)
    return Positions(None, bias if bias.ndim == 4 else bias[None], taken)


def alibi_bias(heads: int, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Minus the distance times each head's slope, fp32 [..., N, T, S] for positions [..., T] and [..., S]; keys after
    the query must be masked."""
    distances = (queries[..., :, None] - keys[..., None, :]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(heads))[:, None, None] * distances[..., None, :, :]


def some_positions(config: Transformer, length: int, here: Pass) -> Positions:
    """Of the tokens that the layer `here` takes out of `length`, other ones of each sequence."""
    assert config.token_dropout is not None
    keys_B = here.named("token_dropout").keys_B
    assert keys_B is not None
    order = jnp.argsort(random.uniform(keys_B, length), axis=-1, stable=True)
    taken = jnp.sort(order[:, : taken_tokens(config.token_dropout.keep, length)], axis=-1)
    return positions_of(config, taken, here.dtype, taken)
