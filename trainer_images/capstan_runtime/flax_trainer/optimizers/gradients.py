"""What is done to gradients before an optimizer takes them. Layers that are stacked stay apart: a leaf's first `stack`
dimensions count parameters, the others are those of one parameter."""

import jax
import jax.numpy as jnp

from capstan_runtime.contract.training import AdaptiveClip

_NORM_EPSILON = 1e-6
"""As `torch.nn.utils.clip_grad_norm_` and DeepSpeed add it to the norm they divide by."""

Leaves = list[jax.Array]


def global_norm(gradients: Leaves) -> jax.Array:
    """L2 norm over all gradients, fp32 scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))


def clip(gradients: Leaves, norm: jax.Array, largest_norm: float | None) -> Leaves:
    """Gradients scaled down to `largest_norm` if their global norm exceeds it; None: as they are."""
    if largest_norm is None:
        return gradients
    factor = jnp.minimum(1.0, largest_norm / (norm + _NORM_EPSILON))
    return [gradient * factor for gradient in gradients]


def centralized(gradient: jax.Array, stack: int) -> jax.Array:
    """Without its mean over each output, the first dimension of a parameter; gains and biases as they are."""
    if gradient.ndim - stack < 2:
        return gradient
    return gradient - jnp.mean(gradient, axis=_within_units(gradient, stack), keepdims=True)


def clipped_by_unit(config: AdaptiveClip, weights: jax.Array, gradient: jax.Array, stack: int) -> jax.Array:
    """Each unit's gradient scaled down to `factor` of its weights' norm, if it is larger."""
    axes = _within_units(gradient, stack)
    largest = config.factor * jnp.maximum(_norms(weights, axes), config.epsilon)
    # The least normal number keeps a gradient of 0 from being divided by itself.
    return gradient * jnp.minimum(1.0, largest / jnp.maximum(_norms(gradient, axes), jnp.finfo(jnp.float32).tiny))


def _within_units(array: jax.Array, stack: int) -> tuple[int, ...]:
    """The dimensions of one unit: all but the first of a matrix or kernel, the only one of a gain or bias."""
    return tuple(range(stack + 1 if array.ndim - stack > 1 else stack, array.ndim))


def _norms(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(array), axis=axes, keepdims=True))
