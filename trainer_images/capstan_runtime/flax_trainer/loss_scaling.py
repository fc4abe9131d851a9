"""`capstan_runtime.loss_scaling` inside a compiled step: the state stays on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from capstan_runtime.contract.training import LossScale
from capstan_runtime.loss_scaling import LEAST_SCALE, ScaleState


def as_array(state: ScaleState) -> np.ndarray:
    """[scale, finite steps, skipped steps], fp32 [3]: it counts exactly to 16 million."""
    return np.asarray([state.scale, state.finite_steps, state.skipped_steps], np.float32)


def as_state(array: np.ndarray) -> ScaleState:
    scale, finite_steps, skipped_steps = array.tolist()
    return ScaleState(scale, int(finite_steps), int(skipped_steps))


def next_state(config: LossScale, state: jax.Array, is_finite: jax.Array) -> jax.Array:
    """As `ScaleState.after`."""
    scale, finite_steps, skipped_steps = state
    grown = scale * config.growth_factor
    grows = is_finite & (finite_steps + 1 >= config.growth_interval)
    larger = jnp.where(grows & jnp.isfinite(grown), grown, scale)
    smaller = jnp.maximum(scale * config.backoff_factor, LEAST_SCALE)
    return jnp.stack(
        [
            jnp.where(is_finite, larger, smaller),
            jnp.where(is_finite & ~grows, finite_steps + 1, 0.0),
            skipped_steps + jnp.where(is_finite, 0.0, 1.0),
        ]
    )
