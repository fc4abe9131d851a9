"""Optimizers of one moment. As in `adam.py`: of one array, `at` are the numbers of the step."""

import jax
import jax.numpy as jnp

from capstan_runtime.contract.optimizers import Lion, NovoGrad, Sgd, Sophia
from capstan_runtime.flax_trainer.optimizers.adam import Arrays, Numbers


def sgd(config: Sgd, at: Numbers, w: jax.Array, g: jax.Array, *velocities: jax.Array) -> Arrays:
    """`velocities`: one, or none where there is no momentum."""
    if not velocities:
        return (w - at["rate"] * g,)
    velocity = config.momentum * velocities[0] + g
    direction = g + config.momentum * velocity if config.nesterov else velocity
    return w - at["rate"] * direction, velocity


def lion(config: Lion, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array) -> Arrays:
    direction = jnp.sign(m * config.beta1 + g * (1.0 - config.beta1))
    return w - at["rate"] * direction, m * config.beta2 + g * (1.0 - config.beta2)


def sophia(config: Sophia, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, h: jax.Array) -> Arrays:
    """`h`: with what this step has found of the Hessian's diagonal in it."""
    m = m + (g - m) * (1.0 - config.beta1)
    direction = jnp.clip(m / jnp.maximum(config.gamma * h, config.epsilon), -1.0, 1.0)
    return w - at["rate"] * direction, m, h


def novograd(config: NovoGrad, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> Arrays:
    """`v`: of the shape of `g` without the dimensions of a parameter: [] or, where layers are stacked, [layers].

    It starts as the first squared norm that is not 0. The paper starts with that of the first step. Of a layer that
    passes nothing on yet it is 0, and an average from there would make the first real step 1 / sqrt(1 - beta2) times
    too long.
    """
    norm_sq = jnp.sum(jnp.square(g), axis=tuple(range(v.ndim, g.ndim)))
    v = jnp.where(v == 0, norm_sq, v * config.beta2 + norm_sq * (1.0 - config.beta2))
    divisor = (jnp.sqrt(v) + config.epsilon).reshape(*v.shape, *[1] * (g.ndim - v.ndim))
    m = config.beta1 * m + g / divisor
    return w - at["rate"] * m, m, v
