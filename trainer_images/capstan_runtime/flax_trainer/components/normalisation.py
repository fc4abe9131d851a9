"""The choices of `cnn.norm` and `mlp.norm`: modules from [B, …, C] to the same shape, computed in fp32.

Axes: B samples of one virtual rank's micro-step, C channels or units; whatever is between are positions. Shapes are all
that the constructors decide: values come from `model_spec.initial_parameter` or a checkpoint.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract import normalisation as configs
from capstan_runtime.flax_trainer import layers
from capstan_runtime.flax_trainer.forward_pass import Buffer, Pass


def build_norm(config: configs.AnyNorm, channels: int, *, has_positions: bool) -> Any:
    """The module of `config`; call it with an array and a `Pass`. `has_positions`: whether it is for images."""
    match config:
        case configs.GroupNorm():
            return GroupNorm(channels, config.groups, config.epsilon)
        case configs.InstanceNorm():
            return GroupNorm(channels, channels, config.epsilon)
        case configs.LayerNorm():
            return LayerNorm(channels, config.epsilon)
        case configs.RmsNorm():
            return RmsNorm(channels, config.epsilon)
        case configs.BatchNorm():
            return BatchNorm(channels, config)
        case configs.MixedNorm():
            return MixedNorm(channels, config, has_positions=has_positions)


class _Affine(nnx.Module):
    """What follows every normalisation that subtracts a mean: a gain and a bias for each channel."""

    def __init__(self, channels: int, epsilon: float) -> None:
        self.weight = layers.parameter(channels)
        self.bias = layers.parameter(channels)
        self.epsilon = epsilon

    def _scaled(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * self.weight[...] + self.bias[...]


class GroupNorm(_Affine):
    """Wu and He, 2018 (1803.08494): unlike batch statistics, it does not see how a batch is cut. With as many groups
    as channels it is instance normalisation (Ulyanov et al., 1607.08022)."""

    def __init__(self, channels: int, groups: int, epsilon: float) -> None:
        super().__init__(channels, epsilon)
        self.groups = groups

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:
        shape = x.shape
        grouped = x.astype(jnp.float32).reshape(*shape[:-1], self.groups, shape[-1] // self.groups)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean = jnp.mean(grouped, axis=axes, keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=axes, keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(shape)
        return (normal * self.weight[...] + self.bias[...]).astype(x.dtype)


class LayerNorm(_Affine):
    """Ba et al., 2016 (1607.06450), of each position over its channels, as in ConvNeXt (2201.03545)."""

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:
        exact = x.astype(jnp.float32)
        mean = jnp.mean(exact, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(exact - mean), axis=-1, keepdims=True)
        return self._scaled(exact, mean, variance).astype(x.dtype)


class RmsNorm(layers.RmsNorm):
    """Zhang and Sennrich, 2019 (1910.07467), of each position over its channels."""

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:  # type: ignore[override]
        return super().__call__(x)


class _Running(_Affine):
    """Keeps the statistics of the batch for inference."""

    def __init__(self, channels: int, config: configs.RunningStatistics) -> None:
        super().__init__(channels, config.epsilon)
        self.running_mean = Buffer(jnp.zeros(channels, jnp.float32))
        self.running_var = Buffer(jnp.zeros(channels, jnp.float32))
        self.momentum = config.momentum

    def _of_batch(self, mean_C: jax.Array, variance_C: jax.Array, count: int, here: Pass) -> tuple[jax.Array, ...]:
        """The statistics to use: while training those given, of `count` elements; else the running ones, which take the
        variance without bias, as torch's do."""
        if not here.is_training:
            return self.running_mean[...], self.running_var[...]
        for running, newest in (
            (self.running_mean, mean_C),
            (self.running_var, variance_C * (count / (count - 1))),
        ):
            here.propose(running, (1.0 - self.momentum) * running[...] + self.momentum * newest)
        return mean_C, variance_C


class BatchNorm(_Running):
    """Ioffe and Szegedy, 2015 (1502.03167), over the samples of one micro-step of one virtual rank."""

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:
        exact = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean_C = jnp.mean(exact, axis=axes)
        variance_C = jnp.mean(jnp.square(exact - mean_C), axis=axes)
        mean_C, variance_C = self._of_batch(mean_C, variance_C, x.size // x.shape[-1], here)
        return self._scaled(exact, mean_C, variance_C).astype(x.dtype)


class MixedNorm(_Running):
    """Switchable normalisation (Luo et al., 1806.10779): the means of instance, layer (all positions and channels of a
    sample) and batch are mixed in a proportion that is learnt, and their variances in another. Without positions an
    instance is a single number, so only the other two are mixed."""

    def __init__(self, channels: int, config: configs.MixedNorm, *, has_positions: bool) -> None:
        super().__init__(channels, config)
        self.mean_weight = layers.parameter(3 if has_positions else 2)
        self.var_weight = layers.parameter(3 if has_positions else 2)

    def __call__(self, x: jax.Array, here: Pass) -> jax.Array:
        exact = x.astype(jnp.float32)
        positions = tuple(range(1, x.ndim - 1))
        mean_BC = jnp.mean(exact, axis=positions, keepdims=True)
        variance_BC = jnp.mean(jnp.square(exact - mean_BC), axis=positions, keepdims=True)
        means, variances = ([mean_BC], [variance_BC]) if positions else ([], [])
        # Of a whole: the mean of its parts' variances, and the variance of their means.
        for axis in (-1, 0):
            mean = jnp.mean(mean_BC, axis=axis, keepdims=True)
            variance = jnp.mean(variance_BC + jnp.square(mean_BC - mean), axis=axis, keepdims=True)
            if axis == 0:
                mean, variance = self._of_batch(mean.ravel(), variance.ravel(), x.size // x.shape[-1], here)
            means.append(mean)
            variances.append(variance)
        mean = _mixed(self.mean_weight[...], means)
        return self._scaled(exact, mean, _mixed(self.var_weight[...], variances)).astype(x.dtype)


def _mixed(weight: jax.Array, parts: list[jax.Array]) -> jax.Array:
    shares = jax.nn.softmax(weight)
    return sum((share * part for share, part in zip(shares, parts, strict=True)), jnp.float32(0))
