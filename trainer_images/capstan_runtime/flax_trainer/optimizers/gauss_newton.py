"""The diagonal of the Gauss-Newton matrix, as Gauss-Newton-Bartlett estimates it (Liu et al., 2305.14342).

Axes: B samples, K classes.
"""

import jax
import jax.numpy as jnp

from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.objective import Model, cross_entropy


def sampled_objective(model: Model, batch: Batch[jax.Array], here: Pass) -> jax.Array:
    """The mean loss of targets that are drawn from what the model says, fp32 scalar: the square of its gradient, times
    the number of targets, estimates the diagonal."""
    assert batch.keys is not None
    logits = model(batch.inputs, here)
    return jnp.mean(cross_entropy(logits, sampled_targets(logits, batch.keys)))


def sampled_targets(logits: jax.Array, keys_B: jax.Array) -> jax.Array:
    """A class for each row of [B, …, K], drawn with the probabilities of its logits, int32 [B, …]: the largest logit
    after Gumbel noise."""
    chance = random.uniform(random.named(keys_B, "hessian"), *logits.shape[1:])
    return jnp.argmax(logits.astype(jnp.float32) - jnp.log(-jnp.log(chance)), axis=-1)
