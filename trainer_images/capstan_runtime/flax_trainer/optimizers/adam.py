"""Adam and what came of it, in the arithmetic and the order of operations of `torch.optim`.

Each takes the weights, their gradient and its state of one array, and gives the new weights and state. `at` are the
numbers of the step (`updates.update_numbers`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from capstan_runtime.contract.optimizers import AdaBelief, AdamW, Adan, DiffGrad, RAdam, Yogi

Numbers = Mapping[str, jax.Array]
Arrays = tuple[jax.Array, ...]


def adamw(config: AdamW, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> Arrays:
    m = _towards(m, g, config.beta1)
    v = v * config.beta2 + g * g * (1.0 - config.beta2)
    return w - at["rate"] * m / (jnp.sqrt(v) / at["root_correction"] + config.epsilon), m, v


def adabelief(config: AdaBelief, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, s: jax.Array) -> Arrays:
    m = _towards(m, g, config.beta1)
    s = s * config.beta2 + jnp.square(g - m) * (1.0 - config.beta2) + config.epsilon
    return w - at["rate"] * m / (jnp.sqrt(s) / at["root_correction"] + config.epsilon), m, s


def radam(config: RAdam, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> Arrays:
    m = _towards(m, g, config.beta1)
    v = v * config.beta2 + g * g * (1.0 - config.beta2)
    root = (jnp.sqrt(v) + config.epsilon) / at["root_correction"]
    return w - at["rate"] * m / jnp.where(at["is_rectified"] > 0, root, 1.0), m, v


def diffgrad(
    config: DiffGrad, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array, previous: jax.Array
) -> Arrays:
    m = _towards(m, g, config.beta1)
    v = v * config.beta2 + g * g * (1.0 - config.beta2)
    friction = 1.0 / (1.0 + jnp.exp(-jnp.abs(previous - g)))
    return w - at["rate"] * friction * m / (jnp.sqrt(v) / at["root_correction"] + config.epsilon), m, v, g


def yogi(config: Yogi, at: Numbers, w: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array) -> Arrays:
    m = _towards(m, g, config.beta1)
    square = g * g
    v = v - jnp.sign(v - square) * square * (1.0 - config.beta2)
    return w - at["rate"] * m / (jnp.sqrt(v) / at["root_correction"] + config.epsilon), m, v


def adan(
    config: Adan,
    at: Numbers,
    w: jax.Array,
    g: jax.Array,
    m: jax.Array,
    d: jax.Array,
    n: jax.Array,
    previous: jax.Array,
) -> Arrays:
    difference = (g - previous) * at["has_previous"]
    m = _towards(m, g, config.beta1)
    d = _towards(d, difference, config.beta2)
    n = n * config.beta3 + jnp.square(g + config.beta2 * difference) * (1.0 - config.beta3)
    direction = m / at["first_correction"] + config.beta2 * d / at["difference_correction"]
    return w - at["rate"] * direction / (jnp.sqrt(n) / at["root_correction"] + config.epsilon), m, d, n, g


def _towards(average: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    return average + (new - average) * (1.0 - decay)
