"""What a training step makes small, of one micro-step. Axes: B samples, T time, K classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer.forward_pass import Pass

Model = Callable[[jax.Array, Pass], jax.Array]


def objective(model: Model, batch: Batch[jax.Array], here: Pass) -> jax.Array:
    """The mean over the samples, or over their tokens, and what modules add to it; fp32 scalar."""
    loss = jnp.mean(cross_entropy(model(batch.inputs, here), batch.targets))
    return sum(here.losses.values(), loss)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target, in fp32: [..., K] and [...] to [...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
