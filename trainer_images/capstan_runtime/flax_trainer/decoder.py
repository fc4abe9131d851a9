"""The decoder as NNX modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Transformer
from capstan_runtime.flax_trainer.components import reversible
from capstan_runtime.flax_trainer.components.branches import LayerScale, drop_branch, drop_elements, drop_units
from capstan_runtime.flax_trainer.components.experts import Experts
from capstan_runtime.flax_trainer.components.positions import Positions, positions_of, some_positions
from capstan_runtime.flax_trainer.components.reversible import Branch, Streams, through_reversible_layers
from capstan_runtime.flax_trainer.forward_pass import Pass, through_layers
from capstan_runtime.flax_trainer.layers import Embedding, Linear, RmsNorm, rotate
from capstan_runtime.model_spec import feed_forward_width, kv_heads

Attend = Callable[[jax.Array, jax.Array, jax.Array, Positions], jax.Array]
"""From q_BTNH, k_BTKH, v_BTKH and where they stand to mixed_BTNH: which positions see which. Whoever keeps keys and
values brings its own."""

State = jax.Array | Streams
"""What layers hand on: x_BTD, or where they are reversible two of it."""


def causal_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, where: Positions) -> jax.Array:
    """Every position sees itself and those before it."""
    dtype = q_BTNH.dtype
    if dtype == jnp.float16 and jax.default_backend() == "cpu":  # whose XLA has no products of fp16 summed in fp32
        q_BTNH, k_BTKH, v_BTKH = (each.astype(jnp.float32) for each in (q_BTNH, k_BTKH, v_BTKH))
    implementation = _attention_implementation(q_BTNH, has_bias=where.bias is not None)
    mixed_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, bias=where.bias, is_causal=True, implementation=implementation
    )
    return mixed_BTNH.astype(dtype)


def _attention_implementation(q_BTNH: jax.Array, *, has_bias: bool) -> Literal["cudnn", "xla"]:
    """The flash kernel where there is one: cuDNN, 16-bit, head width a multiple of 8 up to 128 on every GPU since
    Ampere; with a bias only for an even number of tokens. JAX itself never chooses it, and it raises elsewhere."""
    _, length, _, head_dim = q_BTNH.shape
    fits = q_BTNH.dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= 128
    fits = fits and not (has_bias and length % 2)
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al., 2305.13245)."""

    def __init__(self, config: Transformer) -> None:
        self.heads, self.kv_heads = config.heads, kv_heads(config)
        self.head_dim = config.dim // config.heads
        self.qkv = Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = Linear(config.dim, config.dim)

    def __call__(self, x_BTD: jax.Array, where: Positions, here: Pass, attend: Attend = causal_attention) -> jax.Array:
        batch, length, _ = x_BTD.shape
        heads = here.cut(self.qkv(x_BTD), "units").reshape(batch, length, -1, self.head_dim)
        q_BTNH, k_BTKH, v_BTKH = here.split(heads, (self.heads, self.kv_heads, self.kv_heads), axis=2)
        if where.rotary is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, where.rotary), rotate(k_BTKH, where.rotary)
        mixed_BTNH = here.by_head(attend)(q_BTNH, k_BTKH, v_BTKH, where)
        return here.cut(self.out(here.cut(mixed_BTNH.reshape(batch, length, -1), "units")), "tokens")


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer, 2002.05202)."""

    def __init__(self, config: Transformer) -> None:
        self.width = feed_forward_width(config)
        self.gate_up = Linear(config.dim, 2 * self.width)
        self.down = Linear(self.width, config.dim)
        self.adaptive_dropout = config.adaptive_dropout

    def __call__(self, x_BTD: jax.Array, here: Pass) -> jax.Array:
        gate, up = here.split(here.cut(self.gate_up(x_BTD), "units"), (self.width, self.width), axis=-1)
        units = jax.nn.silu(gate) * up
        if self.adaptive_dropout is not None:
            units = drop_units(self.adaptive_dropout, units, gate, here)
        return here.cut(self.down(units), "tokens")


class DecoderLayer(nnx.Module):
    """Two residual branches, each of which sees the normalised sum of all before it."""

    def __init__(self, config: Transformer) -> None:
        self.config = config
        self.attention_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.attention_scale = None if config.layer_scale is None else LayerScale(config.dim)
        self.feed_forward_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config) if config.experts is None else Experts(config)
        self.feed_forward_scale = None if config.layer_scale is None else LayerScale(config.dim)

    def __call__(self, state: State, where: Positions, here: Pass, attend: Attend = causal_attention) -> State:
        if isinstance(state, tuple):
            first_BTD, second_BTD = state
            first_BTD = first_BTD + self.attention_branch(second_BTD.astype(here.dtype), where, here, attend)
            return first_BTD, second_BTD + self.feed_forward_branch(first_BTD.astype(here.dtype), where, here)
        x_BTD = state + self.attention_branch(state, where, here, attend)
        return x_BTD + self.feed_forward_branch(x_BTD, where, here)

    def branches(self, where: Positions, here: Pass) -> tuple[Branch, Branch]:
        """What each of the two adds to what it is given."""
        return (
            lambda x_BTD: self.attention_branch(x_BTD, where, here, causal_attention),
            lambda x_BTD: self.feed_forward_branch(x_BTD, where, here),
        )

    def attention_branch(self, x_BTD: jax.Array, where: Positions, here: Pass, attend: Attend) -> jax.Array:
        """What attention adds to `x_BTD`."""
        delta_BTD = self.attention(self.attention_norm(where.take(x_BTD)), where, here, attend)
        return self._added(delta_BTD, self.attention_scale, x_BTD, where, here.named("attention"))

    def feed_forward_branch(self, x_BTD: jax.Array, where: Positions, here: Pass) -> jax.Array:
        """What the feed-forward layer adds to `x_BTD`."""
        here = here.named("feed_forward")
        delta_BTD = self.feed_forward(self.feed_forward_norm(where.take(x_BTD)), here)
        return self._added(delta_BTD, self.feed_forward_scale, x_BTD, where, here)

    def _added(
        self, delta_BTD: jax.Array, scale: LayerScale | None, x_BTD: jax.Array, where: Positions, here: Pass
    ) -> jax.Array:
        if scale is not None:
            delta_BTD = scale(delta_BTD)
        return where.spread(drop_branch(self.config, delta_BTD, here), x_BTD.shape[1])


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
        length = inputs.shape[1]
        everything = self.positions(jnp.arange(length), here.dtype)
        structure, stacked = nnx.split(self.layers)
        x_BTD = here.cut(here.perturbed(self.embed(inputs, here.dtype)), "tokens")
        x_BTD = drop_elements(self.config, x_BTD, here.named("embed"))
        state = self.enter(x_BTD)
        for numbers, takes_all in self._stretches(here):

            def standing(inside: Pass, whole: Positions, takes_all: bool = takes_all) -> Positions:
                return whole if takes_all else some_positions(self.config, length, inside)

            def layer(
                x_BTD: jax.Array, parameters: Any, inside: Pass, whole: Positions, standing: Any = standing
            ) -> Any:
                return nnx.merge(structure, parameters)(x_BTD, standing(inside, whole), inside)

            def branches(parameters: Any, inside: Pass, whole: Positions, standing: Any = standing) -> Any:
                return nnx.merge(structure, parameters).branches(standing(inside, whole), inside)

            if isinstance(state, tuple):
                state = through_reversible_layers(branches, state, stacked, numbers, here, everything)
            else:
                state = through_layers(layer, state, stacked, numbers, here, everything)
        return here.cut(self.logits(self.leave(state, here.dtype)), "units")

    def _stretches(self, here: Pass) -> list[tuple[range, bool]]:
        """Layers that run alike, and whether they take all tokens."""
        layers = self.config.layers
        if self.config.token_dropout is None or not here.is_training:
            return [(range(layers), True)]
        return [(range(1), True), (range(1, layers - 1), False), (range(layers - 1, layers), True)]

    def positions(self, numbers_T: jax.Array, dtype: jnp.dtype) -> Positions:
        return positions_of(self.config, numbers_T, dtype)

    def enter(self, x_BTD: jax.Array) -> State:
        """The embeddings as the first layer takes them."""
        return x_BTD if self.config.reversible is None else reversible.enter(x_BTD)

    def leave(self, state: State, dtype: jnp.dtype) -> jax.Array:
        """[B, T, D] of what the last layer put out."""
        return reversible.leave(state, dtype) if isinstance(state, tuple) else state

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, vocabulary] of what comes after the last layer."""
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return jnp.einsum("btd,vd->btv", x_BTD, self.embed.weight[...].astype(x_BTD.dtype))
