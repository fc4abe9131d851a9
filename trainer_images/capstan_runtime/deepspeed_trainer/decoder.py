"""The decoder as torch modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Transformer
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Embedding, Linear, RmsNorm, RotaryTable, rotate
from capstan_runtime.model_spec import feed_forward_width, kv_heads

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q_BTNH, k_BTKH and v_BTKH to mixed_BTNH: which positions see which. Whoever keeps keys and values brings its
own."""


def causal_attention(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
    """Every position sees itself and those before it."""
    mixed_BNTH = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BTKH.transpose(1, 2),
        v_BTKH.transpose(1, 2),
        is_causal=True,
        enable_gqa=k_BTKH.shape[2] != q_BTNH.shape[2],
    )
    return mixed_BNTH.transpose(1, 2)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2305.13245) with rotary positions."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, kv_heads(config)
        self.head_dim = config.dim // config.heads
        self.qkv = Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, table: tuple[Tensor, Tensor], attend: Attend = causal_attention) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, length, -1, self.head_dim)
        q_BTNH, k_BTKH, v_BTKH = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        mixed_BTNH = attend(rotate(q_BTNH, table), rotate(k_BTKH, table), v_BTKH)
        return self.out(mixed_BTNH.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2002.05202)."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        width = feed_forward_width(config)
        self.gate_up = Linear(config.dim, 2 * width)
        self.down = Linear(width, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = RmsNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor], here: Pass, attend: Attend = causal_attention
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), table, attend)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class TransformerModel(nn.Module):
    def __init__(self, config: Transformer, vocabulary: int) -> None:
        super().__init__()
        self.embed = Embedding(vocabulary, config.dim)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.dim, config.norm_epsilon)
        self.head = None if config.tied else Linear(config.dim, vocabulary)
        self.rotary = RotaryTable(config.dim // config.heads, config.rope_theta)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        table = self.rotary.at(inputs.shape[1], inputs.device)
        x_BTD = here.perturbed(self.embed(inputs, here.dtype))
        for number, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, table, here.layer(number))
        return self.logits(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """[B, T, vocabulary] of what the last layer put out."""
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return F.linear(x_BTD, self.embed.weight.to(x_BTD.dtype))
