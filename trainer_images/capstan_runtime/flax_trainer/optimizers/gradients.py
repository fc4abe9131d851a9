"""What is done to gradients before an optimizer takes them. Layers that are stacked in one leaf stay apart."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from capstan_runtime.contract.training import AdaptiveClip
from capstan_runtime.flax_trainer.leaves import Leaf

_NORM_EPSILON = 1e-6
"""As `torch.nn.utils.clip_grad_norm_` and DeepSpeed add it to the norm they divide by."""

Leaves = list[jax.Array]


def global_norm(gradients: Leaves, axes: Sequence[str | None] = ()) -> jax.Array:
    """L2 norm over all gradients, fp32 scalar; over the pieces of all devices along the axes that cut some of them."""
    totals: dict[str | None, jax.Array] = {}
    for gradient, axis in zip(gradients, axes or [None] * len(gradients), strict=True):
        total = jnp.sum(jnp.square(gradient))
        totals[axis] = totals[axis] + total if axis in totals else total
    return jnp.sqrt(sum(total if axis is None else jax.lax.psum(total, axis) for axis, total in totals.items()))


def clip(gradients: Leaves, norm: jax.Array, largest_norm: float | None) -> Leaves:
    """Gradients scaled down to `largest_norm` if their global norm exceeds it; None: as they are."""
    if largest_norm is None:
        return gradients
    factor = jnp.minimum(1.0, largest_norm / (norm + _NORM_EPSILON))
    return [gradient * factor for gradient in gradients]


def centralized(gradient: jax.Array, leaf: Leaf) -> jax.Array:
    """Without its mean over each unit; gains and biases as they are."""
    if len(leaf.parameters[0].shape) < 2:
        return gradient
    return gradient - jnp.mean(gradient, axis=_within_units(leaf), keepdims=True)


def clipped_by_unit(config: AdaptiveClip, weights: jax.Array, gradient: jax.Array, leaf: Leaf) -> jax.Array:
    """Each unit's gradient scaled down to `factor` of its weights' norm, if it is larger."""
    dims = _within_units(leaf)
    largest = config.factor * jnp.maximum(_norms(weights, dims), config.epsilon)
    # The least normal number keeps a gradient of 0 from being divided by itself.
    return gradient * jnp.minimum(1.0, largest / jnp.maximum(_norms(gradient, dims), jnp.finfo(jnp.float32).tiny))


def _within_units(leaf: Leaf) -> tuple[int, ...]:
    return tuple(leaf.stack + dim for dim in leaf.parameters[0].dims_within_units)


def _norms(array: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(array), axis=dims, keepdims=True))
