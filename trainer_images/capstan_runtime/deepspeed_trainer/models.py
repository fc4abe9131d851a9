"""The three architectures as torch modules. Attribute names are the canonical parameter names of `model_spec`.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width, S image side, C channels.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Convolution, Embedding, Linear, RmsNorm, RotaryTable, rotate
from capstan_runtime.model_spec import feed_forward_width, has_projection, initial_parameter, kv_heads, parameter_table


class MlpModel(nn.Module):
    def __init__(self, config: Mlp, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs, *config.hidden]
        self.layers = nn.ModuleList(
            Linear(width_in, width_out, bias=True) for width_in, width_out in zip(widths, config.hidden, strict=False)
        )
        self.head = Linear(widths[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        x = inputs.flatten(1).to(here.dtype)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


class ResidualBlock(nn.Module):
    """He et al., 2015 (1512.03385), with group normalisation."""

    def __init__(self, block: int, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        self.first = Convolution(channels_in, channels, 3, groups)
        self.second = Convolution(channels, channels, 3, groups)
        projects = has_projection(block, channels_in, channels)
        self.shortcut = Convolution(channels_in, channels, 1, groups) if projects else None
        self.stride = 1 if block == 0 else 2

    def forward(self, x_BCSS: Tensor, here: Pass) -> Tensor:
        y_BCSS = self.second(F.relu(self.first(x_BCSS, self.stride)))
        skipped = x_BCSS if self.shortcut is None else self.shortcut(x_BCSS, self.stride)
        return F.relu(y_BCSS + skipped)


class CnnModel(nn.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = Convolution(image_channels, config.channels[0], 3, config.groups)
        inputs = [config.channels[0], *config.channels]
        self.blocks = nn.ModuleList(
            ResidualBlock(block, channels_in, channels, config.groups)
            for block, (channels_in, channels) in enumerate(zip(inputs, config.channels, strict=False))
        )
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        # Images arrive as [B, S, S, C]: seen as [B, C, S, S] that is torch's channels_last, without a copy.
        x_BCSS = F.relu(self.stem(inputs.permute(0, 3, 1, 2).to(here.dtype)))
        for number, block in enumerate(self.blocks):
            x_BCSS = block(x_BCSS, here.layer(number))
        return self.head(x_BCSS.mean(dim=(2, 3)))


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
        x_BTD = self.embed(inputs, here.dtype)
        for number, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, table, here.layer(number))
        return self.logits(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """[B, T, vocabulary] of what the last layer put out."""
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return F.linear(x_BTD, self.embed.weight.to(x_BTD.dtype))


AnyModel = MlpModel | CnnModel | TransformerModel


def build_model(model: Model, data: DataSpec, seed: int) -> nn.Module:
    """The module in fp32 on the CPU, with the initial values of `seed`.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    Raises ConfigError if the model cannot take such data.
    """
    table = parameter_table(model, data)
    module = bare_model(model, data)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for spec in table:
            parameters.pop(spec.name).copy_(torch.from_numpy(initial_parameter(spec, seed)))
    if parameters:
        raise AssertionError(f"parameters without a specification: {', '.join(parameters)}")
    return module


def bare_model(model: Model, data: DataSpec) -> AnyModel:
    """The module with parameters of the right shapes and no meaningful values, on torch's default device."""
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs)
        case Transformer() as config:
            return TransformerModel(config, data.outputs)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")
