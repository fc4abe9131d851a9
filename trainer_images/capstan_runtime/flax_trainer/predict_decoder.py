"""Sequences of tokens, continued one by one: keys and values of every slot stay on the device.

Axes: L layers, S slots, C context, P prompt with its padding, B batch, T time, D model width, N query heads, K key and
value heads, H head width.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capstan_runtime.contract.models import Transformer
from capstan_runtime.contract.signature import Signature
from capstan_runtime.flax_trainer.components.positions import Positions, alibi_bias
from capstan_runtime.flax_trainer.decoder import State, TransformerModel, causal_attention
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.optimizers.gradients import Leaves
from capstan_runtime.flax_trainer.world import translated_errors
from capstan_runtime.model_spec import kv_heads
from capstan_runtime.predicting import Logits, Sequences, Tokens, powers_of_two

Cache = tuple[jax.Array, jax.Array]
"""Keys and values, [L, S, C, K, H] each. Donated to every program that changes it, and changed in place."""

_FLOAT = jnp.dtype(jnp.float32)
_SHORTEST_PADDED = 16
"""Tokens; shorter prompts are padded to this. Fewer programs, and nothing that can be measured is lost."""


class FlaxDecoder:
    """A `serving.predictor.Decoder`. There is one program for each padded length of a prompt, and one that adds a token
    in every slot at once: what is computed for a slot has the same shape whoever else is there."""

    def __init__(self, signature: Signature, structure: Structure, parameters: Leaves, slots: int) -> None:
        config = signature.model.value
        assert isinstance(config, Transformer)
        self.signature = signature
        self.slots = slots
        (self.context,) = signature.input_shape
        self._structure = structure
        self._parameters = parameters
        self._sequences = Sequences(slots, self.context, signature.outputs)
        self._cache_shape = (config.layers, slots, self.context, kv_heads(config), config.dim // config.heads)
        self._cache = self._empty_cache()
        self._prompt_lengths = powers_of_two(_SHORTEST_PADDED, self.context)
        self._prefills: dict[int, Any] = {}
        self._step: Any = None

    def warm(self) -> None:
        self._sequences.forget_all()
        with translated_errors():
            step = jax.jit(self._add_tokens, donate_argnums=1)
            self._step = step.lower(self._parameters, self._cache, np.zeros((2, self.slots), np.int32)).compile()
            prefill = jax.jit(self._take_prompt, donate_argnums=1)
            for length in self._prompt_lengths:
                shapes = (np.zeros(length, np.int32), np.zeros(2, np.int32))
                self._prefills[length] = prefill.lower(self._parameters, self._cache, *shapes).compile()
                self._run(self._prefills[length], *shapes)
            self._run(self._step, np.zeros((2, self.slots), np.int32))

    def prefill(self, slot: int, prompt: Tokens) -> Logits:
        self._require_warm()
        self._sequences.require_fits(slot, prompt)
        length = next(length for length in self._prompt_lengths if length >= len(prompt))
        padded = np.zeros(length, np.int32)
        padded[: len(prompt)] = prompt
        logits = self._run(self._prefills[length], padded, np.array([slot, len(prompt) - 1], np.int32))
        self._sequences.fill(slot, len(prompt))
        return logits

    def step(self, slots: Sequence[int], tokens: Tokens) -> Logits:
        self._require_warm()
        self._sequences.require_extensible(slots, tokens)
        everywhere = self._run(self._step, np.stack(self._sequences.in_every_slot(slots, tokens)))
        self._sequences.extend(slots)
        return everywhere[list(slots)]

    def release(self, slot: int) -> None:
        self._sequences.release(slot)

    def _require_warm(self) -> None:
        if self._step is None:
            raise ValueError("nothing is compiled; call warm first")

    def _run(self, program: Any, *arguments: np.ndarray) -> Logits:
        """One of the programs over the cache, which is gone when it fails, and with it every sequence."""
        try:
            logits, self._cache = program(self._parameters, self._cache, *arguments)
            return np.asarray(logits)
        except BaseException:
            self._sequences.forget_all()
            self._cache = self._empty_cache()
            raise

    def _empty_cache(self) -> Cache:
        return jnp.zeros(self._cache_shape, _FLOAT), jnp.zeros(self._cache_shape, _FLOAT)

    def _take_prompt(
        self, parameters: Leaves, cache: Cache, tokens_P: jax.Array, slot_and_last: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Logits [vocabulary] after the prompt's last token. What its padding leaves in the cache lies behind it, where
        no position looks before its own token has come there."""
        model = self._assemble(parameters)
        slot, last = slot_and_last
        where = model.positions(jnp.arange(len(tokens_P)), _FLOAT)
        structure, stacked = nnx.split(model.layers)

        def layer(state: State, parameters: Any) -> tuple[State, Cache]:
            seen: list[Cache] = []

            def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, where: Positions) -> jax.Array:
                seen.append((k_BTKH, v_BTKH))
                return causal_attention(q_BTNH, k_BTKH, v_BTKH, where)

            return nnx.merge(structure, parameters)(state, where, Pass(_FLOAT), attend), seen[0]

        state, seen = jax.lax.scan(layer, model.enter(model.embed(tokens_P[None], _FLOAT)), stacked)
        x_BTD = model.leave(state, _FLOAT)
        keys, values = (
            jax.lax.dynamic_update_slice(whole, part, (0, slot, 0, 0, 0))
            for whole, part in zip(cache, seen, strict=True)
        )
        return model.logits(jax.lax.dynamic_slice_in_dim(x_BTD, last, 1, axis=1))[0, 0], (keys, values)

    def _add_tokens(self, parameters: Leaves, cache: Cache, tokens_and_positions: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits [S, vocabulary] after one more token in every slot, each at its own position. The slots stand in the
        place of time: all that is computed between attentions is the same for every token."""
        model = self._assemble(parameters)
        tokens_S, positions_S = tokens_and_positions
        where = model.positions(positions_S, _FLOAT)
        bias_SN1C = None
        if where.bias is not None:  # of the slots' own caches, instead of that between slots
            bias_SN1C = alibi_bias(model.config.heads, positions_S[:, None], jnp.arange(self.context)[None])
        structure, stacked = nnx.split(model.layers)
        every_slot = jnp.arange(self.slots)

        def layer(carried: tuple[State, Cache], numbered: tuple[jax.Array, Any]) -> tuple[Any, None]:
            state, (keys, values) = carried
            number, parameters = numbered
            kept: list[Cache] = []

            def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, where: Positions) -> jax.Array:
                kept.append(
                    (
                        keys.at[number, every_slot, positions_S].set(k_BTKH[0]),
                        values.at[number, every_slot, positions_S].set(v_BTKH[0]),
                    )
                )
                k_SCKH, v_SCKH = (jax.lax.dynamic_index_in_dim(each, number, keepdims=False) for each in kept[0])
                mixed_SBNH = jax.nn.dot_product_attention(
                    q_BTNH.swapaxes(0, 1),
                    k_SCKH,
                    v_SCKH,
                    bias=bias_SN1C,
                    key_value_seq_lengths=positions_S + 1,
                    implementation="xla",
                )
                return mixed_SBNH.swapaxes(0, 1)

            return (nnx.merge(structure, parameters)(state, where, Pass(_FLOAT, is_apart=True), attend), kept[0]), None

        numbered = (jnp.arange(self._cache_shape[0]), stacked)
        begun = model.enter(model.embed(tokens_S[None], _FLOAT))
        (state, cache), _ = jax.lax.scan(layer, (begun, cache), numbered)
        return model.logits(model.leave(state, _FLOAT))[0], cache

    def _assemble(self, parameters: Leaves) -> TransformerModel:
        model = self._structure.assemble(parameters)
        assert isinstance(model, TransformerModel)
        return model
