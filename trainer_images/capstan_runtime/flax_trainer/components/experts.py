"""A feed-forward layer of experts, of which every token takes a few. Both frameworks follow one algorithm:

A router in fp32 gives every token a share of each expert. The token takes the `topK` of the largest shares, the first
of equal ones; what they put out is added with those shares as weights: as they are for one expert (Switch, 2101.03961),
divided by their sum for several (GShard, 2006.16668). In every sequence an expert takes `capacity` tokens: first those
whose first choice it is, in the order of the sequence, then those whose second choice it is, and so on. A choice that
finds its expert full adds nothing. Each sequence is on its own, so it does not matter how a batch is cut.

Axes: B batch, T time, D model width, F feed-forward width, E experts, C capacity, k choices, R = k x T choices of a
sequence, or of all where experts take what comes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import expert_capacity
from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.layers import Linear
from capstan_runtime.model_spec import feed_forward_width


class ExpertLinear(nnx.Module):
    """A linear layer of each expert, [experts, outputs, inputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        self.weight = nnx.Param(jnp.zeros((experts, outputs, inputs), jnp.float32))

    def __call__(self, x: jax.Array, sizes_E: jax.Array | None = None) -> jax.Array:
        """[B, E, C, inputs] to [B, E, C, outputs]; with `sizes_E` rows [R, inputs], of which so many in turn are of
        each expert, to [R, outputs]."""
        weight = self.weight[...].astype(x.dtype)
        if sizes_E is None:
            return jnp.einsum("beci,eoi->beco", x, weight)
        return jax.lax.ragged_dot(x, weight.swapaxes(1, 2), sizes_E)


class Experts(nnx.Module):
    """SwiGLU experts and their router."""

    def __init__(self, config: Transformer) -> None:
        assert config.experts is not None
        self.experts = config.experts
        self.width = feed_forward_width(config)
        self.router = Linear(config.dim, self.experts.count)
        self.gate_up = ExpertLinear(self.experts.count, config.dim, 2 * self.width)
        self.down = ExpertLinear(self.experts.count, self.width, config.dim)

    def __call__(self, x_BTD: jax.Array, here: Pass) -> jax.Array:
        return here.cut(self._mixed(here.cut(x_BTD, "samples"), here), "tokens")

    def _mixed(self, x_BTD: jax.Array, here: Pass) -> jax.Array:
        logits_BTE = self._route(x_BTD, here)
        shares_BTE = jax.nn.softmax(logits_BTE)
        weights_BTk, chosen_BTk = jax.lax.top_k(shares_BTE, self.experts.top_k)
        if self.experts.top_k > 1:
            weights_BTk = weights_BTk / jnp.sum(weights_BTk, axis=-1, keepdims=True)
        capacity = expert_capacity(self.experts, x_BTD.shape[1], is_training=here.is_training)
        weights_BTk = weights_BTk.astype(x_BTD.dtype)
        if here.is_apart:
            return self._take_all(x_BTD, weights_BTk, chosen_BTk, here)
        if capacity is None:
            self._say(logits_BTE, shares_BTE, chosen_BTk, jnp.zeros(()), here)
            return self._take_what_comes(x_BTD, weights_BTk, chosen_BTk, here)
        place_BkT = places(chosen_BTk, self.experts.count, capacity)
        is_dropped = place_BkT == self.experts.count * capacity
        self._say(logits_BTE, shares_BTE, chosen_BTk, jnp.mean(is_dropped.astype(jnp.float32)), here)
        return self._take_up_to(capacity, x_BTD, weights_BTk, place_BkT, here)

    def _route(self, x_BTD: jax.Array, here: Pass) -> jax.Array:
        """The router's logits, fp32 [B, T, E]."""
        x_BTD = x_BTD.astype(jnp.float32)
        keys_B = here.named("jitter").keys_B
        if self.experts.jitter is not None and keys_B is not None:
            noise = 2.0 * random.uniform(keys_B, *x_BTD.shape[1:]) - 1.0
            x_BTD = x_BTD * (1.0 + jnp.float32(self.experts.jitter) * noise)
        with jax.default_matmul_precision("float32"):
            return self.router(x_BTD)

    def _say(
        self, logits_BTE: jax.Array, shares_BTE: jax.Array, chosen_BTk: jax.Array, dropped: jax.Array, here: Pass
    ) -> None:
        """The two losses of the router, and what is measured of it."""
        if not here.is_training:
            return
        load_BE = jnp.mean(jax.nn.one_hot(chosen_BTk, self.experts.count), axis=(1, 2))
        balance = self.experts.count * jnp.mean(jnp.sum(load_BE * jnp.mean(shares_BTE, axis=1), axis=-1))
        here.add_loss("expert balance", self.experts.auxiliary_loss * balance)
        size = jnp.mean(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)))
        here.add_loss("router size", self.experts.z_loss * size)
        here.measure("expert_load", jnp.mean(load_BE, axis=0))
        here.measure("dropped_share", dropped)

    def _swiglu(self, x: jax.Array, here: Pass, sizes_E: jax.Array | None = None) -> jax.Array:
        gate, up = here.split(self.gate_up(x, sizes_E), (self.width, self.width), axis=-1)
        return self.down(jax.nn.silu(gate) * up, sizes_E)

    def _take_up_to(
        self, capacity: int, x_BTD: jax.Array, weights_BTk: jax.Array, place_BkT: jax.Array, here: Pass
    ) -> jax.Array:
        batch, length, dim = x_BTD.shape
        count, choices = self.experts.count, self.experts.top_k
        nothing = jnp.zeros((batch, 1, dim), x_BTD.dtype)
        # Which token is in each place; in most there may be none, which is the row of zeros behind the tokens.
        token_BP = jnp.full((batch, count * capacity), length)
        rows, tokens_R = jnp.arange(batch)[:, None], jnp.tile(jnp.arange(length), choices)
        token_BP = token_BP.at[rows, place_BkT.reshape(batch, -1)].set(tokens_R, mode="drop")
        taken = jnp.take_along_axis(jnp.concatenate([x_BTD, nothing], axis=1), token_BP[..., None], axis=1)
        made = self._made(taken.reshape(batch, count, capacity, dim), here).reshape(batch, -1, dim)
        places_BR1 = place_BkT.reshape(batch, -1, 1)
        made = jnp.take_along_axis(jnp.concatenate([made, nothing], axis=1), places_BR1, axis=1)
        made_BkTD = made.reshape(batch, choices, length, dim)
        return jnp.sum(made_BkTD * weights_BTk.swapaxes(1, 2)[..., None], axis=1)

    def _made(self, taken_BECD: jax.Array, here: Pass) -> jax.Array:
        """What all experts make of what they take. Where each device has some of them, and samples of its own, it sends
        every expert what its own samples have for it, and what experts made comes back (GShard, 2006.16668)."""
        axis = here.experts_over
        if axis is None:
            return self._swiglu(taken_BECD, here)
        taken_BECD = jax.lax.all_to_all(taken_BECD, axis, split_axis=1, concat_axis=0, tiled=True)
        return jax.lax.all_to_all(self._swiglu(taken_BECD, here), axis, split_axis=0, concat_axis=1, tiled=True)

    def _take_what_comes(
        self, x_BTD: jax.Array, weights_BTk: jax.Array, chosen_BTk: jax.Array, here: Pass
    ) -> jax.Array:
        batch, length, dim = x_BTD.shape
        choices = self.experts.top_k
        expert_R = chosen_BTk.reshape(-1)
        order_R = jnp.argsort(expert_R, stable=True)
        sizes_E = jnp.sum(jax.nn.one_hot(expert_R, self.experts.count, dtype=jnp.int32), axis=0)
        made = self._swiglu(x_BTD.reshape(-1, dim)[order_R // choices], here, sizes_E)
        made_BTkD = made[jnp.argsort(order_R)].reshape(batch, length, choices, dim)
        return jnp.sum(made_BTkD * weights_BTk[..., None], axis=2)

    def _take_all(self, x_BTD: jax.Array, weights_BTk: jax.Array, chosen_BTk: jax.Array, here: Pass) -> jax.Array:
        """Every expert computes every token, in a place that does not depend on the others."""
        batch, length, dim = x_BTD.shape
        count = self.experts.count
        weights_BTE = jnp.sum(jax.nn.one_hot(chosen_BTk, count, dtype=x_BTD.dtype) * weights_BTk[..., None], axis=2)
        made_BETD = self._swiglu(jnp.broadcast_to(x_BTD[:, None], (batch, count, length, dim)), here)
        return jnp.sum(made_BETD * weights_BTE.swapaxes(1, 2)[..., None], axis=1)


def places(chosen_BTk: jax.Array, experts: int, capacity: int) -> jax.Array:
    """Where each choice goes, int32 [B, k, T]: expert x capacity + its number there, or experts x capacity if the
    expert is full."""
    batch, length, choices = chosen_BTk.shape
    in_turn_BR = chosen_BTk.swapaxes(1, 2).reshape(batch, -1)
    one_hot_BRE = jax.nn.one_hot(in_turn_BR, experts, dtype=jnp.int32)
    number_BR = jnp.sum((jnp.cumsum(one_hot_BRE, axis=1) - 1) * one_hot_BRE, axis=-1)
    place_BR = jnp.where(number_BR < capacity, in_turn_BR * capacity + number_BR, experts * capacity)
    return place_BR.reshape(batch, choices, length)
