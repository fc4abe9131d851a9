"""Sequences of tokens, continued one by one: keys and values of every slot stay on the device.

Axes: S slots, C context, B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from capstan_runtime.contract.models import Transformer
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer.components.positions import Positions, alibi_bias
from capstan_runtime.deepspeed_trainer.decoder import Attend, TransformerModel, causal_attention
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.world import translated_errors
from capstan_runtime.model_spec import kv_heads
from capstan_runtime.predicting import Logits, Sequences, Tokens, powers_of_two

_SHORTEST_SEEN = 64
"""Tokens of the cache that a step looks at, at least; then the next power of two."""


class TorchDecoder:
    """A `serving.predictor.Decoder`. A step adds a token in every slot at once: what is computed for a slot has the
    same shape whoever else is there."""

    def __init__(self, signature: Signature, module: TransformerModel, device: torch.device, slots: int) -> None:
        config = signature.model.value
        assert isinstance(config, Transformer)
        self.signature = signature
        self.slots = slots
        (self.context,) = signature.input_shape
        self._module = module
        self._device = device
        self._sequences = Sequences(slots, self.context, signature.outputs)
        shape = (slots, kv_heads(config), self.context, config.dim // config.heads)
        self._caches = [
            (torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in range(config.layers)
        ]
        """Keys and values of each layer, [S, K, C, H] each."""
        self._numbers = torch.arange(self.context, device=device)
        self._every_slot = torch.arange(slots, device=device)
        self._seen_lengths = powers_of_two(_SHORTEST_SEEN, self.context)

    def warm(self) -> None:
        self._sequences.forget_all()
        with translated_errors():
            prompt = np.zeros(self.context - 1, np.int32)
            self.prefill(0, prompt)
            self.step([0], prompt[:1])
            self.release(0)

    def prefill(self, slot: int, prompt: Tokens) -> Logits:
        self._sequences.require_fits(slot, prompt)
        length = len(prompt)

        def attend_in(keys: Tensor, values: Tensor) -> Attend:
            def attend(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, where: Positions) -> Tensor:
                keys[slot, :, :length] = k_BTKH[0].transpose(0, 1)
                values[slot, :, :length] = v_BTKH[0].transpose(0, 1)
                return causal_attention(q_BTNH, k_BTKH, v_BTKH, where)

            return attend

        with torch.inference_mode():
            x_BTD = self._through_layers(prompt, self._numbers[:length], Pass(torch.float32), attend_in)
            logits = self._module.logits(x_BTD[:, -1:])[0, 0].cpu().numpy()
        self._sequences.fill(slot, length)
        return logits

    def step(self, slots: Sequence[int], tokens: Tokens) -> Logits:
        self._sequences.require_extensible(slots, tokens)
        tokens_S, positions = self._sequences.in_every_slot(slots, tokens)
        seen = next(length for length in self._seen_lengths if length > positions.max())

        with torch.inference_mode():
            positions_S = torch.from_numpy(positions).to(self._device, torch.int64)
            mask = self._mask(positions_S, self._numbers[:seen])

            def attend_in(keys: Tensor, values: Tensor) -> Attend:
                def attend(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, where: Positions) -> Tensor:
                    keys[self._every_slot, :, positions_S] = k_BTKH[0]
                    values[self._every_slot, :, positions_S] = v_BTKH[0]
                    mixed_SNBH = F.scaled_dot_product_attention(
                        q_BTNH.permute(1, 2, 0, 3),
                        keys[:, :, :seen],
                        values[:, :, :seen],
                        attn_mask=mask,
                        enable_gqa=q_BTNH.shape[2] != k_BTKH.shape[2],
                    )
                    return mixed_SNBH.permute(2, 0, 1, 3)

                return attend

            x_BTD = self._through_layers(tokens_S, positions_S, Pass(torch.float32, is_apart=True), attend_in)
            everywhere = self._module.logits(x_BTD)[0].cpu().numpy()
        self._sequences.extend(slots)
        return everywhere[list(slots)]

    def release(self, slot: int) -> None:
        self._sequences.release(slot)

    def _mask(self, positions_S: Tensor, seen: Tensor) -> Tensor:
        """What the one query of each slot sees of the cache, for all heads; or what is added to its scores there."""
        if self._module.config.alibi is None:
            return (seen <= positions_S[:, None])[:, None, None]
        return alibi_bias(self._module.config.heads, positions_S[:, None], seen[None])

    def _through_layers(
        self, tokens: Tokens, numbers: Tensor, here: Pass, attend_in: Callable[[Tensor, Tensor], Attend]
    ) -> Tensor:
        """[1, T, D] after the last layer. The slots stand in the place of time where every slot takes a token: all that
        is computed between attentions is the same for every token."""
        state = self._module.enter(self._module.embed(torch.tensor(tokens, device=self._device)[None], torch.float32))
        where = self._module.positions.at(numbers, torch.float32)
        for layer, cache in zip(self._module.layers, self._caches, strict=True):
            state = layer(state, where, here, attend_in(*cache))
        return self._module.leave(state, torch.float32)
