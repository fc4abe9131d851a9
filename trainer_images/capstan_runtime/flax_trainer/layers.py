"""Layers in the canonical layouts: linear [outputs, inputs], convolution [outputs, inputs, height, width].

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width, F feed-forward width,
S image height or width, C channels, I inputs, O outputs. Weights are fp32 and cast to the activations' type on use.
Shapes are all that the constructors decide: values come from `model_spec.initial_parameter` or a checkpoint.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def parameter(*shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        self.weight = parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias else None

    def __call__(self, x_BI: jax.Array) -> jax.Array:
        """[..., I] to [..., O]."""
        y_BO = jnp.einsum("...i,oi->...o", x_BI, self.weight[...].astype(x_BI.dtype))
        return y_BO if self.bias is None else y_BO + self.bias[...].astype(x_BI.dtype)


class Embedding(nnx.Module):
    def __init__(self, vocabulary: int, dim: int) -> None:
        self.weight = parameter(vocabulary, dim)

    def __call__(self, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, T] to [B, T, D] of type `dtype`."""
        return jnp.take(self.weight[...], tokens_BT, axis=0).astype(dtype)


class RmsNorm(nnx.Module):
    """Zhang and Sennrich, 2019 (1910.07467), computed in fp32."""

    def __init__(self, dim: int, epsilon: float) -> None:
        self.weight = parameter(dim)
        self.epsilon = epsilon

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale * self.weight[...]).astype(x_BTD.dtype)


class Kernel(nnx.Module):
    """The weight of a convolution without bias; zeros around the image keep its size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        self.weight = parameter(channels_out, channels_in, size, size)

    def __call__(self, x_BSSC: jax.Array, stride: int) -> jax.Array:
        margin = self.weight.shape[-1] // 2
        return jax.lax.conv_general_dilated(
            x_BSSC,
            self.weight[...].astype(x_BSSC.dtype),
            window_strides=(stride, stride),
            padding=((margin, margin), (margin, margin)),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )


def rotary_table(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every pair of coordinates at each position, fp32 [T, H / 2] each for positions [T],
    [B, T, H / 2] for [B, T] (Su et al., 2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns coordinate i together with i + H / 2 by its angle; computed in fp32."""
    cos, sin = (part[..., None, :] for part in table)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
