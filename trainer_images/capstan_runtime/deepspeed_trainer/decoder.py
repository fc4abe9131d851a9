"""The decoder as torch modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Transformer
from capstan_runtime.deepspeed_trainer.components import reversible
from capstan_runtime.deepspeed_trainer.components.branches import LayerScale, drop_branch, drop_elements, drop_units
from capstan_runtime.deepspeed_trainer.components.experts import Experts
from capstan_runtime.deepspeed_trainer.components.positions import Positions, PositionsOf
from capstan_runtime.deepspeed_trainer.components.reversible import Branch, Link, Streams, through_reversible_layer
from capstan_runtime.deepspeed_trainer.forward_pass import Pass, through_block
from capstan_runtime.deepspeed_trainer.layers import Embedding, Linear, RmsNorm, rotate
from capstan_runtime.model_spec import feed_forward_width, kv_heads
from capstan_runtime.parallel.stages import WHOLE, Stage

Attend = Callable[[Tensor, Tensor, Tensor, Positions], Tensor]
"""From q_BTNH, k_BTKH, v_BTKH and where they stand to mixed_BTNH: which positions see which. Whoever keeps keys and
values brings its own."""

State = Tensor | Streams
"""What layers hand on: x_BTD, or where they are reversible two of it."""


def causal_attention(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, where: Positions) -> Tensor:
    """Every position sees itself and those before it. torch takes the flash kernel where there is one, and with a bias
    its memory-efficient kernel; elsewhere it computes the same in steps."""
    mixed_BNTH = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BTKH.transpose(1, 2),
        v_BTKH.transpose(1, 2),
        attn_mask=where.bias,
        is_causal=where.bias is None,
        enable_gqa=k_BTKH.shape[2] != q_BTNH.shape[2],
    )
    return mixed_BNTH.transpose(1, 2)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2305.13245)."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, kv_heads(config)
        self.head_dim = config.dim // config.heads
        self.qkv = Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = Linear(config.dim, config.dim)
        self.attend: Attend = causal_attention
        """Where nobody brings another."""

    def forward(self, x_BTD: Tensor, where: Positions, attend: Attend | None = None) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, length, -1, self.head_dim)
        q_BTNH, k_BTKH, v_BTKH = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if where.rotary is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, where.rotary), rotate(k_BTKH, where.rotary)
        mixed_BTNH = (attend or self.attend)(q_BTNH, k_BTKH, v_BTKH, where)
        return self.out(mixed_BTNH.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2002.05202)."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        width = feed_forward_width(config)
        self.gate_up = Linear(config.dim, 2 * width)
        self.down = Linear(width, config.dim)
        self.adaptive_dropout = config.adaptive_dropout
        self.first_unit, self.units = 0, width
        """Which of the layer's units are here from its first on, and how many the layer has."""

    def forward(self, x_BTD: Tensor, here: Pass) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        units = F.silu(gate) * up
        if self.adaptive_dropout is not None:
            units = drop_units(self.adaptive_dropout, units, gate, here, self.first_unit, self.units)
        return self.down(units)


class DecoderLayer(nn.Module):
    """Two residual branches, each of which sees the normalised sum of all before it."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.attention_scale = None if config.layer_scale is None else LayerScale(config.dim)
        self.feed_forward_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config) if config.experts is None else Experts(config)
        self.feed_forward_scale = None if config.layer_scale is None else LayerScale(config.dim)

    def forward(self, state: State, where: Positions, here: Pass, attend: Attend | None = None) -> State:
        if isinstance(state, tuple):
            first_BTD, second_BTD = state
            first_BTD = first_BTD + self.attention_branch(second_BTD.to(here.dtype), where, here, attend)
            return first_BTD, second_BTD + self.feed_forward_branch(first_BTD.to(here.dtype), where, here)
        x_BTD = state + self.attention_branch(state, where, here, attend)
        return x_BTD + self.feed_forward_branch(x_BTD, where, here)

    def branches(self, where: Positions) -> tuple[Branch, Branch]:
        """What each of the two adds to what it is given."""
        return (
            lambda x_BTD, here: self.attention_branch(x_BTD, where, here, None),
            lambda x_BTD, here: self.feed_forward_branch(x_BTD, where, here),
        )

    def attention_branch(self, x_BTD: Tensor, where: Positions, here: Pass, attend: Attend | None) -> Tensor:
        """What attention adds to `x_BTD`."""
        delta_BTD = self.attention(self.attention_norm(where.take(x_BTD)), where, attend)
        return self._added(delta_BTD, self.attention_scale, x_BTD, where, here.named("attention"))

    def feed_forward_branch(self, x_BTD: Tensor, where: Positions, here: Pass) -> Tensor:
        """What the feed-forward layer adds to `x_BTD`."""
        here = here.named("feed_forward")
        delta_BTD = self.feed_forward(self.feed_forward_norm(where.take(x_BTD)), here)
        return self._added(delta_BTD, self.feed_forward_scale, x_BTD, where, here)

    def _added(
        self, delta_BTD: Tensor, scale: LayerScale | None, x_BTD: Tensor, where: Positions, here: Pass
    ) -> Tensor:
        if scale is not None:
            delta_BTD = scale(delta_BTD)
        return where.spread(drop_branch(self.config, delta_BTD, here), x_BTD.shape[1])


class TransformerModel(nn.Module):
    """A decoder, or the part of it that a stage of a pipeline has: whose modules bear their names in the whole."""

    embed: Embedding
    norm: RmsNorm

    def __init__(self, config: Transformer, vocabulary: int, stage: Stage = WHOLE) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        numbers = stage.numbers(config.layers)
        if stage.is_first or (stage.is_last and config.tied):
            self.embed = Embedding(vocabulary, config.dim)
        self.layers = nn.ModuleList(
            DecoderLayer(config) if number in numbers else nn.Identity() for number in range(config.layers)
        )
        if stage.is_last:
            self.norm = RmsNorm(config.dim, config.norm_epsilon)
            self.head = None if config.tied else Linear(config.dim, vocabulary)
        self.positions = PositionsOf(config)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        """From tokens [B, T] to logits [B, T, vocabulary]. Stages hand on what `between` has room for."""
        length = inputs.shape[1] if self.stage.is_first else inputs.shape[-2]
        everything = self.positions.all(length, inputs.device, here.dtype)
        state, link = self._begin(inputs, here) if self.stage.is_first else _taken(inputs), Link()
        for number in self.stage.numbers(self.config.layers):
            layer, inside = self.layers[number], here.layer(number)
            where = self.positions.some(length, inside) if self._drops_tokens(number, here) else everything
            assert isinstance(layer, DecoderLayer)
            if isinstance(state, tuple):
                state = through_reversible_layer(layer.branches(where), state, [*layer.parameters()], inside, link)
            else:
                state = through_block(layer, state, inside, where)
        return self.logits(self.leave(state, here.dtype)) if self.stage.is_last else _handed_on(state)

    def _begin(self, tokens_BT: Tensor, here: Pass) -> State:
        """What the first layer takes."""
        x_BTD = here.perturbed(self.embed(tokens_BT, here.dtype))
        return self.enter(drop_elements(self.config, x_BTD, here.named("embed")))

    def between(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for what a stage hands on to the next of `batch` sequences, computed in `dtype`: [B, T, D], or both
        streams of reversible layers."""
        shape = (batch, length, self.config.dim)
        if self.config.reversible is None:
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.empty((2, *shape), device=device)

    def _drops_tokens(self, number: int, here: Pass) -> bool:
        """Whether layer `number` takes some tokens only."""
        return self.config.token_dropout is not None and here.is_training and 0 < number < self.config.layers - 1

    def enter(self, x_BTD: Tensor) -> State:
        """The embeddings as the first layer takes them."""
        return x_BTD if self.config.reversible is None else reversible.enter(x_BTD)

    def leave(self, state: State, dtype: torch.dtype) -> Tensor:
        """[B, T, D] of what the last layer put out."""
        return reversible.leave(state, dtype) if isinstance(state, tuple) else state

    def logits(self, x_BTD: Tensor) -> Tensor:
        """[B, T, vocabulary] of what comes after the last layer."""
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return F.linear(x_BTD, self.embed.weight.to(x_BTD.dtype))


def _handed_on(state: State) -> Tensor:
    return torch.stack(state) if isinstance(state, tuple) else state


def _taken(handed_on: Tensor) -> State:
    if handed_on.ndim == 3:
        return handed_on
    first_BTD, second_BTD = handed_on
    return first_BTD, second_BTD
