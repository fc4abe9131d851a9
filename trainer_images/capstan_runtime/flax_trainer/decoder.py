"""The decoder as NNX modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Transformer
from capstan_runtime.flax_trainer.forward_pass import Pass, through_layers
from capstan_runtime.flax_trainer.layers import Embedding, Linear, RmsNorm, rotary_table, rotate
from capstan_runtime.model_spec import feed_forward_width, kv_heads

RotaryTable = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""From q_BTNH, k_BTKH and v_BTKH to mixed_BTNH: which positions see which. Whoever keeps keys and values brings its
own."""


def causal_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    """Every position sees itself and those before it."""
    implementation = _attention_implementation(q_BTNH.dtype, q_BTNH.shape[-1])
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation=implementation)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al., 2305.13245) with rotary positions."""

    def __init__(self, config: Transformer) -> None:
        self.heads, self.kv_heads = config.heads, kv_heads(config)
        self.head_dim = config.dim // config.heads
        self.qkv = Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = Linear(config.dim, config.dim)

    def __call__(self, x_BTD: jax.Array, table: RotaryTable, attend: Attend = causal_attention) -> jax.Array:
        batch, length, _ = x_BTD.shape
        heads = self.qkv(x_BTD).reshape(batch, length, -1, self.head_dim)
        q_BTNH, k_BTKH, v_BTKH = jnp.split(heads, [self.heads, self.heads + self.kv_heads], axis=2)
        mixed_BTNH = attend(rotate(q_BTNH, table), rotate(k_BTKH, table), v_BTKH)
        return self.out(mixed_BTNH.reshape(batch, length, -1))


def _attention_implementation(dtype: jnp.dtype, head_dim: int) -> Literal["cudnn", "xla"]:
    """The flash kernel where there is one: cuDNN, 16-bit, head width a multiple of 8 up to 128 on every GPU since
    Ampere. JAX itself never chooses it, and it raises elsewhere."""
    fits = dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer, 2002.05202)."""

    def __init__(self, config: Transformer) -> None:
        width = feed_forward_width(config)
        self.gate_up = Linear(config.dim, 2 * width)
        self.down = Linear(width, config.dim)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.gate_up(x_BTD), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)


class DecoderLayer(nnx.Module):
    def __init__(self, config: Transformer) -> None:
        self.attention_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def __call__(
        self, x_BTD: jax.Array, table: RotaryTable, here: Pass, attend: Attend = causal_attention
    ) -> jax.Array:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), table, attend)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class TransformerModel(nnx.Module):
    """`layers` is one layer whose parameters have a leading axis over the layers, so that one layer is compiled and
    run in a loop: compile time and the number of arrays do not grow with the depth."""

    def __init__(self, config: Transformer, vocabulary: int) -> None:
        self.config = config
        self.embed = Embedding(vocabulary, config.dim)
        self.layers = nnx.vmap(lambda _: DecoderLayer(config))(jnp.arange(config.layers))
        self.norm = RmsNorm(config.dim, config.norm_epsilon)
        self.head = None if config.tied else Linear(config.dim, vocabulary)

    def __call__(self, inputs: jax.Array, here: Pass) -> jax.Array:
        table = self.rotary(jnp.arange(inputs.shape[1]))
        structure, stacked = nnx.split(self.layers)

        def layer(x_BTD: jax.Array, parameters: Any, inside: Pass) -> jax.Array:
            return nnx.merge(structure, parameters)(x_BTD, table, inside)

        x_BTD = here.perturbed(self.embed(inputs, here.dtype))
        return self.logits(through_layers(layer, x_BTD, stacked, self.config.layers, here))

    def rotary(self, positions_T: jax.Array) -> RotaryTable:
        return rotary_table(positions_T, self.config.dim // self.config.heads, self.config.rope_theta)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, vocabulary] of what the last layer put out."""
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return jnp.einsum("btd,vd->btv", x_BTD, self.embed.weight[...].astype(x_BTD.dtype))
