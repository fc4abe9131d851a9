"""What a sample's condition does to its features. Axes: B batch, K elements of the condition, C channels.

Features are [B, …, C]; all is computed in fp32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import Linear


class FromCondition(nnx.Module):
    """Vectors for each sample, made of its condition by one layer."""

    def __init__(self, condition: int, *widths: int) -> None:
        self.made = Linear(condition, sum(widths), bias=True)
        self.ends = [sum(widths[: number + 1]) for number in range(len(widths) - 1)]

    def __call__(self, here: Pass, positions: int, *, activated: bool = False) -> list[jax.Array]:
        """Each [B, 1, …, C], to be stretched over so many axes of positions. `activated`: by SiLU first, as in DiT."""
        assert here.conditions is not None
        condition_BK = here.conditions.astype(jnp.float32)
        made = self.made(jax.nn.silu(condition_BK) if activated else condition_BK)
        shape = (len(made), *[1] * positions, -1)
        return [part.reshape(shape) for part in jnp.split(made, self.ends, axis=-1)]


class Film(nnx.Module):
    """Perez et al., 2017 (1709.07871): the factor is 1 + what is made of the condition."""

    def __init__(self, condition: int, channels: int) -> None:
        self.modulation = FromCondition(condition, channels, channels)

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:
        scale, shift = self.modulation(here, x.ndim - 2)
        return (x.astype(jnp.float32) * (1.0 + scale) + shift).astype(x.dtype)


class AdaIn(nnx.Module):
    """Huang and Belongie, 2017 (1703.06868), the target's statistics made of the condition."""

    def __init__(self, condition: int, channels: int, epsilon: float) -> None:
        self.modulation = FromCondition(condition, channels, channels)
        self.epsilon = epsilon

    def __call__(self, x_BSSC: jax.Array, here: Pass) -> jax.Array:
        scale, shift = self.modulation(here, 2)
        normal = _normal(x_BSSC, (1, 2), self.epsilon)
        return (normal * (1.0 + scale) + shift).astype(x_BSSC.dtype)


class AdaLnZero(nnx.Module):
    """Peebles and Xie, 2022 (2212.09748)."""

    def __init__(self, condition: int, channels_in: int, channels: int, epsilon: float) -> None:
        self.modulation = FromCondition(condition, channels_in, channels_in, channels)
        self.epsilon = epsilon

    def __call__(self, x_BSSC: jax.Array, here: Pass) -> tuple[jax.Array, jax.Array]:
        """The block's input, and the gate of what it adds, [B, 1, 1, C]."""
        shift, scale, gate = self.modulation(here, 2, activated=True)
        normal = _normal(x_BSSC, (3,), self.epsilon)
        return (normal * (1.0 + scale) + shift).astype(x_BSSC.dtype), gate.astype(x_BSSC.dtype)


def _normal(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    exact = x.astype(jnp.float32)
    mean = jnp.mean(exact, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(exact - mean), axis=axes, keepdims=True)
    return (exact - mean) * jax.lax.rsqrt(variance + epsilon)
